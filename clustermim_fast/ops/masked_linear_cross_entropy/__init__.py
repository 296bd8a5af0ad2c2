"""``masked_linear_cross_entropy``: linear classifier and loss of the counted tokens."""

from clustermim_fast.ops.masked_linear_cross_entropy.op import Metrics, masked_linear_cross_entropy

__all__ = ["Metrics", "masked_linear_cross_entropy"]
