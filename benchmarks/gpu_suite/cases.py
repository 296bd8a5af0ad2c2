"""Runs the methods of one case: each alone first, its answers checked, then all in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite.bench import Bench, Ceilings
from benchmarks.gpu_suite.journal import Journal

Call = Callable[[], Any]
OURS = ("ours", hopper.OURS)
DEAD = 3  # exit status: the CUDA context is of no more use


@dataclass(frozen=True)
class Method:
    """``make()`` gives the call to time; ``missing``: why it cannot run."""

    name: str
    make: Callable[[], Call]
    missing: str = ""


@dataclass(frozen=True)
class Case:
    """moved, flops: what the work needs at least; check: facts of a result, as its wrong ids;
    facts: more about a call of ours."""

    name: str
    methods: list[Method]
    moved: float
    flops: float
    check: Callable[[Any], dict[str, Any]] = lambda out: {}
    goal_ms: float | None = None
    paper_floor_ms: float | None = None
    facts: Callable[[Call], dict[str, Any]] = lambda call: {}
    seconds: float = 2.0


def one_line(error: BaseException) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:300]


def _try(bench: Bench, journal: Journal, case: Case, method: Method) -> tuple[Call, dict] | None:
    """The call of a method that gives an answer, and what is known of it."""
    if method.missing:
        journal.write("failed", case=case.name, method=method.name, reason=method.missing,
                      missing=True)  # fmt: skip
        return None
    if journal.failure(case.name, method.name):
        return None
    journal.write("trying", case=case.name, method=method.name)
    try:
        start = time.perf_counter()
        call = method.make()
        out = call()
        bench.synchronize()
        facts = {"first_call_s": time.perf_counter() - start, **case.check(out)}
        del out
        facts["extra_mib"] = bench.peak_mib(call)
        bench.synchronize()
    except Exception as error:  # noqa: BLE001  a peer that fails is a row with its reason
        journal.write("failed", case=case.name, method=method.name, reason=one_line(error))
        try:
            bench.synchronize()
        except Exception:  # noqa: BLE001  an illegal address: only a new process can go on
            os._exit(DEAD)
        return None
    journal.write("ready", case=case.name, method=method.name)
    return call, facts


def run_case(bench: Bench, journal: Journal, case: Case, ceilings: Ceilings) -> None:
    """A row in the journal for each method that runs; ours are those of OURS."""
    if journal.finished(case.name):
        return
    ready = {}
    for method in case.methods:
        found = _try(bench, journal, case, method)
        if found:
            ready[method.name] = found
    calls = {name: call for name, (call, _) in ready.items()}
    times = bench.interleave({**calls, **ceilings.methods}, seconds=case.seconds)
    floor = ceilings.floor(times, case.moved, case.flops)
    extra = {
        name: {"host_us": bench.host_us(calls[name], 20), **case.facts(calls[name])}
        for name in OURS
        if name in ready
    }
    for name, (_, facts) in ready.items():
        journal.row(
            case=case.name, method=name, ms=statistics.median(times[name]),
            ms_min=min(times[name]), rounds=len(times[name]), goal_ms=case.goal_ms,
            paper_floor_ms=case.paper_floor_ms, **floor, **facts,
            **extra.get(name, {}),
        )  # fmt: skip
    journal.write("finished", case=case.name)
