from clustermim_fast.ops.patch_tokens.op import patch_tokens

__all__ = ["patch_tokens"]
