"""The timing of `clustermim bench` and the benchmarks, by a clock of the test's own."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from clustermim_fast.bench import timing
from clustermim_fast.bench.timing import interleave, limited_threads

# Timing collects before every call.
pytestmark = pytest.mark.usefixtures("frozen_heap")


def test_interleave_takes_turns_and_lets_the_slow_sit_out():
    ticks = iter(range(10_000))
    order = []
    methods = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timings = interleave(methods, rounds=3, min_seconds=0, clock=lambda: float(next(ticks)))
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [len(t.seconds) for t in timings.values()] == [3, 3]
    timings = interleave(
        methods, rounds=9, min_seconds=0, max_seconds=2.0, clock=lambda: float(next(ticks))
    )
    assert [len(t.seconds) for t in timings.values()] == [2, 2]


def test_short_methods_get_more_rounds_and_what_runs_is_told(monkeypatch):
    monkeypatch.setattr(timing, "TELL_SECONDS", math.inf)  # of a real clock
    now, told = [0.0], []

    def takes(seconds):
        def call():
            now[0] += seconds

        return call

    timings = interleave(
        {"short": takes(1.0), "long": takes(9.0)},
        rounds=2,
        fill_seconds=5.0,
        clock=lambda: now[0],
        tell=told.append,
    )
    assert {name: len(t.seconds) for name, t in timings.items()} == {"short": 5, "long": 2}
    assert told == ["warming up, 1 of 2: short", "warming up, 2 of 2: long"]


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with limited_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
