"""``masked_linear_cross_entropy``: a linear classifier and its cross-entropy, counted tokens only."""

from clustermim_fast.ops.masked_linear_cross_entropy.op import Metrics, masked_linear_cross_entropy

__all__ = ["Metrics", "masked_linear_cross_entropy"]
