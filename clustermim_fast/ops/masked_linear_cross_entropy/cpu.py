"""``masked_linear_cross_entropy`` on the CPU: library GEMMs and our row kernel, chunk by chunk.

Rows go through in chunks: gather the counted rows, logits by one GEMM, the row kernel, and two
GEMMs more for the gradients, in the forward already where they are wanted then. The logits of all
rows never exist. Inputs are widened to the accumulation dtype as they are gathered, so that 16-bit
values are multiplied exactly and summed in float32, and a gradient is rounded once, on its way out.
bfloat16 on a machine with tiles goes another way, tiles.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from clustermim_fast.ops import _backend
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import rows as _rows
from clustermim_fast.ops.masked_cross_entropy.cpu import address, row_list
from clustermim_fast.ops.masked_linear_cross_entropy import tiles
from clustermim_fast.ops.masked_linear_cross_entropy.grad_input import (
    GradInput,
    as_samples,
    token_rows,
)

OP = "masked_linear_cross_entropy"


class Needs(NamedTuple):
    """Which gradients are wanted."""

    input: bool
    weight: bool
    bias: bool


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
        # The row kernel widens 16 bits to float32; float64 beside a narrower input is a copy.
        self.x = as_samples(input.to(acc) if acc == torch.float64 else input)[:, prefix:]
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
                **token_rows(self.x, self.rows[begin:end], self.target.numel(), self.threads),
            )
            torch.mm(inputs, self.weight.t(), out=logits)
            yield begin, end, inputs, logits

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


class _Gradients:
    """dX, dW and db of a call, from chunks of logit gradients.

    dX: rounded once per counted row, zeros in the others and in the prefix. dW in the accumulation
    dtype; db is summed in float64, since a float32 sum over all rows would be its largest error.
    """

    def __init__(self, chunks: _Chunks, input: torch.Tensor, prefix: int, needs: Needs) -> None:
        num_classes, dim = chunks.weight.shape
        self.chunks, self.needs = chunks, needs
        # The smoothing's constant part, -e/K for every class, is rank one. For 16-bit inputs it
        # stays out of the logit gradients, where it would drown small probabilities as soon as
        # those are rounded to a 16-bit GEMM operand, and is taken off the three results. With
        # float32 inputs the detour only costs accuracy (db: 2.6e-7 instead of 1.6e-7 at K = 50).
        self.smooth = chunks.label_smoothing > 0 and input.dtype.itemsize == 2
        self.weight = torch.zeros((num_classes, dim) if needs.weight else 0, dtype=chunks.acc)
        self.bias = torch.zeros(num_classes if needs.bias else 0, dtype=torch.float64)
        self.scaled_inputs = torch.zeros(dim, dtype=chunks.acc)  # sum_n scale_n x_n
        self.scales = 0.0
        self.input = GradInput(input, prefix, needs.input, chunks.acc, chunks.threads)
        self.input.zero(chunks.rows[chunks.n :], chunks.target.numel())
        self.direction = chunks.weight.mean(0) if self.smooth and needs.input else None

    def add(
        self, begin: int, end: int, inputs: torch.Tensor, logits: torch.Tensor, scale: torch.Tensor
    ) -> None:
        """The rows [begin, end); ``inputs`` [r, d] and ``logits`` [r, K] are overwritten."""
        chunks = self.chunks
        _backend.core().cross_entropy_backward(
            uniform_part=not self.smooth,
            scale=scale.data_ptr(),
            grad=logits.data_ptr(),
            zero_rest=False,
            **chunks.loss_rows(begin, end, logits),
        )
        if self.needs.bias:
            self.bias += logits.sum(0)
        if self.needs.weight:
            self.weight.addmm_(logits.t(), inputs)
        if self.smooth:
            self.scaled_inputs += scale.to(chunks.acc) @ inputs
            self.scales += float(scale.sum())
        if self.needs.input:
            torch.mm(logits, chunks.weight, out=inputs)
            factor = (scale * chunks.label_smoothing).to(chunks.acc) if self.smooth else None
            self.input.write(
                chunks.rows[begin:end], chunks.target.numel(), inputs, factor, self.direction
            )

    def finish(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.smooth:
            per_class = self.chunks.label_smoothing / self.chunks.weight.shape[0]
            self.weight -= per_class * self.scaled_inputs if self.needs.weight else 0.0
            self.bias -= per_class * self.scales
        return self.input.finish(), self.weight, self.bias.to(self.chunks.acc)


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
    needs: Needs,
) -> tuple[torch.Tensor, ...]:
    """The outputs of the registered forward op; see its public function for the arguments."""
    num_classes = weight.shape[0]
    acc = arguments.accumulation_dtype(input, weight, bias)
    flat = target.long().contiguous()
    rows, n = row_list(OP, flat, mask, ignore_index, num_classes, masked_per_sample)
    weights = _rows.row_weights(rows[:n], None, token_weight)
    if weights is not None:
        arguments.check_token_weight_values(OP, weights)
    count = torch.tensor(n)
    divisor = _rows.mean_divisor(count, weights, None, flat)
    scale = None
    if any(needs):
        one = torch.ones(target.shape if reduction == "none" else (), dtype=torch.float64)
        scale = _rows.row_scales(one, rows[:n], weights, divisor, reduction)
    stats = torch.zeros(2, flat.numel(), dtype=acc)
    losses, best, *grads = _work(
        input, weight, bias, flat, rows, n, stats, label_smoothing, prefix, metrics, scale, needs,
        want_losses=True,
    )  # fmt: skip
    loss = _rows.reduce_rows(losses, rows[:n], weights, divisor, target.shape, reduction)
    correct = torch.zeros((), dtype=torch.int64)
    histogram = torch.zeros(num_classes, dtype=torch.int64)
    if metrics:
        correct = (best == flat.reshape(-1)[rows[:n]]).sum()
        histogram = torch.bincount(best[best >= 0], minlength=num_classes)
    return loss, rows, count, stats, divisor, correct, histogram, *grads


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
    needs: Needs,
) -> tuple[torch.Tensor, ...]:
    """The outputs of the registered backward op; see its public function for the arguments."""
    flat = target.long().contiguous()
    rows, n = rows.contiguous(), int(count)
    weights = _rows.row_weights(rows[:n], None, token_weight)
    scale = _rows.row_scales(grad_loss, rows[:n], weights, divisor, reduction)
    return _work(
        input, weight, bias, flat, rows, n, stats.contiguous(), label_smoothing, prefix, False,
        scale, needs, want_losses=False,
    )[2:]  # fmt: skip


def _work(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    rows: torch.Tensor,
    n: int,
    stats: torch.Tensor,
    label_smoothing: float,
    prefix: int,
    metrics: bool,
    scale: torch.Tensor | None,
    needs: Needs,
    want_losses: bool,
) -> tuple[torch.Tensor, ...]:
    """(losses [n], argmax [n], dX, dW, db); what is not wanted has size 0.

    ``stats`` is written with the losses, and read without them.
    """
    acc = arguments.accumulation_dtype(input, weight, bias)
    if tiles.usable(input, weight, bias):
        return _work_in_tiles(
            input, weight, bias, target, rows, n,
            stats if want_losses else torch.empty_like(stats),  # it writes them always
            label_smoothing, prefix, metrics, scale, needs,
        )  # fmt: skip
    losses = torch.empty(n if want_losses else 0, dtype=acc)
    best = torch.empty(n if metrics else 0, dtype=torch.int64)
    chunks = _Chunks(input, weight, bias, target, rows, n, prefix, label_smoothing, stats)
    gradients = _Gradients(chunks, input, prefix, needs)
    for begin, end, inputs, logits in chunks:
        if want_losses:
            _backend.core().cross_entropy_forward(
                loss=losses[begin:end].data_ptr(),
                argmax=best[begin:end].data_ptr() if metrics else 0,
                **chunks.loss_rows(begin, end, logits),
            )
        if scale is not None and any(needs):
            gradients.add(begin, end, inputs, logits, scale[begin:end])
    return losses, best, *gradients.finish()


def _work_in_tiles(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    rows: torch.Tensor,
    n: int,
    stats: torch.Tensor,
    label_smoothing: float,
    prefix: int,
    metrics: bool,
    scale: torch.Tensor | None,
    needs: Needs,
) -> tuple[torch.Tensor, ...]:
    grad_input = GradInput(input, prefix, needs.input, torch.float32, torch.get_num_threads())
    grad_input.zero(rows[n:], target.numel())
    x = as_samples(input)[:, prefix:]
    found = tiles.run(
        x, weight, bias, target, rows[:n], stats, label_smoothing, metrics,
        scale if any(needs) else None, grad_input.tokens if needs.input else None, needs.weight,
        needs.bias,
    )  # fmt: skip
    return (
        found.losses,
        found.argmax,
        grad_input.finish(),
        torch.empty(0) if found.grad_weight is None else found.grad_weight,
        torch.empty(0) if found.grad_bias is None else found.grad_bias,
    )
