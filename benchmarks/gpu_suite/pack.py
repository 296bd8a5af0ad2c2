"""Collects what travels to a bare machine: wheels of peers, archives of images, the commit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_suite.images import SETS
from benchmarks.gpu_suite.prepare import CARRIED
from benchmarks.harness import REPOSITORY, _git, say

# Peers that are pure Python, and what the build and the tests need if the machine lacks it.
WHEELS = ("liger-kernel", "cut-cross-entropy", "flash-kmeans", "fastkmeans", "pybind11", "ninja",
          "hypothesis", "sortedcontainers", "pytest", "iniconfig", "pluggy", "pytest-benchmark",
          "py-cpuinfo", "pytest-xdist", "execnet", "tqdm")  # fmt: skip
FROM_SOURCE = ("pykeops", "keopscore")  # published as source only
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT_MIB = 64 - 6  # the tree itself travels too


def pip(*arguments: str) -> str:
    """ "" or why it failed."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def pack(data: Path | None) -> None:
    """Download what is not there yet; print what travels and how large it is."""
    wheels = CARRIED / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for name in WHEELS:
        if list(wheels.glob(f"{name.replace('-', '_')}-*.whl")):
            continue
        platforms = [word for p in PLATFORMS for word in ("--platform", p)]
        problem = pip("download", "--only-binary=:all:", "--python-version", "3.12", *platforms,
                      "--implementation", "cp", "--dest", str(wheels), name)  # fmt: skip
        if problem:
            say(f"{name}: {problem}")
    for name in FROM_SOURCE:
        if not list(wheels.glob(f"{name}-*.whl")):
            problem = pip("wheel", "--wheel-dir", str(wheels), name)
            if problem:
                say(f"{name}: {problem}")
    archives = CARRIED / "data"
    archives.mkdir(exist_ok=True)
    data = data or REPOSITORY.parent / "shared" / "data"
    for archive, _ in SETS.values():
        file = data / f"{archive}.tar.gz"
        if file.is_file() and not (archives / file.name).exists():
            shutil.copyfile(file, archives / file.name)
    commit = _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain") else "")
    (CARRIED / "commit").write_text(commit + "\n")
    total = sum(f.stat().st_size for f in CARRIED.rglob("*") if f.is_file()) / 2**20
    for file in sorted(CARRIED.rglob("*")):
        if file.is_file():
            print(f"{file.stat().st_size / 2**20:7.2f} MiB  {file.relative_to(CARRIED)}")
    print(f"{total:7.2f} MiB in {CARRIED.relative_to(REPOSITORY)}, of {LIMIT_MIB} that may travel")
    if total > LIMIT_MIB:
        raise SystemExit("too much: leave something out")
