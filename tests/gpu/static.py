"""Compiles what a function launches, for a GPU that is not there, and tabulates the machine code.

::

    with static.offline(90) as rows:
        ops.nearest_centroid(x, centroids, backend="triton")  # CPU tensors: compiled, not run
    print(static.table(rows))

Every launch is specialised as in real use (alignment, strides, integers equal to 1). Needs triton
alone: no GPU, driver or toolkit. TRITON_INTERPRET must not be set. What the functions return is
uninitialised memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from clustermim_fast.ops import _triton
from tests.gpu import sass

# capability -> shared bytes of a block, of an SM; warps of an SM; SMs of its best-known GPU
LIMITS = {
    80: (166_912, 167_936, 64, 108),
    90: (232_448, 233_472, 64, 132),
    100: (232_448, 233_472, 64, 148),
}
REGISTERS = 65_536


@dataclasses.dataclass
class Row:
    kernel: str
    arch: int
    num_warps: int
    num_stages: int
    constants: dict[str, Any]
    grid: tuple[int, ...] = ()
    regs: int = 0
    spill: int = 0
    stack: int = 0
    smem: int = 0
    smem_fits: bool = True
    ctas_per_sm: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    loops: list[dict[str, int]] = dataclasses.field(default_factory=list)

    def read(self, cubin: bytes, shared: int, num_warps: int) -> None:
        """Fill the row from the compiler's output."""
        self.num_warps = num_warps  # warp specialisation adds some
        usage = sass.resource_usage(cubin)
        self.regs, self.stack, self.smem = usage["REG"], usage["STACK"], shared
        per_block, per_sm, warps, _ = LIMITS[self.arch]
        self.smem_fits = shared <= per_block
        # A warp's registers come in units of 256; each block costs 1 KiB of shared memory more.
        warp_registers = -(-max(self.regs, 1) * 32 // 256) * 256
        by_registers = REGISTERS // (num_warps * warp_registers)
        fitting = min(by_registers, per_sm // (shared + 1024), warps // num_warps, 32)
        self.ctas_per_sm = fitting if self.smem_fits else 0
        code = sass.instructions(cubin)
        self.counts, self.loops = sass.count(code), sass.loop_counts(code)
        self.spill = sass.spilled_bytes(code)

    @property
    def clean(self) -> bool:
        """Nothing in local memory, and a block fits."""
        return self.spill == 0 and self.stack == 0 and self.smem_fits and self.ctas_per_sm > 0


class _OfflineDriver(DriverBase):
    """Stands in for a GPU of one capability: kernels are compiled, recorded and not run."""

    def __init__(self, arch: int, rows: list[Row]) -> None:
        self.arch = arch
        pending: list[tuple[Row, Any]] = []  # the launch whose machine code comes next

        def launcher(source: Any, metadata: Any) -> Any:
            names = source.fn.arg_names
            constants = {names[at[0]]: v for at, v in source.constants.items() if len(at) == 1}
            name = source.fn.__name__
            row = Row(name, arch, metadata.num_warps, metadata.num_stages, constants)
            pending[:] = [(row, metadata)]

            def launch(x: int, y: int, z: int, *_: Any) -> None:
                row.grid = row.grid or (x, y, z)

            return launch

        def load_binary(name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
            row, metadata = pending[0]
            row.read(binary, metadata.shared, metadata.num_warps)
            rows.append(row)
            return 1, 1, row.regs, row.stack, 1024

        found = {
            "max_shared_mem": LIMITS[arch][0],
            "multiprocessor_count": LIMITS[arch][3],
            "warpSize": 32,
            "max_num_regs": REGISTERS,
        }
        self.launcher_cls = launcher
        self.utils = types.SimpleNamespace(
            get_device_properties=lambda device: found,
            load_binary=load_binary,
            unload_module=lambda module: None,
        )

    @classmethod
    def is_active(cls) -> bool:
        return False

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # a kernel keeps one cache for each device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        raise RuntimeError("there is no device here")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing can be timed here")


@contextlib.contextmanager
def offline(arch: int) -> Iterator[list[Row]]:
    """Launches inside compile for ``arch`` and append a Row each time a kernel is new."""
    if _triton.interpreted():
        raise RuntimeError("TRITON_INTERPRET is set: nothing would be compiled")
    rows: list[Row] = []
    shared, _, _, multiprocessors = LIMITS[arch]
    device = _triton.Device(f"sm_{arch}", arch, multiprocessors, shared)
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(_OfflineDriver(arch, rows))
    try:
        # Nothing is written, and torch may take what would have been for indices.
        zeros = mock.patch.object(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
        with _triton.stand_in(device), zeros:
            yield rows
    finally:
        triton.runtime.driver._active = before


def table(rows: Sequence[Row]) -> str:
    """A line for each row: kernel, target, constants that vary, resources and counts."""
    head = ["kernel", "arch", "constants", "warps", "stages", "regs", "spill", "stack", "smem KiB"]
    head += ["ctas/SM", *sass.COUNTS]
    lines = [head]
    for r in rows:
        constants = ", ".join(f"{k}={v}" for k, v in r.constants.items() if v not in (None, ""))
        numbers = [r.num_warps, r.num_stages, r.regs, r.spill, r.stack]
        smem = f"{r.smem / 1024:.1f}{'' if r.smem_fits else '!'}"
        line = [r.kernel, f"sm_{r.arch}", constants, *map(str, numbers), smem, str(r.ctas_per_sm)]
        lines.append(line + [str(r.counts[c]) for c in sass.COUNTS])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = [True] * 3 + [False] * (len(head) - 3)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_text else cell.rjust(width)
            for cell, width, is_text in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )
