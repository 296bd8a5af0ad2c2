"""What `clustermim bench` measures on: made-up rows, or a user's own .npy files."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LLOYD_ROWS = 64  # rows a centroid for the centroids that nobody gave


def require_count(name: str, value: int | None) -> None:
    """ValueError unless ``value`` is None or an int >= 1."""
    if value is not None and value < 1:
        raise ValueError(f"{name}: expected an int >= 1, got {value}")


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """ValueError that names the near misses unless ``value`` is one of ``choices``."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"expected {', '.join(choices)}"
        raise ValueError(f"{name}: unknown {value!r}; {hint}")


def require_writable(name: str, path: str | None) -> None:
    """ValueError where ``path`` cannot become a file: told before minutes of measuring."""
    if path and not Path(path).absolute().parent.is_dir():
        folder = Path(path).absolute().parent
        raise ValueError(f"{name}: no folder {str(folder)!r}; make it, or name another file")


def read_rows(name: str, path: str, dtype: torch.dtype | None) -> torch.Tensor:
    """A .npy array [N, D] of finite numbers as a tensor of ``dtype`` (None: its own floating one).

    Raises ValueError, naming the remedy, for anything else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{name}: no such file {path!r}; expected a .npy array [N, D]")
    try:
        array: Any = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        remedy = "save plain numbers with numpy.save"
        raise ValueError(
            f"{name}: {path!r} is no readable .npy array ({error}); {remedy}"
        ) from None
    if not isinstance(array, np.ndarray):
        remedy = "save the one array with numpy.save"
        raise ValueError(f"{name}: {path!r} holds several arrays (.npz); {remedy}")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: {path!r} holds {array.dtype}; convert it to float32 first")
    if array.ndim != 2 or 0 in array.shape:
        remedy = "reshape it, e.g. array.reshape(-1, D)"
        raise ValueError(f"{name}: expected [N, D] without empty axes, got {array.shape}; {remedy}")
    if array.dtype.type not in (np.float16, np.float32, np.float64):
        array = array.astype(np.float32)
    rows = torch.from_numpy(np.array(array, order="C"))
    rows = rows if dtype is None else rows.to(dtype)
    bad = (~torch.isfinite(rows).all(1)).nonzero()[:, 0]
    if len(bad):
        remedy = "leave those rows out; the peers refuse them, nearest_centroid gives them id -1"
        raise ValueError(f"{name}: row {int(bad[0])} holds NaN or infinity; {remedy}")
    return rows


def make_rows(n: int, d: int, k: int, seed: int) -> torch.Tensor:
    """float32 [n, d]: normal noise around ``k`` normal centres, as overlapping as real clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.5 * torch.randn(k, d, generator=generator)
    owner = torch.randint(0, k, (n,), generator=generator)
    return torch.randn(n, d, generator=generator).add_(centres[owner])


def make_centroids(x: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """float32 [k, D]: three Lloyd iterations from random rows, on a sample."""
    from clustermim_fast import ops

    generator = torch.Generator().manual_seed(seed)
    sample = x[torch.randperm(len(x), generator=generator)[: k * LLOYD_ROWS]].float()
    centroids = sample[:k].clone()
    for _ in range(3):
        _, sums, counts, _ = ops.lloyd_step(sample, centroids)
        means = (sums / counts.clamp(min=1)[:, None]).float()
        centroids = torch.where(counts[:, None] > 0, means, centroids)
    return centroids


def read_or_make(
    n: int | None, d: int | None, k: int | None, dtype: str, file: str, centroids: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Rows [N, D] and centroids [K, D] of one dtype, and where they come from in words.

    ``dtype`` "" is the file's own, else float32.
    """
    for name, value in (("n", n), ("d", d), ("k", k)):
        require_count(name, value)
    if dtype:
        require_choice("dtype", dtype, DTYPES)
    wanted = DTYPES[dtype] if dtype else None
    given = read_rows("centroids", centroids, None) if centroids else None
    if given is not None and k is not None and k != len(given):
        raise ValueError(f"k: {centroids!r} holds {len(given)} centroids, got k={k}; leave k= out")
    if file:
        x = read_rows("file", file, wanted)
        if d is not None and d != x.shape[1]:
            raise ValueError(f"d: {file!r} has D = {x.shape[1]}, got d={d}; leave d= out")
        if n is not None and n > len(x):
            raise ValueError(f"n: {file!r} has {len(x)} rows, got n={n}; leave n= out for all")
        x = x[: n or len(x)]
        source = f"rows of {file}"
    else:
        d = d or (768 if given is None else given.shape[1])
        x = make_rows(n or 20_000, d, k or (1000 if given is None else len(given)), seed)
        x = x.to(wanted or torch.float32)
        source = "made-up rows (normal clusters)"
    if given is not None and given.shape[1] != x.shape[1]:
        raise ValueError(
            f"centroids: {centroids!r} has D = {given.shape[1]}, the rows have D = {x.shape[1]}; "
            "give the file that the centroids were fitted on"
        )
    if given is not None:
        return x, given.to(x.dtype), f"{source}, centroids of {centroids}"
    k = k or min(1000, len(x))
    if k > len(x):
        raise ValueError(f"k: {k} centroids need as many rows, got n={len(x)}; or give centroids=")
    return x, make_centroids(x, k, seed).to(x.dtype), f"{source}, centroids from 3 Lloyd iterations"
