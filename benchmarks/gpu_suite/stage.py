"""One stage in a process of its own: python -m benchmarks.gpu_suite.stage MODULE JOURNAL."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path

from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.journal import Journal


def main() -> None:
    module, file = sys.argv[1], Path(sys.argv[2])
    bench = Bench(file.parent)
    cuda: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if bench.rehearsed:
        from tests.gpu import emulated, strict

        strict.install()  # the interpreter as it comes computes bfloat16 wrong
        cuda = emulated.running()
    with cuda:
        importlib.import_module(module).run(bench, Journal(file))


if __name__ == "__main__":
    main()
