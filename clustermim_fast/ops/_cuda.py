"""Where the kernels in CUDA C++ may run, and how they are launched (docs/cuda.md)."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clustermim_fast.ops import _nvrtc, _triton

ARCH = "sm_90"  # the machine code is for sm_90a, which no other GPU runs


def unavailable_reason(device: torch.device) -> str | None:
    """None where the kernels can run on tensors of ``device``, else the reason why not."""
    from clustermim_fast.ops import _backend

    if device.type != "cuda":
        return f"it needs CUDA tensors, got {device}"
    missing = _backend.core_unavailable_reason() or _backend.core().gpu_problem()
    if missing:
        return str(missing)
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    found = _triton.properties(device)
    if found.arch != ARCH:
        return f"it needs compute capability 9.0, {device} is {found.arch}"
    # Triton's kernels decide what the filter leaves open, and list and sum for the linear loss.
    return _nvrtc.unavailable_reason() or _triton.unavailable_reason(device)


@dataclass(frozen=True)
class Kernel:
    """The ``extern "C" __global__`` function ``name`` of ``source``, which is a file of
    ``kernels/``, compiled with ``defines``; its blocks and clusters."""

    source: str
    name: str
    defines: tuple[tuple[str, int | str], ...] = ()
    threads: int = 128
    cluster: int = 1
    shared_bytes: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's, besides those of every kernel."""
        return tuple(f"-D{name}={value}" for name, value in self.defines)

    def launch(self, device: torch.device, blocks: int, arguments: Sequence[bytes]) -> None:
        """Run it on torch's current stream of ``device``, which must be the current device.

        ``arguments`` in the order of the function's, each as its bytes: :func:`address`,
        :func:`int32`, :func:`float32`, :func:`tensor_map`. Their memory must stay until the stream
        is done with it, which torch's allocator takes care of for tensors of this stream.
        """
        from clustermim_fast.ops import _backend

        index = torch.cuda.current_device() if device.index is None else device.index
        _backend.core().launch_gpu_kernel(
            kernel=_loaded(self, index),
            grid=(blocks, 1, 1),
            block=(self.threads, 1, 1),
            cluster=(self.cluster, 1, 1),
            shared_bytes=self.shared_bytes,
            stream=torch.cuda.current_stream(device).cuda_stream,
            device=index,
            arguments=arguments,
        )


@functools.cache
def _loaded(kernel: Kernel, device: int) -> int:
    """The driver's handle, on the device that is current."""
    from clustermim_fast.ops import _backend

    return int(
        _backend.core().load_gpu_kernel(
            cubin=_nvrtc.cubin(kernel.source, kernel.options),
            name=kernel.name,
            shared_bytes=kernel.shared_bytes,
            device=device,
        )
    )


def address(tensor: torch.Tensor) -> bytes:
    """A pointer argument."""
    return struct.pack("<Q", tensor.data_ptr())


def int32(value: int) -> bytes:
    """An ``int`` argument."""
    return struct.pack("<i", value)


def float32(value: float) -> bytes:
    """A ``float`` argument."""
    return struct.pack("<f", value)


def tensor_map(tensor: torch.Tensor, box: Sequence[int], swizzle: int) -> bytes:
    """A ``const __grid_constant__`` argument by which TMA copies boxes of ``tensor``, whose last
    dimension is dense; ``box`` in the order of the shape, ``swizzle`` in bytes (0: none)."""
    from clustermim_fast.ops import _backend

    if tensor.stride(-1) != 1:
        raise ValueError(f"tensor_map: strides must end with 1, got {tuple(tensor.stride())}")
    return bytes(
        _backend.core().encode_tensor_map(
            address=tensor.data_ptr(),
            dtype=_backend.DTYPE_CODES[tensor.dtype],
            sizes=tensor.shape[::-1],
            strides=tensor.stride()[-2::-1],
            box=box[::-1],
            swizzle=swizzle,
        )
    )
