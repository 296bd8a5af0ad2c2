"""``masked_linear_cross_entropy`` on the CPU: library GEMMs and our row kernel, chunk by chunk.

Rows go through in chunks: gather the counted rows, logits by one GEMM, the row kernel, and in the
backward two GEMMs more. The logits of all rows never exist. Inputs are widened to the accumulation
dtype as they are gathered, so that 16-bit values are multiplied exactly and summed in float32, and
a gradient is rounded once, on its way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from clustermim_fast.ops import _backend
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import rows as _rows
from clustermim_fast.ops.masked_cross_entropy.cpu import address, row_list

OP = "masked_linear_cross_entropy"

# Bytes of one chunk's logits, and of its inputs. Large enough that dW's GEMM, which reads and
# writes all of dW for every chunk, has 256 rows to amortise that over at K = 8192; small enough
# that the chunk is still in the last-level cache when the row kernel and the next GEMM read it.
CHUNK_BYTES = 8 << 20
MIN_CHUNK_ROWS = 64


def chunk_rows(num_classes: int, dim: int, itemsize: int) -> int:
    """Rows of one chunk."""
    return max(MIN_CHUNK_ROWS, CHUNK_BYTES // (max(num_classes, dim, 1) * itemsize))


class _Chunks:
    """The counted rows of one call in chunks: inputs and logits in buffers used again and again."""

    def __init__(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        target: torch.Tensor,
        rows: torch.Tensor,
        n: int,
        prefix: int,
        label_smoothing: float,
        stats: torch.Tensor,
    ) -> None:
        acc = arguments.accumulation_dtype(input, weight, bias)
        x = input.reshape(input.shape[:-2].numel(), *input.shape[-2:])
        # The row kernel widens 16 bits to float32; float64 beside a narrower input is a copy.
        x = x.to(acc) if acc == torch.float64 else x
        self.x = (x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous())[:, prefix:]
        self.weight = weight.to(acc)
        self.bias = None if bias is None else bias.to(acc).contiguous()
        self.target, self.rows, self.n, self.stats = target, rows, n, stats
        self.label_smoothing = label_smoothing
        self.threads = torch.get_num_threads()
        self.acc = acc
        num_classes, dim = weight.shape
        self.size = min(max(n, 1), chunk_rows(num_classes, dim, acc.itemsize))
        self._inputs = torch.empty(self.size, dim, dtype=acc)
        self._logits = torch.empty(self.size, num_classes, dtype=acc)

    def __iter__(self) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
        """(begin, end, inputs [r, d], logits [r, K] without bias) for the counted rows in order."""
        for begin in range(0, self.n, self.size):
            end = min(begin + self.size, self.n)
            inputs, logits = self._inputs[: end - begin], self._logits[: end - begin]
            _backend.core().gather_token_rows(
                source=self.x.data_ptr(),
                out=inputs.data_ptr(),
                **self.token_rows(begin, end, self.x),
            )
            torch.mm(inputs, self.weight.t(), out=logits)
            yield begin, end, inputs, logits

    def token_rows(self, begin: int, end: int, tensor: torch.Tensor) -> dict[str, Any]:
        """Arguments of gather and scatter for rows [begin, end) of ``tensor`` [S, L, d]."""
        return {
            "dtype": _backend.DTYPE_CODES[tensor.dtype],
            "sample_stride": tensor.stride(0),
            "row_stride": tensor.stride(1),
            "rows_per_sample": max(tensor.shape[1], 1),
            "dim": tensor.shape[2],
            "rows": self.rows[begin:end].data_ptr(),
            "num_rows": end - begin,
            "num_tokens": self.target.numel(),
            "threads": self.threads,
        }

    def loss_rows(self, begin: int, end: int, logits: torch.Tensor) -> dict[str, Any]:
        """Arguments of the row kernel for one chunk's logits."""
        return {
            "logits": logits.data_ptr(),
            "logits_dtype": _backend.DTYPE_CODES[self.acc],
            "sample_stride": 0,
            "row_stride": logits.shape[1],
            "rows_per_sample": 1,
            "compact": True,
            "num_classes": logits.shape[1],
            "rows": self.rows[begin:end].data_ptr(),
            "num_rows": end - begin,
            "num_tokens": self.target.numel(),
            "target": self.target.data_ptr(),
            "bias": address(self.bias),
            "class_weight": 0,
            "class_weight_sum": 0.0,
            "label_smoothing": self.label_smoothing,
            "stats": self.stats.data_ptr(),
            "threads": self.threads,
        }


def forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    prefix: int,
    masked_per_sample: int,
    metrics: bool,
) -> tuple[torch.Tensor, ...]:
    """The outputs of the registered forward op; see its public function for the arguments."""
    num_classes = weight.shape[0]
    acc = arguments.accumulation_dtype(input, weight, bias)
    flat = target.long().contiguous()
    rows, n = row_list(OP, flat, mask, ignore_index, num_classes, masked_per_sample)
    weights = _rows.row_weights(rows[:n], None, token_weight)
    if weights is not None:
        arguments.check_token_weight_values(OP, weights)
    stats = torch.zeros(2, flat.numel(), dtype=acc)
    losses = torch.empty(n, dtype=acc)
    best = torch.empty(n if metrics else 0, dtype=torch.int64)
    chunks = _Chunks(input, weight, bias, flat, rows, n, prefix, label_smoothing, stats)
    for begin, end, _, logits in chunks:
        _backend.core().cross_entropy_forward(
            loss=losses[begin:end].data_ptr(),
            argmax=best[begin:end].data_ptr() if metrics else 0,
            **chunks.loss_rows(begin, end, logits),
        )
    count = torch.tensor(n)
    divisor = _rows.mean_divisor(count, weights, None, flat)
    loss = _rows.reduce_rows(losses, rows[:n], weights, divisor, target.shape, reduction)
    correct = torch.zeros((), dtype=torch.int64)
    histogram = torch.zeros(num_classes, dtype=torch.int64)
    if metrics:
        correct = (best == flat.reshape(-1)[rows[:n]]).sum()
        histogram = torch.bincount(best[best >= 0], minlength=num_classes)
    return loss, rows, count, stats, divisor, correct, histogram


def backward(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    stats: torch.Tensor,
    divisor: torch.Tensor,
    reduction: str,
    label_smoothing: float,
    prefix: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs of the registered backward op; see its public function for the arguments."""
    num_classes, dim = weight.shape
    flat = target.long().contiguous()
    rows, n = rows.contiguous(), int(count)
    chunks = _Chunks(
        input, weight, bias, flat, rows, n, prefix, label_smoothing, stats.contiguous()
    )
    acc = chunks.acc
    weights = _rows.row_weights(rows[:n], None, token_weight)
    scale = _rows.row_scales(grad_loss, rows[:n], weights, divisor, reduction)

    # The smoothing's constant part, -e/K for every class, is rank one. For 16-bit inputs it stays
    # out of the logit gradients, where it would drown small probabilities as soon as those are
    # rounded to a 16-bit GEMM operand, and is taken off the three results. With float32 inputs the
    # detour only costs accuracy (db: 2.6e-7 instead of 1.6e-7 at K = 50).
    smooth = label_smoothing > 0 and input.dtype.itemsize == 2
    grad_input = _GradInput(chunks, input, prefix, need_input, smooth)
    grad_weight = torch.zeros((num_classes, dim) if need_weight else 0, dtype=acc)
    # A float32 sum over all rows would be the largest error of db; in float64 it is none.
    grad_bias = torch.zeros(num_classes if need_bias else 0, dtype=torch.float64)
    scaled_inputs = torch.zeros(dim, dtype=acc)  # sum_n scale_n x_n
    for begin, end, inputs, logits in chunks:
        part = scale[begin:end]
        _backend.core().cross_entropy_backward(
            uniform_part=not smooth,
            scale=part.data_ptr(),
            grad=logits.data_ptr(),
            zero_rest=False,
            **chunks.loss_rows(begin, end, logits),
        )
        if need_bias:
            grad_bias += logits.sum(0, dtype=torch.float64)
        if need_weight:
            grad_weight.addmm_(logits.t(), inputs)
            if smooth:
                scaled_inputs += part.to(acc) @ inputs
        if need_input:
            grad_input.write(begin, end, logits, part, inputs)
    if smooth:
        per_class = label_smoothing / num_classes
        if need_weight:
            grad_weight -= per_class * scaled_inputs
        if need_bias:
            grad_bias -= per_class * scale.sum()
    return grad_input.finish(), grad_weight, grad_bias.to(acc)


class _GradInput:
    """dX: rounded once per counted row, zeros in the others and in the prefix."""

    def __init__(
        self, chunks: _Chunks, input: torch.Tensor, prefix: int, needed: bool, smooth: bool
    ) -> None:
        self.chunks, self.dtype, self.needed = chunks, input.dtype, needed
        # Beside a float64 weight a narrower input's gradient is rounded at the end.
        dtype = chunks.acc if chunks.acc == torch.float64 else input.dtype
        self.out = torch.empty(input.shape if needed else (0,), dtype=dtype)
        if not needed:
            return
        view = self.out.view(input.shape[:-2].numel(), *input.shape[-2:])
        view[:, :prefix].zero_()
        self.tokens = view[:, prefix:]
        self.direction = chunks.weight.mean(0) if smooth else None
        self._scatter(chunks.n, chunks.target.numel(), None, None)

    def _scatter(
        self, begin: int, end: int, source: torch.Tensor | None, factor: torch.Tensor | None
    ) -> None:
        _backend.core().scatter_token_rows(
            source=address(source),
            factor=address(factor),
            direction=address(self.direction) if source is not None else 0,
            destination=self.tokens.data_ptr(),
            **self.chunks.token_rows(begin, end, self.tokens),
        )

    def write(
        self, begin: int, end: int, grad: torch.Tensor, scale: torch.Tensor, buffer: torch.Tensor
    ) -> None:
        """dX of one chunk from its logit gradients; ``buffer`` [r, d] is overwritten."""
        torch.mm(grad, self.chunks.weight, out=buffer)
        factor = None
        if self.direction is not None:
            factor = (scale * self.chunks.label_smoothing).to(self.direction.dtype)
        self._scatter(begin, end, buffer, factor)

    def finish(self) -> torch.Tensor:
        return self.out.to(self.dtype)
