"""What every test shares: seeds, where the real images are, and a count of what was skipped."""

from __future__ import annotations

import collections
import gc
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries under test draw from the legacy generator
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """``threads(2)`` sets torch's thread count, which is the ops' too; undone after the test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """For tests that ask for many garbage collections: they skip what was there before, through
    which each would walk for a second where thousands of tests are loaded.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real images (archives); the test is skipped where there is none."""
    path = Path(os.environ.get("CLUSTERMIM_DATA") or REPOSITORY.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip("real images: set CLUSTERMIM_DATA to the folder that holds their archives")
    return path


@pytest.fixture(scope="session")
def unpacked(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``unpacked("cifar10-test")``: a folder with that archive's files, made once a session."""
    folders: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in folders:
            archive = data_dir / f"{name}.tar.gz"
            if not archive.is_file():
                pytest.skip(f"real images: no {name}.tar.gz in CLUSTERMIM_DATA")
            folder = tmp_path_factory.mktemp(name)
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            folders[name] = folder
        return folders[name]

    return unpack


_LEFT_OUT = pytest.StashKey[int]()


class _Totals:
    """How many tests -m and -k left out; under xdist the workers know and the main process asks."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        config.stash[_LEFT_OUT] = 0

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.config.stash[_LEFT_OUT] += len(items)

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["left_out"] = self.config.stash[_LEFT_OUT]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        found = getattr(node, "workeroutput", {})  # a worker that died has none
        self.config.stash[_LEFT_OUT] = max(self.config.stash[_LEFT_OUT], found.get("left_out", 0))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Totals(config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skips by reason, so that "all passed" cannot hide what did not run."""
    counts: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.stats.get("skipped", []):
        where_and_why = report.longrepr
        why = where_and_why[2] if isinstance(where_and_why, tuple | list) else str(where_and_why)
        counts[why.removeprefix("Skipped: ")] += 1
    total = sum(counts.values())
    left_out = terminalreporter.config.stash[_LEFT_OUT]
    terminalreporter.section(f"{total} skipped, by reason; {left_out} left out by -m")
    for why, count in counts.most_common():
        terminalreporter.line(f"{count:5d}  {why}")
