"""Modules: the masked losses as ``torch.nn.Module``."""

from clustermim_fast.nn.losses import MaskedCrossEntropyLoss, MaskedLinearCrossEntropyLoss

__all__ = ["MaskedCrossEntropyLoss", "MaskedLinearCrossEntropyLoss"]
