"""How a run ends early: a signal, or a number that is not finite."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn

from clustermim_fast.ranks import everyone
from clustermim_fast.train.sharding import local

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(SystemExit):
    """Raised after SIGTERM, Ctrl-C or SIGUSR1, once the checkpoint is written; exit code 128 +
    signal (143, 130, 138).
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(128 + signal_number)
        self.message = message

    def __str__(self) -> str:
        return self.message


class NonFiniteError(RuntimeError):
    """The loss or a weight is NaN or infinite; the message says what to look at."""


class NonFiniteBatch(RuntimeError):
    """An update was not made; the message says what in its batch is not finite."""


class StopFlag:
    """The number of the signal that asked this process to stop, 0 so far."""

    signal_number = 0

    def asked(self, device: torch.device) -> Tensor:
        """One number for each of SIGNALS, float64, 1 for the one that came; waits for no device."""
        flags = torch.zeros(len(SIGNALS), dtype=torch.float64, device=device)
        if self.signal_number:
            flags[SIGNALS.index(self.signal_number)].fill_(1.0)
        return flags


def first_asked(flags: Tensor) -> int:
    """The signal that `asked` stands for, summed over ranks; 0: none. Waits for the device."""
    return next((int(s) for s, count in zip(SIGNALS, flags.tolist(), strict=True) if count), 0)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGTERM, Ctrl-C and SIGUSR1 (a scheduler's warning) set a flag that the loop looks at after
    each step; a second Ctrl-C ends at once.

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

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def all_finite(model: nn.Module) -> bool:
    """Whether every parameter and buffer (running statistics of batch norms) is finite; one read
    from the device. All ranks call it.
    """
    values = [*model.parameters(), *model.buffers()]
    bad: list[Tensor] = [(~local(value).isfinite()).any() for value in values]
    return not bool(everyone().total(torch.stack(bad).double().sum()[None]))


def non_finite_message(what: str, step: int, lr: float, amp: bool, last_good: str) -> str:
    """What went wrong, where the last good weights are, and what to look at."""
    advice = [
        f"the learning rate ({lr:.2e} now; try half of optim.blr or a longer optim.warmup_epochs)",
        "optim.clip_grad=1.0",
        "the images (a constant or corrupt set, data.std)",
    ]
    if amp:
        advice.append("efficiency.amp=off, to see whether 16 bits are the cause")
    return (
        f"{what} at step {step}; nothing was written for it. Last good checkpoint: {last_good}. "
        f"Look at: {'; '.join(advice)}: another run, with another out=. Or leave such updates out: "
        "the same command with optim.skip_nonfinite=N goes on from there."
    )
