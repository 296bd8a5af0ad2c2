"""Triton's interpreter, strict: what a GPU would forgive or hide is an error here.

Set TRITON_INTERPRET=1 before anything imports triton, then::

    with strict.checked() as seen:
        kernel[grid](...)          # CPU tensors
    assert seen.load_bytes == ...

Every address must lie inside a tensor handed to the kernel; a masked-off lane of a load without
``other=`` reads NaN or 0x5a...; ``tl.device_assert`` works; integer arithmetic that overflows
raises; programs run in a shuffled order; no program may load or overwrite what another one stored
(plain stores), nor, without a barrier, what it stored itself, nor add to floats atomically. Bytes
are as requested, before any cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.gpu import strict_numbers
from tests.gpu.strict_numbers import Builder, Handle
from tests.gpu.strict_races import KernelMemoryError, Races


class TooLongToInterpret(Exception):
    """The case has more memory operations than ``checked(most_operations=...)`` allows."""


@dataclasses.dataclass
class Seen:
    load_bytes: int = 0
    store_bytes: int = 0
    atomic_bytes: int = 0
    dot_flops: int = 0
    programs: int = 0
    operations: int = 0  # loads, stores and atomics of blocks
    loaded: dict[int, int] = dataclasses.field(default_factory=dict)  # bytes by data_ptr

    def bytes_of(self, tensor: Any) -> int:
        """Bytes loaded from ``tensor``."""
        return self.loaded.get(tensor.data_ptr(), 0)


class _State:
    def __init__(self) -> None:
        self.seen = Seen()
        self.on = self.races = False
        self.most_operations = 0
        self.order: random.Random | None = None
        self.begin([])

    def begin(self, extents: list[tuple[int, int]]) -> None:
        """A launch begins, with these (first byte, end) of its tensors."""
        merged: list[list[int]] = []
        for begin, end in sorted(set(extents)):
            if merged and begin < merged[-1][1]:  # two views of the same memory
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([begin, end])
        self.starts = np.array([e[0] for e in merged], dtype=np.uint64)
        self.ends = np.array([e[1] for e in merged], dtype=np.uint64)
        self.accesses = Races()
        self.permutation: list[int] = []

    def locate(self, what: str, pointers: Any, mask: np.ndarray) -> tuple[Any, Any, int]:
        """(addresses under the mask, extent of each, item size), all inside an argument."""
        self.seen.operations += 1
        if self.seen.operations > self.most_operations > 0:
            raise TooLongToInterpret
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        data, mask = np.broadcast_arrays(pointers.data, mask)
        at = data[mask].astype(np.uint64)
        if not at.size:
            return at, at, size
        if not len(self.starts):
            raise KernelMemoryError(f"{what}: the kernel was given no tensor")
        where = np.searchsorted(self.starts, at, side="right").astype(np.int64) - 1
        bad = (where < 0) | (at + np.uint64(size) > self.ends[where]) | (at % np.uint64(size) != 0)
        if bad.any():
            i = int(np.argmax(bad))
            n = max(int(where[i]), 0)
            offset, length = int(at[i]) - int(self.starts[n]), int(self.ends[n] - self.starts[n])
            program, wrong = self.accesses.program, int(bad.sum())
            raise KernelMemoryError(
                f"{what} by program {program}: {wrong} of {at.size} addresses "
                f"outside every argument or misaligned; the first is {offset} bytes into an "
                f"argument of {length} bytes"
            )
        return at, where, size

    def touch(self, what: str, pointers: Any, at: Any, where: Any, size: int) -> list[Any]:
        """A plain load or store of addresses that ``locate`` returned: (extent, places in it)."""
        block = hash((pointers.data.shape, pointers.data.tobytes())) | 1
        touched = []
        for extent in map(int, np.unique(where)):
            start, end = self.starts[extent], self.ends[extent]
            places = (at[where == extent] - start).astype(np.int64)
            self.accesses.touch(what, extent, int(end - start), places, size, block)
            touched.append((extent, places))
        return touched


_state = _State()


def _extents(argument: Any) -> list[tuple[int, int]]:
    if isinstance(argument, (tuple, list)):
        return [extent for a in argument for extent in _extents(a)]
    if isinstance(argument, (TensorDescriptor, triton.runtime.jit.TensorWrapper)):
        return _extents(argument.base)
    if not (hasattr(argument, "data_ptr") and hasattr(argument, "stride")):
        return []
    begin, span = argument.data_ptr(), 0
    if argument.numel():
        span = 1 + sum((n - 1) * s for n, s in zip(argument.shape, argument.stride(), strict=True))
    return [(begin, begin + span * argument.element_size())]


def _poison(pointers: Any) -> Any:
    scalar = pointers.get_element_ty()
    kind = interpreter._get_np_dtype(scalar)
    value: Any = int.from_bytes(b"\x5a" * kind.itemsize, "little")
    if scalar == tl.bfloat16:
        value = 0x7FC0
    elif scalar.is_floating() and np.issubdtype(kind, np.floating):
        value = np.nan
    elif kind == np.bool_:
        value = True
    return Handle(np.full(pointers.data.shape, value, dtype=kind), scalar)


def _install_memory() -> None:
    run, init_args = interpreter.GridExecutor.__call__, interpreter.GridExecutor._init_args_hst
    set_index = Builder.set_grid_idx
    load, store = Builder.create_masked_load, Builder.create_masked_store
    rmw, cas = Builder.create_atomic_rmw, Builder.create_atomic_cas

    def init_args_hst(self: Any, args_dev: Any, kwargs: Any) -> Any:
        args, kwargs = init_args(self, args_dev, kwargs)
        _state.begin([e for a in [*args, *kwargs.values()] for e in _extents(a)])
        return args, kwargs

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        nx, ny, nz = self.grid_dim
        n = (x * ny + y) * nz + z
        if _state.order is not None:
            if n == 0:
                _state.permutation = _state.order.sample(range(nx * ny * nz), nx * ny * nz)
            n = _state.permutation[n]
        _state.accesses.program = n
        _state.accesses.barrier()
        _state.seen.programs += 1
        set_index(self, n // (ny * nz), n // nz % ny, n % nz)

    def create_masked_load(
        self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **kw: Any
    ) -> Any:
        if _state.on:
            at, where, size = _state.locate("load", pointers, mask.data)
            _state.seen.load_bytes += at.size * size
            for n, count in zip(*np.unique(where, return_counts=True), strict=True):
                start = int(_state.starts[int(n)])
                _state.seen.loaded[start] = _state.seen.loaded.get(start, 0) + int(count) * size
            if other is None and not mask.data.all():
                other = _poison(pointers)
        value = load(self, pointers, mask, other, *rest, **kw)
        if _state.on and _state.races and at.size:
            value.loaded_from = _state.touch("load", pointers, at, where, size)
        return value

    def create_masked_store(
        self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **kw: Any
    ) -> Any:
        if _state.on:
            at, where, size = _state.locate("store", pointers, mask.data)
            _state.seen.store_bytes += at.size * size
            if _state.races and at.size:
                _state.touch("store", pointers, at, where, size)
        return store(self, pointers, value, mask, *rest, **kw)

    def create_atomic_rmw(self: Any, op: Any, pointer: Any, value: Any, mask: Any, *r: Any) -> Any:
        if _state.on:
            at, _, size = _state.locate("atomic", pointer, mask.data)
            _state.seen.atomic_bytes += at.size * size
            if op == ir.ATOMIC_OP.FADD:
                raise KernelMemoryError("an atomic sum of floats: the order of programs shows")
        return rmw(self, op, pointer, value, mask, *r)

    def create_atomic_cas(self: Any, pointer: Any, *rest: Any) -> Any:
        if _state.on:
            everything = np.ones_like(pointer.data, dtype=bool)
            at, _, size = _state.locate("atomic", pointer, everything)
            _state.seen.atomic_bytes += at.size * size
        return cas(self, pointer, *rest)

    def create_barrier(self: Any) -> None:
        _state.accesses.barrier()

    def quietly(self: Any, *args: Any, **kwargs: Any) -> None:
        with np.errstate(all="ignore"):  # a GPU says nothing of inf - inf either
            run(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = quietly
    interpreter.GridExecutor._init_args_hst = init_args_hst
    Builder.set_grid_idx = set_grid_idx
    Builder.create_masked_load = create_masked_load
    Builder.create_masked_store = create_masked_store
    Builder.create_atomic_rmw = create_atomic_rmw
    Builder.create_atomic_cas = create_atomic_cas
    Builder.create_barrier = create_barrier


def _patch_once() -> None:
    """A launch patches triton.language for all functions that its kernel calls; each of them would
    do so again, which took most of the time."""
    patch = interpreter._patch_lang

    def patch_lang(fn: Any) -> Any:
        scopes = patch(tl.zeros.fn), patch(fn)  # the library's own functions, too
        restore = [scope.restore for scope in reversed(scopes)]
        return types.SimpleNamespace(restore=lambda: [r() for r in restore])

    interpreter._patch_lang = patch_lang
    interpreter.InterpretedFunction.__call__ = lambda self, *a, **kw: self.rewrite()(*a, **kw)


def _on_dot(flops: int, *operands: Any) -> None:
    _state.seen.dot_flops += flops
    for extent, places in (at for o in operands for at in getattr(o, "loaded_from", ())):
        _state.accesses.multiply(extent, places)


def install() -> None:
    """Repair the interpreter; harmless to call twice."""
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before importing triton")
    if not hasattr(Builder, "strict"):
        Builder.strict = True
        strict_numbers.install(_on_dot)
        _install_memory()
        _patch_once()


@contextlib.contextmanager
def checked(races: bool = True, most_operations: int = 0, seed: int = 0) -> Iterator[Seen]:
    """Check every kernel launched inside; yields the counts.

    ``most_operations``: raise TooLongToInterpret after so many block operations (0: never).
    """
    install()
    builder = interpreter.interpreter_builder
    options = builder.options
    builder.options = dataclasses.replace(options, debug=True)
    _state.seen = Seen()
    _state.on, _state.races, _state.most_operations = True, races, most_operations
    _state.order = random.Random(seed)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # infinity and NaN are results here
            yield _state.seen
    finally:
        builder.options = options
        _state.on = _state.races = False
        _state.order = None
