"""A stage for test_gpu_suite.py: one method dies, one hangs, one is all right."""

from __future__ import annotations

import os
import time

METHODS = "DYING_STAGE_METHODS"  # variable: which, in turn


def run(bench, journal):
    for method in os.environ.get(METHODS, "fine dies hangs fails ours").split():
        if journal.failure("case", method):
            continue
        journal.write("trying", case="case", method=method)
        if method == "dies":
            os.abort()
        if method == "hangs":
            time.sleep(600)
        if method == "fails":
            journal.write("failed", case="case", method=method, reason="said so")
            continue
        journal.write("ready", case="case", method=method)
        if not any(row["method"] == method for row in journal.of("row")):
            journal.row(case="case", method=method, process=os.getpid())
