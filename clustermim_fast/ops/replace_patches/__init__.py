from clustermim_fast.ops.replace_patches.op import replace_patches

__all__ = ["replace_patches"]
