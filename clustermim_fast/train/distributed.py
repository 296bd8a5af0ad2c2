"""The ranks of a run under torchrun: their start and end, and the model as all of them train it."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from clustermim_fast.ranks import everyone

# For others until the first update, and while rank 0 looks at features or writes.
PATIENCE = timedelta(hours=1)
# In an update, where all have the same to do. A machine or a cable that is lost sends no word.
STEP_PATIENCE = timedelta(minutes=10)
_FAILURE = "clustermim_fast/failure"  # a key of the store in which ranks find one another
# Its name before torch 2.15, where using that warns.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


@contextlib.contextmanager
def process_group(device_name: str) -> Iterator[None]:
    """Join the other processes that torchrun started, until the block ends: gloo on CPUs, NCCL on
    CUDA, where a rank has the device of its LOCAL_RANK. Nothing to do for one process, or inside a
    group that exists.

    Raises:
        ValueError: WORLD_SIZE says several processes and nothing says how they meet.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1" or torch.distributed.is_initialized():
        yield
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {world}, and {', '.join(missing)} not set: start with `torchrun "
            "--nproc-per-node N -m clustermim_fast pretrain ...`, or unset WORLD_SIZE"
        )
    device = choose_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before NCCL takes one
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        with _naming_who_failed():
            yield
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _naming_who_failed() -> Iterator[None]:
    """A rank that fails leaves its reason to torchrun and to the others, before they lose their
    connection to it.
    """
    try:
        yield
    except Exception as error:
        text, here, reason = str(error), everyone(), ""
        store = torch.distributed.distributed_c10d._get_default_store()
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in text
        # The store may be gone too: without torchrun it is rank 0's.
        with contextlib.suppress(RuntimeError):
            if not lost:
                _leave_to_torchrun(error)
                store.set(_FAILURE, f"rank {here.rank} of {here.count} failed: {text}")
            elif "timed out" not in text.lower() and store.check([_FAILURE]):
                reason = store.get(_FAILURE).decode()
        if not lost:
            raise
        # Without gloo's place in its source.
        what = re.sub(r"^\[.*?\] ", "", text.partition(". ")[0])
        unknown = f"no answer of another rank, killed or out of reach: {what}"
        raise RuntimeError(f"{reason or unknown}. This rank ends with it") from error


def _leave_to_torchrun(error: Exception) -> None:
    """What its summary of the job shows of this rank."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def wait_at_most(limit: timedelta) -> None:
    """For the other ranks in whatever comes next, before that is an error."""
    if everyone().count > 1:
        set_timeout = getattr(torch.distributed, "set_timeout", None)
        # Its name before torch 2.15, where using that warns.
        (set_timeout or torch.distributed.distributed_c10d._set_pg_timeout)(limit)


@contextlib.contextmanager
def while_rank_0_works() -> Iterator[None]:
    """Around what others have no part in: they wait for its end."""
    wait_at_most(PATIENCE)
    yield
    everyone().total(torch.zeros(1))
    wait_at_most(STEP_PATIENCE)


def require_one_process(what: str) -> None:
    """Refuse to do as one of several what each would do, and write, alone."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ValueError(
            f"{what} runs in one process, and WORLD_SIZE is {world}: start it without torchrun"
        )


def choose_device(name: str) -> torch.device:
    """The device of efficiency.device, of several ranks on a machine each its own; ValueError where
    it is none, or CUDA is asked for and there is none.
    """
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f'efficiency.device: expected "auto", "cpu", "cuda" or "cuda:N", got {name!r}'
        ) from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ValueError(
            "efficiency.device: expected a device of this machine, got 'cuda' without CUDA"
        )
    if not several:
        return device
    if ":" in name:
        raise ValueError(
            f"efficiency.device: each rank takes its own device; expected cuda, got {name!r}"
        )
    rank, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= there:
        raise ValueError(
            f"this machine has {there} CUDA devices and at least {rank + 1} ranks; give torchrun "
            f"--nproc-per-node {there}"
        )
    return torch.device("cuda", rank)


def share_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """With several ranks on CUDA, batch norms that see the batch of all of them."""
    if everyone().count > 1 and device.type == "cuda" and has_batch_norm(model):
        return convert_sync_batchnorm(model)
    return model


def has_batch_norm(model: nn.Module) -> bool:
    """Whether an image's features depend on its batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def wrap(module: nn.Module, device: torch.device) -> Any:
    """`module`, whose gradients are the mean over the ranks after a backward pass."""
    if everyone().count == 1:
        return module
    # Only batch norms change buffers, and rank 0's are everyone's.
    options: Any = {_SYNC_BUFFERS: has_batch_norm(module)}
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        # The same parameters in every step: no search for those without a gradient.
        static_graph=True,
        gradient_as_bucket_view=True,
        **options,
    )


def synchronised(wrapped: Any, send: bool) -> contextlib.AbstractContextManager[Any]:
    """Around one forward and backward pass: the sums of gradients so far are sent, or wait."""
    if isinstance(wrapped, DistributedDataParallel) and not send:
        return wrapped.no_sync()
    return contextlib.nullcontext()
