"""Plants bugs in the CUDA kernels one by one: the named check must notice each, without a GPU.

    python tools/check_cuda_mutations.py [--table] [part of a bug's name ...]

Each entry of tools/cuda_mutations.py (the filter's) and tools/cuda_linear_mutations.py (the linear
loss's) replaces one piece of source text in a copy of the tree (build/cuda_mutations) and runs its
witness there: a C++ test of the kernel's own source on the CPU (tests/cpp/emulated), plain or under
a sanitizer, which passes on the kernels as they are and has to fail with the bug. --table prints
the markdown of docs/cuda.md, a table for each kernel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cuda_linear_mutations
import cuda_mutations
from cuda_mutations import Mutation

ROOT = Path(__file__).resolve().parents[1]
COPIES = ROOT / "build/cuda_mutations"
SOURCES = (
    "csrc/core", "csrc/hopper", "csrc/masked_cross_entropy", "csrc/nearest_centroid", "tests/cpp",
)  # fmt: skip
KERNELS = {
    "The filter:": cuda_mutations.MUTATIONS,
    "The linear loss:": cuda_linear_mutations.MUTATIONS,
}
SECONDS = 400
FLAGS = {
    "": (),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
SANITIZERS = {"": "plain", "address": "ASan + UBSan", "thread": "TSan"}
# What a failing test says first.
SIGNS = ("emulated Hopper", "failed:", "WARNING: ThreadSanitizer", "ERROR: ", "runtime error:")


@dataclass(frozen=True)
class Outcome:
    """problem: why there is no verdict."""

    problem: str
    caught: bool = False
    said: str = ""
    seconds: float = 0


def first_sign(output: str) -> str:
    """What the test said: a line of its failure, without this machine's paths."""
    lines = [line for line in output.splitlines() if any(sign in line for sign in SIGNS)]
    # Of a hang, who waits at a barrier says most.
    lines.sort(key=lambda line: "emulated Hopper" in line and "at a barrier" not in line)
    line = (lines or ["it ended with an error"])[0].strip()
    for sign in SIGNS[1:]:
        if sign in line:
            line = line[line.index(sign) :]
    line = re.sub(r"emulated Hopper, [^:]*: ", "", line)
    return re.split(r" \(pid=|: barrier at | on address ", line)[0][:130].replace("|", "\\|")


def outcome(name: str, witness: tuple[str, str], mutation: Mutation | None) -> Outcome:
    """Of the witness in a copy of the sources, with the bug if one is given."""
    start = time.monotonic()
    copy = COPIES / name
    shutil.rmtree(copy, ignore_errors=True)
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, copy / folder)
    if mutation is not None:
        source = (copy / mutation.file).read_text(encoding="utf-8")
        if source.count(mutation.text) != 1:
            return Outcome(f"its text is not in {mutation.file} once")
        bug = source.replace(mutation.text, mutation.bug)
        (copy / mutation.file).write_text(bug, encoding="utf-8")
    test, sanitizer = witness
    command = [
        os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-g1", "-pthread", "-w",
        *FLAGS[sanitizer], "-Itests/cpp/emulated", "-Icsrc", f"tests/cpp/{test}.cpp", "-o", "test",
    ]  # fmt: skip
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if built.returncode:
        return Outcome(built.stderr[-1500:])
    environment = {
        **os.environ,
        "TSAN_OPTIONS": "halt_on_error=1",
        "CLUSTERMIM_EMULATED_SECONDS": "30" if mutation else "120",
    }
    try:
        done = subprocess.run(
            ["./test"], cwd=copy, env=environment, capture_output=True, text=True, check=False,
            timeout=SECONDS, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome("", mutation is not None, f"no end within {SECONDS} s")
    shutil.rmtree(copy)
    said = first_sign(done.stderr) if done.returncode else ""
    return Outcome("", done.returncode != 0, said, time.monotonic() - start)


def check_without_bugs(pool: ThreadPoolExecutor, witnesses: list[tuple[str, str]]) -> None:
    """Ends the program where one of them fails on the kernels as they are."""
    clean = pool.map(lambda witness: outcome("-".join(witness), witness, None), witnesses)
    for witness, found in zip(witnesses, clean, strict=True):
        if found.problem or found.caught:
            sys.exit(f"{witness} fails without any bug: {found.problem}{found.said}")


def line(mutation: Mutation, found: Outcome, *, as_table: bool) -> str:
    """What is printed of a bug."""
    verdict = found.problem or found.said or "SURVIVES"
    if not as_table:
        state = "caught" if found.caught else "SURVIVES"
        return f"{state:8} {mutation.name:50} {found.seconds:5.1f} s  {verdict}"
    test, sanitizer = mutation.witness
    file, how = Path(mutation.file).name, f"`{test}`, {SANITIZERS[sanitizer]}"
    return f"| {mutation.name} | `{file}` | {how} | {verdict} |"


def main() -> int:
    """One line for each bug; 1 where one survives."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    as_table = "--table" in sys.argv[1:]
    chosen = {
        kernel: [m for m in mutations if not words or any(word in m.name for word in words)]
        for kernel, mutations in KERNELS.items()
    }
    every = [mutation for mutations in chosen.values() for mutation in mutations]
    survivors = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        check_without_bugs(pool, list(dict.fromkeys(m.witness for m in every)))
        outcomes = pool.map(
            lambda i: outcome(str(i), every[i].witness, every[i]), range(len(every))
        )
        for kernel, mutations in chosen.items():
            if as_table and mutations:
                print(f"\n{kernel}\n\n| bug | in | caught by | which says |\n|-|-|-|-|")
            for mutation in mutations:
                found = next(outcomes)
                survivors += not found.caught
                print(line(mutation, found, as_table=as_table), flush=True)
    if survivors:
        print(f"{survivors} bugs went unnoticed", file=sys.stderr)
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
