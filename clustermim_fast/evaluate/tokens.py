"""Frozen tokens of a set of images: what attentive probes pool, from one pass of the network.

Tokens are the raw output of a block: no final norm unless asked for, as the attentive protocol of
"Beyond [cls]" takes them (`features.py` applies it, as MAE's linear probe does).
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .attention import BlockAttention, attention_of_blocks
from .features import Images, normalise

__all__ = ["CACHE_DTYPES", "TokenBatch", "TokenCache", "TokenSource", "cache_tokens"]

CACHE_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of B images: prefix [B, P, D] ([cls] first where has_cls, then registers; P may be
    0), patches [B, L, D] in row-major order of the grid (rows, columns). Where they were asked for:
    attention [B, heads, P + L, P + L] of the block they come from (rows are queries), teacher the
    attention of a teacher's [cls] to its L patches [B, heads, L]."""

    prefix: Tensor
    patches: Tensor
    grid: tuple[int, int]
    has_cls: bool
    attention: Tensor | None = None
    teacher: Tensor | None = None

    def content(self, which: str) -> Tensor:
        """The patches [B, L, D], or with "all" the prefix before them [B, P + L, D]."""
        return torch.cat([self.prefix, self.patches], 1) if which == "all" else self.patches


@dataclass(frozen=True)
class TokenSource:
    """A frozen timm encoder (a ViT, or a CNN whose map positions are the patches) and its view.

    Attributes:
        layer: which of timm's intermediates: a block of a ViT, a stage of a CNN; -1 the last.
        norm: apply the encoder's final norm to them.
        attention: also take the attention of that block.
        teacher: another encoder, whose [cls] says which patches to pool.
    """

    encoder: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    layer: int = -1
    norm: bool = False
    device: str = "cpu"
    attention: bool = False
    teacher: TokenSource | None = None

    def batch(self, images: Tensor) -> TokenBatch:
        """Tokens of uint8 images [B, 3, H, W]; ValueError for a layer that the encoder lacks, or
        images that it does not take."""
        if self.teacher is None:
            return self._tokens(images)
        batch, taught = self._tokens(images), self.teacher._tokens(images)
        if taught.grid != batch.grid or not taught.has_cls:
            raise ValueError(
                f"teacher: expected a ViT with [cls] and {batch.grid[0]} x {batch.grid[1]} patches "
                f"like the encoder, got {taught.grid[0]} x {taught.grid[1]}"
                f"{'' if taught.has_cls else ' and no [cls]'}"
            )
        assert taught.attention is not None
        return replace(batch, teacher=taught.attention[:, :, 0, taught.prefix.shape[1] :])

    def _tokens(self, images: Tensor) -> TokenBatch:
        forward = getattr(self.encoder, "forward_intermediates", None)
        if forward is None:
            raise ValueError(
                f"encoder: expected a timm model with forward_intermediates, got "
                f"{type(self.encoder).__name__}"
            )
        has_prefix = int(getattr(self.encoder, "num_prefix_tokens", 0)) > 0
        more = {"return_prefix_tokens": True} if has_prefix else {}
        seen: list[Tensor] = []
        try:
            with self._watched(seen):
                (found,) = forward(
                    normalise(images.to(self.device), self.mean, self.std),
                    indices=[self.layer],
                    norm=self.norm,
                    output_fmt="NCHW",
                    intermediates_only=True,
                    **more,
                )
        except AssertionError as error:  # timm's way to refuse
            raise ValueError(
                f"layer: {type(self.encoder).__name__} has no layer {self.layer} (-1 is the last) "
                f"for images of {images.shape[2]} x {images.shape[3]} pixels: {error}"
            ) from error
        maps, prefix = found if has_prefix else (found, None)
        patches = maps.flatten(2).mT
        if prefix is None:
            prefix = patches[:, :0]
        has_cls = prefix.shape[1] > 0 and getattr(self.encoder, "cls_token", None) is not None
        grid = (maps.shape[2], maps.shape[3])
        return TokenBatch(prefix, patches, grid, has_cls, seen[0] if seen else None)

    def _watched(self, seen: list[Tensor]) -> AbstractContextManager[None]:
        if not self.attention:
            return nullcontext()
        blocks = len(getattr(self.encoder, "blocks", ()))

        def visit(number: int, block: BlockAttention) -> None:
            if number == self.layer % blocks:
                seen.append(block.weights)

        return attention_of_blocks(self.encoder, visit)

    @torch.no_grad()
    def batches(
        self, images: Images, *, batch_size: int = 256, title: str | None = None
    ) -> Iterator[tuple[slice, TokenBatch]]:
        """Each image of the set once, in order: (its rows, their tokens)."""
        if len(images) == 0:
            raise ValueError("images: expected at least one image, got none")
        modes = [(module, module.training) for module in self.encoder.modules()]
        self.encoder.eval().to(self.device)
        if self.teacher is not None:
            self.teacher.encoder.eval().to(self.teacher.device)
        try:
            starts = range(0, len(images), batch_size)
            for start in tqdm(starts, title, disable=title is None, leave=False):
                rows = slice(start, min(start + batch_size, len(images)))
                yield rows, self.batch(images.images(torch.arange(rows.start, rows.stop)))
        finally:
            for module, training in modes:
                module.training = training


@dataclass(frozen=True)
class TokenCache:
    """What one pass over N images kept.

    Attributes:
        tokens: [N, P + L, D] in the cache's dtype on the CPU, or None where no pooling learns.
        rows: by name of a fixed pooling, float32 [N, D].
        grid: rows and columns of the L patches.
        num_prefix_tokens: P; 0 where prefix tokens were not kept.
        dim: D.
    """

    tokens: Tensor | None
    rows: Mapping[str, Tensor]
    grid: tuple[int, int]
    num_prefix_tokens: int
    dim: int


def cache_tokens(
    source: TokenSource,
    images: Images,
    fixed: Mapping[str, Callable[[TokenBatch], Tensor]],
    *,
    content: str = "patch",
    dtype: str = "float16",
    memory_gib: float = 8.0,
    on_disk: bool = False,
    folder: Path | None = None,
    batch_size: int = 256,
    title: str | None = None,
) -> TokenCache:
    """Run the encoder once over the images and keep their tokens.

    Args:
        fixed: poolings without parameters by name, from `TokenBatch` to [B, D].
        content: "patch", "all" (prefix tokens too), or "none": only the rows of ``fixed``.
        dtype: of the cached tokens: "float16" (relative error 2^-11), "bfloat16" or "float32".
        memory_gib: the most that the tokens may take, where they are in memory.
        on_disk: keep them in a file in ``folder`` (the system's for temporary files where None),
            mapped into memory: slower, and bounded by the disk. The file has no name any more
            while it is used, so that its space is free again however the process ends.

    Raises:
        ValueError: more than ``memory_gib`` or than the disk has (both after the first batch),
            or tokens that the dtype cannot hold; each with its remedy.
    """
    if dtype not in CACHE_DTYPES:
        raise ValueError(f"cache_dtype: expected one of {', '.join(CACHE_DTYPES)}, got {dtype!r}")
    tokens: Tensor | None = None
    rows: dict[str, Tensor] = {}
    for where, batch in source.batches(images, batch_size=batch_size, title=title):
        found = batch.content(content)
        if where.start == 0:
            shape = (len(images), *found.shape[1:])
            if content != "none":
                kind = CACHE_DTYPES[dtype]
                tokens = (
                    _mapped(shape, kind, folder) if on_disk else _in_memory(shape, kind, memory_gib)
                )
            rows = {name: torch.empty(shape[0], shape[2]) for name in fixed}
        if tokens is not None:
            tokens[where] = found
            if not tokens[where].isfinite().all():
                raise ValueError(
                    f"tokens: values up to {float(found.abs().max()):.3g} do not fit "
                    f"{dtype}; use cache_dtype=float32, or norm=yes"
                )
        for name, pool in fixed.items():
            rows[name][where] = pool(batch)
    prefix = found.shape[1] - batch.patches.shape[1]
    return TokenCache(tokens, rows, batch.grid, prefix, found.shape[2])


def _need(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, str]:
    size = math.prod(shape) * dtype.itemsize
    what = f"{shape[0]:,} images x {shape[1]} tokens x {shape[2]} channels"
    return size, f"tokens: {what} need {size / 1024**3:.1f} GiB"


def _in_memory(shape: tuple[int, ...], dtype: torch.dtype, memory_gib: float) -> Tensor:
    size, need = _need(shape, dtype)
    if size > memory_gib * 1024**3:
        raise ValueError(
            f"{need} of memory, more than memory_gib={memory_gib:g}; raise it, or on_disk=yes, or "
            "use fewer training images (shots=10%)"
        )
    return torch.empty(shape, dtype=dtype)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    size, need = _need(shape, dtype)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="tokens_", dir=folder) as file:
        free = shutil.disk_usage(file.name).free
        if size > free:
            raise ValueError(
                f"{need} in {Path(file.name).parent}, which has {free / 1024**3:.1f} GiB free; use "
                "fewer training images (shots=10%)"
            )
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later must not kill the process
            os.posix_fallocate(file.fileno(), 0, size)
        whole = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype)
    return whole.view(shape)
