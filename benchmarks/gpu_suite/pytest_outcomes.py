"""A pytest plugin: tests of kernels first, and a line for each outcome as soon as it is known."""

from __future__ import annotations

import os
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(path in item.nodeid for path in ("triton", "cuda")))


def pytest_runtest_logreport(report: Any) -> None:
    """In the process that collects, not in xdist's workers."""
    file = os.environ.get("GPU_SUITE_OUTCOMES")
    if not file or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when != "call" and report.outcome == "passed":
        return
    why = ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        why = report.longrepr[2]
    elif report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash else str(report.longrepr)
    line = "\t".join([report.outcome, report.nodeid, " ".join(why.split())[:300]])
    with open(file, "a", encoding="utf-8") as out:
        out.write(line + "\n")
