"""``masked_linear_cross_entropy`` on the CPU: library GEMMs and our row kernel, chunk by chunk.

Rows go through in chunks: gather the counted rows, logits by one GEMM, the row kernel, and two
GEMMs more for the gradients, in the forward already where they are wanted then. The logits of all
rows never exist. Inputs are widened to the accumulation dtype as they are gathered, so that 16-bit
values are multiplied exactly and summed in float32, and a gradient is rounded once, on its way out.
bfloat16 on a machine with tiles goes another way, tiles.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from clustermim_fast.ops import _backend
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import rows as _rows
from clustermim_fast.ops.masked_cross_entropy.cpu import address, row_list
from clustermim_fast.ops.masked_linear_cross_entropy import tiles
from clustermim_fast.ops.masked_linear_cross_entropy.grad_input import GradInput, token_rows
from clustermim_fast.ops.masked_linear_cross_entropy.problem import Needs, Problem

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

    def __init__(self, problem: Problem) -> None:
        self.problem, self.acc = problem, problem.acc
        acc = self.acc
        # The row kernel widens 16 bits to float32; float64 beside a narrower input is a copy.
        self.x = problem.tokens(acc if acc == torch.float64 else None)
        self.weight = problem.weight.to(acc)
        self.bias = None if problem.bias is None else problem.bias.to(acc).contiguous()
        self.threads = torch.get_num_threads()
        num_classes, dim = problem.weight.shape
        self.size = min(max(problem.n, 1), chunk_rows(num_classes, dim, acc.itemsize))
        self._inputs = torch.empty(self.size, dim, dtype=acc)
        self._logits = torch.empty(self.size, num_classes, dtype=acc)

    def __iter__(self) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
        """(begin, end, inputs [r, d], logits [r, K] without bias) for the counted rows in order."""
        n, num_tokens = self.problem.n, self.problem.target.numel()
        for begin in range(0, n, self.size):
            end = min(begin + self.size, n)
            inputs, logits = self._inputs[: end - begin], self._logits[: end - begin]
            _backend.core().gather_token_rows(
                source=self.x.data_ptr(),
                out=inputs.data_ptr(),
                **token_rows(self.x, self.problem.rows[begin:end], num_tokens, self.threads),
            )
            torch.mm(inputs, self.weight.t(), out=logits)
            yield begin, end, inputs, logits

    def loss_rows(self, begin: int, end: int, logits: torch.Tensor) -> dict[str, Any]:
        """Arguments of the row kernel for one chunk's logits."""
        problem = self.problem
        return {
            "logits": logits.data_ptr(),
            "logits_dtype": _backend.DTYPE_CODES[self.acc],
            "sample_stride": 0,
            "row_stride": logits.shape[1],
            "rows_per_sample": 1,
            "compact": True,
            "num_classes": logits.shape[1],
            "rows": problem.rows[begin:end].data_ptr(),
            "num_rows": end - begin,
            "num_tokens": problem.target.numel(),
            "target": problem.target.data_ptr(),
            "bias": address(self.bias),
            "class_weight": 0,
            "class_weight_sum": 0.0,
            "label_smoothing": problem.label_smoothing,
            "stats": problem.stats.data_ptr(),
            "threads": self.threads,
        }


class _Gradients:
    """dX, dW and db of a call, from chunks of logit gradients.

    dX: rounded once per counted row, zeros in the others and in the prefix. dW in the accumulation
    dtype; db in float64, since a float32 sum over all rows would be its largest error.
    """

    def __init__(self, chunks: _Chunks, needs: Needs) -> None:
        problem = chunks.problem
        num_classes, dim = chunks.weight.shape
        self.chunks, self.needs = chunks, needs
        self.weight = torch.zeros((num_classes, dim) if needs.weight else 0, dtype=chunks.acc)
        self.bias = torch.zeros(num_classes if needs.bias else 0, dtype=torch.float64)
        self.input = GradInput(problem, needs.input, chunks.threads)
        if needs.input:
            self.input.write(problem.rows[problem.n :], None)

    def add(
        self, begin: int, end: int, inputs: torch.Tensor, logits: torch.Tensor, scale: torch.Tensor
    ) -> None:
        """The rows [begin, end); ``inputs`` [r, d] and ``logits`` [r, K] are overwritten."""
        chunks = self.chunks
        _backend.core().cross_entropy_backward(
            scale=scale.data_ptr(),
            grad=logits.data_ptr(),
            zero_rest=False,
            **chunks.loss_rows(begin, end, logits),
        )
        if self.needs.bias:
            self.bias += _sum_rows(logits)
        if self.needs.weight:
            self.weight.addmm_(logits.t(), inputs)
        if self.needs.input:
            torch.mm(logits, chunks.weight, out=inputs)
            self.input.write(chunks.problem.rows[begin:end], inputs)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.input.finish(), self.weight, self.bias.to(self.chunks.acc)


def _sum_rows(x: torch.Tensor) -> torch.Tensor:
    """[r, K] -> [K] float64, of sums of 32 rows: torch's sum into float64 first copies all of x."""
    whole = len(x) - len(x) % 32
    runs = x[:whole].view(-1, 32, x.shape[1]).sum(1)
    return runs.sum(0, dtype=torch.float64) + x[whole:].sum(0, dtype=torch.float64)


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
    plain = weights is None and reduction == "mean" and n > 0
    scale = None
    if any(needs) and plain:
        scale = torch.full((n,), 1 / n, dtype=torch.float64)
    elif any(needs):
        one = torch.ones(target.shape if reduction == "none" else (), dtype=torch.float64)
        scale = _rows.row_scales(one, rows[:n], weights, divisor, reduction)
    stats = torch.zeros(2, flat.numel(), dtype=acc)
    problem = Problem(input, weight, bias, flat, rows, n, stats, label_smoothing, prefix)
    losses, best, *grads = _work(problem, metrics, scale, needs, want_losses=True)
    if plain:
        loss = (losses.sum(dtype=torch.float64) / n).to(acc)
    else:
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
    stats = stats.contiguous()
    problem = Problem(input, weight, bias, flat, rows, n, stats, label_smoothing, prefix)
    return _work(problem, False, scale, needs, want_losses=False)[2:]


def _work(
    problem: Problem, metrics: bool, scale: torch.Tensor | None, needs: Needs, *, want_losses: bool
) -> tuple[torch.Tensor, ...]:
    """(losses [n], argmax [n], dX, dW, db); what is not wanted has size 0.

    ``problem.stats`` is written with the losses, and read without them.
    """
    scale = scale if any(needs) else None
    if problem.weight.shape[0] == 1:
        # The two parts of a gradient of zero would be rounded apart.
        problem = problem._replace(label_smoothing=0.0)
    if tiles.usable(problem):
        if not want_losses:  # it writes them always
            problem = problem._replace(stats=torch.empty_like(problem.stats))
        return tiles.run(problem, metrics, scale, needs)
    losses = torch.empty(problem.n if want_losses else 0, dtype=problem.acc)
    best = torch.empty(problem.n if metrics else 0, dtype=torch.int64)
    chunks = _Chunks(problem)
    gradients = _Gradients(chunks, needs)
    for begin, end, inputs, logits in chunks:
        if want_losses:
            _backend.core().cross_entropy_forward(
                loss=losses[begin:end].data_ptr(),
                argmax=best[begin:end].data_ptr() if metrics else 0,
                **chunks.loss_rows(begin, end, logits),
            )
        if scale is not None:
            gradients.add(begin, end, inputs, logits, scale[begin:end])
    return losses, best, *gradients.finish()
