"""``masked_cross_entropy``: cross-entropy of given logits at the counted tokens."""

from clustermim_fast.ops.masked_cross_entropy.op import masked_cross_entropy

__all__ = ["masked_cross_entropy"]
