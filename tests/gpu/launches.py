"""What a call asks of a GPU, found without one: launches, grids, and that the host never waits.

    python -m tests.gpu.launches     # the table in docs/gpu.md

Tensors are torch's fake ones, inside the ops on a device "cuda", and no kernel runs, so that a call
may have the size of real work. What needs a number from the device (``item``, ``nonzero``, a size
that depends on data) raises, as does a copy between the device and the host.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from clustermim_fast import ops
from clustermim_fast.ops import _cuda, _triton
from clustermim_fast.ops.lloyd_step import op as lloyd_step
from clustermim_fast.ops.masked_cross_entropy import op as masked_cross_entropy
from clustermim_fast.ops.masked_linear_cross_entropy import autograd as masked_linear_autograd
from clustermim_fast.ops.masked_linear_cross_entropy import cuda_few
from clustermim_fast.ops.masked_linear_cross_entropy import registered as masked_linear
from clustermim_fast.ops.nearest_centroid import cuda_filter
from clustermim_fast.ops.nearest_centroid import op as nearest_centroid
from clustermim_fast.ops.patch_tokens import op as patch_tokens
from clustermim_fast.ops.replace_patches import op as replace_patches

H200 = _triton.Device("sm_90", 90, 132, 232_448)
IMPLEMENTATIONS: dict[Any, Callable[..., Any]] = {
    nearest_centroid._ids_op: nearest_centroid._ids_impl,
    nearest_centroid._distance_op: nearest_centroid._distance_impl,
    patch_tokens._op: patch_tokens._impl,
    lloyd_step._op: lloyd_step._impl,
    lloyd_step._images_op: lloyd_step._images_impl,
    replace_patches._op: replace_patches._impl,
    masked_cross_entropy._forward_op: masked_cross_entropy._forward_impl,
    masked_cross_entropy._backward_op: masked_cross_entropy._backward_impl,
    masked_linear.forward_op: masked_linear._forward_impl,
    masked_linear.backward_op: masked_linear._backward_impl,
}
# Of torch's ops, those that launch nothing; views aside.
NO_LAUNCH = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach",
             "_unsafe_view", "_reshape_alias", "lift_fresh"}  # fmt: skip


class Waits(AssertionError):
    """The host would wait for the device."""


class Seen(TorchDispatchMode):
    """Runs our ops' implementations on fake tensors and notes what is launched.

    launches: names in turn, torch's own with "torch." before. grids: (kernel, grid).
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.grids: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in IMPLEMENTATIONS:  # autograd, outside, wants a device that is there
            there = tree_map_only(torch.Tensor, partial(_on, "cuda"), args)
            with self:
                out = IMPLEMENTATIONS[func](*there)
            return tree_map_only(torch.Tensor, partial(_on, "cpu"), out)
        if func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):
            with self:
                return func.decompose(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in (*given, *made) if t.dim() or t.device.type != "cpu"}
        if len(devices) > 1:
            raise Waits(f"{func} between {' and '.join(sorted(devices))}")
        name = func._overloadpacket.__name__
        if made and not func.is_view and name not in NO_LAUNCH:
            self.launches.append("torch." + name)
        return out

    def kernel(self, function: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        """In place of ``function[grid]``."""

        def launch(*_: Any, **__: Any) -> None:
            self.launches.append(function.fn.__name__)
            self.grids.append((function.fn.__name__, tuple(grid)))

        return launch

    def cuda_kernel(self, kind: Any, blocks: int, *_: Any) -> None:
        """In place of ``cuda_filter.launch`` and ``cuda_few.launch``."""
        self.launches.append(kind.kernel.name)
        self.grids.append((kind.kernel.name, (blocks,)))


def _on(device: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


@contextlib.contextmanager
def watched(device: _triton.Device = H200) -> Iterator[Seen]:
    """Inside, tensors are fake and ops named "triton" or "cuda" are looked at, not run."""
    seen = Seen()
    with (
        mock.patch.object(_triton, "unavailable_reason", return_value=None),
        mock.patch.object(_cuda, "unavailable_reason", return_value=None),
        mock.patch.object(cuda_filter, "launch", seen.cuda_kernel),
        mock.patch.object(cuda_few, "launch", seen.cuda_kernel),
        mock.patch.object(torch.Tensor, "data_ptr", return_value=0),
        mock.patch.object(_triton, "properties", return_value=device),
        mock.patch.object(_triton, "launching_on", return_value=contextlib.nullcontext()),
        mock.patch.object(masked_linear_autograd, "_on_device", return_value=True),
        mock.patch.object(
            triton.runtime.jit.KernelInterface, "__getitem__", lambda f, grid: seen.kernel(f, grid)
        ),
        FakeTensorMode(),
        seen,
    ):
        yield seen


BYTES, HALF, FULL, WIDE = torch.uint8, torch.bfloat16, torch.float32, torch.float64
_empty = torch.empty  # of fake tensors


def assign(
    n: int = 10**6, d: int = 768, k: int = 100, dtype: torch.dtype = FULL, backend: str = "triton",
    **more: Any,
) -> Any:  # fmt: skip
    x, c = _empty(n, d, dtype=dtype), _empty(k, d, dtype=dtype)
    return ops.nearest_centroid(x, c, backend=backend, **more)


def tokens(b: int = 5102, dtype: torch.dtype = BYTES, **more: Any) -> Any:
    images, c = _empty(b, 3, 224, 224, dtype=dtype), _empty(100, 768)
    return ops.patch_tokens(images, c, 16, backend="triton", **more)


def lloyd(n: int = 10**6, d: int = 768, weighted: bool = False, **more: Any) -> Any:
    weights = _empty(n) if weighted else None
    x, c = _empty(n, d), _empty(100, d)
    return ops.lloyd_step(x, c, weights=weights, backend="triton", **more)


def lloyd_images(b: int = 5102, dtype: torch.dtype = BYTES, **more: Any) -> Any:
    images, c = _empty(b, 3, 224, 224, dtype=dtype), _empty(100, 768)
    return ops.lloyd_step_images(images, c, 16, backend="triton", **more)


def replace(b: int = 5102, dtype: torch.dtype = BYTES, **more: Any) -> Any:
    ids, where = _empty(b, 196, dtype=torch.int64), _empty(b, 196, dtype=torch.bool)
    images = _empty(b, 3, 224, 224, dtype=dtype)
    return ops.replace_patches(images, ids, _empty(100, 768), where, 16, backend="triton", **more)


def _labels(b: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty(b, 196, dtype=torch.int64), _empty(b, 196, dtype=torch.bool)


def logits(
    k: int = 100, dtype: torch.dtype = HALF, b: int = 4096, weighted: bool = False,
    backward: bool = True, **more: Any,
) -> None:  # fmt: skip
    weight = _empty(b, 196) if weighted else None
    z = _empty(b, 196, k, dtype=dtype).requires_grad_(backward)
    loss = ops.masked_cross_entropy(
        z, *_labels(b), token_weight=weight, label_smoothing=0.1, backend="triton", **more
    )
    if backward:
        loss.backward(torch.empty_like(loss))


def linear(
    k: int = 100, d: int = 512, dtype: torch.dtype = HALF, b: int = 4096, weighted: bool = False,
    backward: bool = True, backend: str = "triton", **more: Any,
) -> None:  # fmt: skip
    weight = _empty(b, 196) if weighted else None
    x, w, bias = (
        _empty(*s, dtype=dtype).requires_grad_(backward) for s in ((b, 197, d), (k, d), (k,))
    )
    found = ops.masked_linear_cross_entropy(
        x, w, *_labels(b), linear_bias=bias, token_weight=weight, label_smoothing=0.1,
        num_prefix_tokens=1, backend=backend, **more,
    )  # fmt: skip
    loss = found if isinstance(found, torch.Tensor) else found[0]
    if backward:
        loss.backward(torch.empty_like(loss))


NORM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# (op, what is called, the call)
CALLS: tuple[tuple[str, str, Callable[[], Any]], ...] = (
    ("nearest_centroid", "1M x 768 fp32, K 100", assign),
    ("nearest_centroid", "the same, CUDA C++", partial(assign, backend="cuda")),
    ("nearest_centroid", "with distances", partial(assign, return_distance=True)),
    ("nearest_centroid", "cosine", partial(assign, metric="cosine")),
    ("nearest_centroid", "12.8M x 48 bf16, K 512", partial(assign, 12_800_000, 48, 512, HALF)),
    ("patch_tokens", "5102 images, uint8", partial(tokens, **NORM)),
    ("patch_tokens", "each patch normalised, 64 images", partial(tokens, 64, per_patch_norm=True)),
    ("lloyd_step", "1M x 768 fp32, K 100", lloyd),
    ("lloyd_step", "weighted, dot", partial(lloyd, weighted=True, metric="dot")),
    ("lloyd_step_images", "5102 images, uint8", partial(lloyd_images, **NORM)),
    ("replace_patches", "5102 images, uint8", partial(replace, **NORM)),
    ("masked_cross_entropy", "forward", partial(logits, backward=False)),
    ("masked_cross_entropy", "forward and backward, K 100", logits),
    ("masked_linear_cross_entropy", "forward, K 100", partial(linear, backward=False)),
    ("masked_linear_cross_entropy", "forward and backward, d 512, K 100", linear),
    ("masked_linear_cross_entropy", "the same, CUDA C++", partial(linear, backend="cuda")),
    ("masked_linear_cross_entropy", "the same, K 1000", partial(linear, 1000)),
    ("masked_linear_cross_entropy", "d 768, K 8192, 1024 samples",
     partial(linear, 8192, 768, b=1024)),
)  # fmt: skip


def table() -> str:
    """Markdown: of each call the number of launches, and their names in turn."""
    lines = ["| op | call | launches | of them torch's |", "| --- | --- | ---: | --- |"]
    for op, name, call in CALLS:
        with watched() as seen:
            call()
        own = [x for x in seen.launches if not x.startswith("torch.")]
        torchs = collections.Counter(x[6:] for x in seen.launches if x.startswith("torch."))
        names = ", ".join(f"{n} {x}" if n > 1 else x for x, n in sorted(torchs.items()))
        lines.append(f"| {op} | {name} | {len(own) + torchs.total()} | {names} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
