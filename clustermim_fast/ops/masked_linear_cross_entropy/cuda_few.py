"""The linear loss of few classes on Hopper's own instructions: one launch of
``csrc/masked_cross_entropy/hopper_linear.cu``.

It does what triton_few.py's kernels do together, and takes less (``problem.refused_by_cuda``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from clustermim_fast.ops import _cuda, _triton
from clustermim_fast.ops.masked_linear_cross_entropy import triton_few
from clustermim_fast.ops.masked_linear_cross_entropy.triton_problem import Grads, Losses, Problem

ROWS = 64  # tokens of a tile
DEPTH = 256  # of d, at most, in one block
THREADS = 384
_TYPES = {torch.float16: "Half::float16", torch.bfloat16: "Half::bfloat16"}
# Those of LinearArguments (hopper_linear_arguments.h), in its order.
POINTERS = (
    "x", "weight", "bias", "target", "token_weight", "wrong", "rows", "counted", "stats", "each",
    "sums", "correct", "histogram", "factor", "relative", "direction", "again", "dx", "parts", "db",
)  # fmt: skip
_ARGUMENTS = f"<{len(POINTERS)}Q5q8if4x"


@dataclass(frozen=True)
class Kind:
    """What a kernel is compiled for.

    depth: of d, what one block has. cluster: blocks that share d. input, weight: whether dX and dW
    are made.
    """

    dtype: torch.dtype
    classes: int
    depth: int
    cluster: int
    input: bool
    weight: bool

    @property
    def kernel(self) -> _cuda.Kernel:
        size = self._bytes()
        defines = (
            ("CMIM_TYPE", _TYPES[self.dtype]),
            ("CMIM_CLASSES", self.classes),
            ("CMIM_DEPTH", self.depth),
            ("CMIM_CLUSTER", self.cluster),
            ("CMIM_INPUT", int(self.input)),
            ("CMIM_WEIGHT", int(self.weight)),
            # The source asserts that it says the same.
            ("CMIM_THREADS", THREADS),
            ("CMIM_BYTES", size),
        )
        return _cuda.Kernel(
            "masked_cross_entropy/hopper_linear.cu", "hopper_linear_rows", defines, THREADS,
            self.cluster, size,
        )  # fmt: skip

    def _bytes(self) -> int:
        """Of shared memory."""
        inputs, weight = 3 * ROWS * self.depth * 2, self.classes * self.depth * 2
        gradients = 2 * ROWS * 128 * -(-self.classes // 64) if self.input or self.weight else 0
        exchanged = 2 * 128 * self.classes if self.cluster == 2 else 0
        of_rows, of_classes, barriers = 3 * 512, 2 * 4 * self.classes, 14 * 8
        return inputs + weight + gradients + exchanged + of_rows + of_classes + barriers


def kind_of(problem: Problem, grads: Grads | None) -> Kind:
    """The kernel for this call."""
    num_classes, dim = problem.weight.shape
    return Kind(
        dtype=problem.x.dtype,
        classes=-(-num_classes // 16) * 16,
        depth=128 if dim <= 128 else DEPTH,
        cluster=_cluster(dim),
        input=grads is not None and grads.needs.input,
        weight=grads is not None and grads.needs.weight,
    )


def _cluster(dim: int) -> int:
    return 1 if dim <= DEPTH else 2


def programs_for(problem: Problem) -> int:
    """Blocks: one a multiprocessor, no more clusters than there are tiles."""
    cluster = _cluster(problem.weight.shape[1])
    most = _triton.properties(problem.x.device).multiprocessors // cluster
    return cluster * max(1, min(-(-problem.num_tokens // ROWS), most))


def pack_arguments(
    problem: Problem, tensors: Mapping[str, torch.Tensor | None], writes_losses: bool
) -> bytes:
    """``LinearArguments``: the ``tensors`` by its names, x, weight and dx as they lie in memory."""
    x, weight, dx = tensors["x"], tensors["weight"], tensors["dx"]
    assert x is not None
    assert weight is not None
    addresses = [0 if (t := tensors[name]) is None else t.data_ptr() for name in POINTERS]
    return struct.pack(
        _ARGUMENTS, *addresses, *x.stride()[:2], weight.stride(0),
        *((0, 0) if dx is None else dx.stride()[:2]), problem.num_tokens, *weight.shape,
        problem.per_sample, problem.prefix, x.shape[0], problem.target.element_size(),
        writes_losses, problem.smoothing,
    )  # fmt: skip


def launch(kind: Kind, blocks: int, arguments: bytes, device: torch.device) -> None:
    """Run it."""
    kind.kernel.launch(device, blocks, (arguments,))


def run(
    problem: Problem,
    stats: torch.Tensor,
    losses: Losses | None,
    grads: Grads | None,
    again: torch.Tensor | None = None,
) -> None:
    """Fills ``stats`` and ``losses``, and ``grads``; without losses the stats are read.

    ``again``: as for triton_few's ``run``.
    """
    if problem.num_tokens == 0:
        _nothing(losses, grads)
        return
    kind, blocks = kind_of(problem, grads), programs_for(problem)
    tensors = _tensors(problem, kind, blocks, stats, losses, grads) | {"again": again}
    arguments = pack_arguments(problem, tensors, losses is not None)
    launch(kind, blocks, arguments, problem.x.device)
    if grads is not None:
        _finish(problem, tensors, grads)


def _nothing(losses: Losses | None, grads: Grads | None) -> None:
    """Without tokens; there may be prefixes."""
    if losses is not None and losses.sums is not None:
        losses.sums.zero_()
    for made in () if grads is None else (grads.input, grads.weight, grads.bias):
        made.zero_()


def _tensors(
    problem: Problem,
    kind: Kind,
    blocks: int,
    stats: torch.Tensor,
    losses: Losses | None,
    grads: Grads | None,
) -> dict[str, torch.Tensor | None]:
    """What the arguments point to: to be kept until the launch."""
    num_classes, dim = problem.weight.shape
    token_weight = problem.token_weight
    bias, direction = triton_few.prepare(problem, kind.classes, kind.input)
    each, sums, correct, histogram, wrong = (None,) * 5 if losses is None else losses
    found: dict[str, torch.Tensor | None] = dict.fromkeys(POINTERS)
    found |= {
        "x": _aligned(problem.x), "weight": _aligned(problem.weight),
        "bias": bias, "direction": direction,
        "target": problem.target, "wrong": wrong, "rows": problem.rows,
        "token_weight": None if token_weight is None else token_weight.double(),
        "counted": problem.counted, "stats": stats, "each": each, "sums": sums,
        "correct": correct, "histogram": histogram,
    }  # fmt: skip
    if grads is not None:
        found |= grads.scales._asdict()
        if kind.input:
            found["dx"] = grads.input.view(problem.x.shape)
        if kind.weight:
            found["parts"] = stats.new_empty(blocks // kind.cluster, num_classes, dim)
        if grads.needs.bias:
            found["db"] = stats.new_empty(blocks, num_classes)
    return found


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Rows at multiples of 16 bytes: a copy where they are not."""
    strides = [s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    starts = (tensor.data_ptr(), *(s * tensor.element_size() for s in strides[:-1]))
    if not any(start % 16 for start in starts):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _finish(problem: Problem, tensors: Mapping[str, torch.Tensor | None], grads: Grads) -> None:
    """dW and db from their parts.

    Smoothing's constant part is not in them. A row's dZ sums up to 0 over all classes with it, so
    that part is the mean over classes of what is there, taken off: of rounded dZ, too, that takes
    off nothing but what the softmax does not see.
    """
    parts, db = tensors["parts"], tensors["db"]
    if parts is not None:
        triton_few.add(parts, None, grads.weight, 0.0)
        if problem.smoothing > 0:
            grads.weight.sub_(grads.weight.mean(0))
    if db is not None:
        triton_few.add(db, None, grads.bias, 0.0)
        if problem.smoothing > 0:
            grads.bias.sub_(grads.bias.mean())
        grads.bias.mul_(grads.scales.factor)
