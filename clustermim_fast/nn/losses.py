"""The masked losses as modules; the linear one owns its weight, so that DDP and FSDP see it."""

from __future__ import annotations

import math
import weakref
from typing import Any, Self

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from clustermim_fast import ops


class MaskedCrossEntropyLoss(nn.Module):
    """:func:`clustermim_fast.ops.masked_cross_entropy` with its options fixed.

    ``forward(logits [..., L, K], target [..., L], mask [..., L] or None, *, token_weight=None)``.
    ``weight`` [K] is a buffer: it follows the module to a device and into its state dict.
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        weight: torch.Tensor | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.backend = backend
        self.register_buffer("weight", weight)

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        token_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return ops.masked_cross_entropy(
            logits,
            target,
            mask,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            weight=self.weight,
            token_weight=token_weight,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )


class MaskedLinearCrossEntropyLoss(nn.Module):
    """A classifier and its loss in one, over :func:`ops.masked_linear_cross_entropy`.

    ``forward(input [..., T, d], target [..., L], mask [..., L] or None, *, token_weight=None)``
    is the loss, or (loss, ops.Metrics) with ``return_metrics``. ``weight`` [K, d] and ``bias`` [K]
    or None have the names, shapes and initialisation of ``nn.Linear(in_features, num_classes)``.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        num_prefix_tokens: int = 0,
        masked_per_sample: int | None = None,
        return_metrics: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_classes = num_classes
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.num_prefix_tokens = num_prefix_tokens
        self.masked_per_sample = masked_per_sample
        self.return_metrics = return_metrics
        self.backend = backend
        self._shared_with: weakref.ref[nn.Linear] | None = None
        self.weight = nn.Parameter(
            torch.empty(num_classes, in_features, device=device, dtype=dtype)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """The loss of an existing layer, sharing its Parameters.

        Put it in the layer's place (``model.head = from_linear(model.head)``) or beside it,
        registered after it: either way ``model.state_dict()`` keeps the keys it had, old
        checkpoints load strictly, and an optimizer made before goes on working. ``options`` are
        the constructor's.

        What gives the layer other Parameters (``load_state_dict(assign=True)``, ``to_empty``)
        comes before this call, where the loss stands beside the layer. As long as something still
        holds a layer whose place the loss took, a strict load does not miss its keys.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                "MaskedLinearCrossEntropyLoss.from_linear: linear must be a torch.nn.Linear, "
                f"got {type(linear).__name__}"
            )
        weight: Any = linear.weight  # typed as Tensor there
        bias: Any = linear.bias
        own = isinstance(weight, nn.Parameter) and not is_lazy(weight)  # no weight_norm, LazyLinear
        if not own or type(linear).forward is not nn.Linear.forward:  # adapters, quantisation
            raise TypeError(
                "MaskedLinearCrossEntropyLoss.from_linear: linear must compute F.linear(input, "
                f"weight, bias) from its Parameters, got a {type(linear).__name__} that does not; "
                "give ops.masked_linear_cross_entropy the weight that it comes to"
            )
        loss = cls(
            linear.in_features,
            linear.out_features,
            bias=bias is not None,
            device="meta",
            **options,
        )
        loss.register_parameter("weight", weight)
        loss.register_parameter("bias", bias)
        loss.train(linear.training)
        loss._shared_with = weakref.ref(linear)
        return loss

    def reset_parameters(self) -> None:
        """As nn.Linear: uniform in +-1/sqrt(in_features), weight and bias."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        token_weight: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ops.Metrics]:
        return_metrics: Any = self.return_metrics  # mypy takes a Literal here, not a bool
        loss: torch.Tensor | tuple[torch.Tensor, ops.Metrics] = ops.masked_linear_cross_entropy(
            input,
            self.weight,
            target,
            mask,
            linear_bias=self.bias,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            token_weight=token_weight,
            num_prefix_tokens=self.num_prefix_tokens,
            masked_per_sample=self.masked_per_sample,
            return_metrics=return_metrics,
            backend=self.backend,
        )
        return loss

    def logits(self, input: torch.Tensor) -> torch.Tensor:
        """``F.linear(input, weight, bias)``: what the layer itself would give, for inference."""
        return nn.functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"bias={self.bias is not None}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"num_prefix_tokens={self.num_prefix_tokens}"
        )

    # ---- Beside the layer it shares with, this module adds no keys to a checkpoint.

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        linear = self._shared_with() if self._shared_with is not None else None
        if linear is not None and linear.weight is self.weight:
            pointers = {t.data_ptr() for t in destination.values() if isinstance(t, torch.Tensor)}
            if self.weight.data_ptr() in pointers:  # already written, under the layer's own name
                return
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        missing: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        linear = self._shared_with() if self._shared_with is not None else None
        # While the layer lives, the values arrive through it.
        if linear is None or linear.weight is not self.weight:
            missing_keys.extend(missing)

    # A copy (an averaged model, a spawned process) stands beside the copy of the layer. Weak
    # references cannot be pickled; one to a layer outside the copied model dies with the copying.
    def __getstate__(self) -> dict[str, Any]:
        linear = self._shared_with() if self._shared_with is not None else None
        return {**self.__dict__, "_shared_with": linear}

    def __setstate__(self, state: dict[str, Any]) -> None:
        linear = state["_shared_with"]
        shared_with = None if linear is None else weakref.ref(linear)
        super().__setstate__({**state, "_shared_with": shared_with})
