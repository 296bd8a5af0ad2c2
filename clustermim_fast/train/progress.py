"""`Progress`: what a run says while it goes on, and its metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustermim_fast.train.batches import Plan
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.log import MetricsFile, format_seconds, progress_line
from clustermim_fast.train.trackers import Notes, open_trackers

SILENCE_S = 10.0  # after which a slow machine says that it lives
WAIT_PCT = 10.0  # of the time; above it there is advice


class Progress:
    """Lines for a person, metrics.jsonl, and the trackers that are asked for.

    Args:
        config: of the run; its folder exists.
        plan: how many steps there are.
        first_step: finished steps when this process took over.
        say: takes the lines.
        advice: said once, where the run waits for its data for more than WAIT_PCT of an interval;
            the first one, in which readers start, does not count.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        first_step: int,
        say: Callable[[str], None],
        advice: str = "",
    ) -> None:
        self.plan, self.first_step, self.say = plan, first_step, say
        self._advice, self._lines = advice, 0
        self._every = config.log.interval(plan.total_steps)
        self._trackers = open_trackers(config, first_step)
        self._file = MetricsFile(Path(config.out) / "metrics.jsonl", first_step)
        self._started = self._last_line = time.perf_counter()

    def write(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl and the line of it."""
        self._file.write(row)
        for tracker in self._trackers:
            tracker.log_numbers(
                {f"train/{name}": value for name, value in row.items()}, row["step"]
            )
        self.say(progress_line(row, self.plan, self._remaining_s(row["step"])))
        self._lines += 1
        if self._advice and self._lines > 1 and row["data_wait_pct"] > WAIT_PCT:
            share = f"{row['data_wait_pct']:.0f} %"
            self.say(f"the network waits for images {share} of the time: {self._advice}")
            self._advice = ""
        self._last_line = time.perf_counter()

    def note(self, step: int, notes: Notes | None) -> None:
        """What was seen after an epoch, for the trackers."""
        if notes is None:
            return
        for tracker in self._trackers:
            tracker.log_numbers(notes.numbers, step)
            for name, image in notes.pictures.items():
                tracker.log_image(name, image, step)

    def sign_of_life(self, step: int) -> None:
        """A line after the first step, and after a long silence; reads nothing from the device."""
        if time.perf_counter() - self._last_line < SILENCE_S and step != self.first_step + 1:
            return
        eta = format_seconds(self._remaining_s(step))
        self.say(
            f"step {step}/{self.plan.total_steps}  {self._seconds_a_step(step):.2f} s a step"
            f"  eta {eta}  metrics every {self._every}"
        )
        self._last_line = time.perf_counter()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def _seconds_a_step(self, step: int) -> float:
        return (time.perf_counter() - self._started) / max(1, step - self.first_step)

    def _remaining_s(self, step: int) -> float:
        return self._seconds_a_step(step) * (self.plan.total_steps - step)
