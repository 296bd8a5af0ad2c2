"""The first stage: packages that this Python lacks, and the compiled core."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.journal import Journal
from benchmarks.harness import REPOSITORY

CARRIED = REPOSITORY / "build" / "gpu_suite_carry"  # see pack.py
# What a wheel there is called, where that is not its module's name.
MODULES = {"liger_kernel": "liger_kernel", "pytest_xdist": "xdist"}


def install_missing(site: Path) -> dict[str, str]:
    """Unpack the carried wheels whose modules this Python lacks; what became of each."""
    outcome = {}
    for wheel in sorted((CARRIED / "wheels").glob("*.whl")):
        distribution = wheel.name.partition("-")[0]
        if importlib.util.find_spec(MODULES.get(distribution, distribution)) is not None:
            outcome[wheel.name] = "there already"
            continue
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                   "--no-compile", "--upgrade", "--target", str(site), str(wheel)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        outcome[wheel.name] = "installed" if done.returncode == 0 else done.stderr.strip()[-200:]
    return outcome


def build_core() -> None:
    """As `make core` does; nothing is fetched."""
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    build = REPOSITORY / "build" / "dev"
    if not (build / "build.ninja").exists():
        subprocess.run(
            ["cmake", "-S", REPOSITORY, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
             f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"],
            check=True)  # fmt: skip
    subprocess.run(["cmake", "--build", build], check=True)
    subprocess.run(["cmake", "--install", build, "--prefix", REPOSITORY], check=True)


def run(bench: Bench, journal: Journal) -> None:
    start = time.perf_counter()
    journal.write("note", packages=install_missing(bench.work / "site"))
    journal.row(case="packages", method="pip", seconds=time.perf_counter() - start)
    start = time.perf_counter()
    build_core()
    journal.row(case="build", method="cmake", seconds=time.perf_counter() - start,
                processor=platform.machine())  # fmt: skip
