"""How a run ends early: a signal, or a number that is not finite."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn


class Interrupted(SystemExit):
    """Raised after SIGTERM or Ctrl-C, once the checkpoint is written; exit code 128 + signal (143,
    130).
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(128 + signal_number)
        self.message = message

    def __str__(self) -> str:
        return self.message


class NonFiniteError(RuntimeError):
    """The loss or a weight is NaN or infinite; the message says what to look at."""


class StopFlag:
    """The number of the signal that asked to stop, 0 so far."""

    signal_number = 0


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGTERM and Ctrl-C set a flag that the loop looks at after each step; a second Ctrl-C ends
    at once.

    Outside the main thread, where Python takes no signals, the flag stays 0.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if flag.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signal_number = number

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def all_finite(model: nn.Module) -> bool:
    """Whether every parameter is finite; one read from the device."""
    flags: list[Tensor] = [parameter.isfinite().all() for parameter in model.parameters()]
    return bool(torch.stack(flags).all())


def non_finite_message(what: str, step: int, lr: float, amp: bool, last_good: str) -> str:
    """What went wrong, where the last good weights are, and what to look at."""
    advice = [
        f"the learning rate ({lr:.2e} now; try half of optim.blr or a longer optim.warmup_epochs)",
        "optim.clip_grad=1.0",
        "the images (a constant or corrupt set, data.std)",
    ]
    if amp:
        advice.append("efficiency.amp=off, to see whether bfloat16 is the cause")
    return (
        f"{what} at step {step}; nothing was written for it. Last good checkpoint: {last_good}. "
        f"Look at: {'; '.join(advice)}."
    )
