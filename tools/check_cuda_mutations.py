"""Plants bugs in the CUDA kernels one by one: the named check must notice each, without a GPU.

    python tools/check_cuda_mutations.py [--table] [part of a bug's name ...]

Each entry of tools/cuda_mutations.py replaces one piece of source text in a copy of the tree
(build/cuda_mutations) and runs its witness there: a C++ test of the kernel's own source on the CPU
(tests/cpp/emulated), plain or under a sanitizer, which passes on the kernels as they are and has to
fail with the bug. --table prints the markdown of docs/cuda.md.
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

from cuda_mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
COPIES = ROOT / "build/cuda_mutations"
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
    for folder in ("csrc/hopper", "csrc/nearest_centroid", "csrc/core", "tests/cpp"):
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


def main() -> int:
    """One line for each bug; 1 where one survives."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    as_table = "--table" in sys.argv[1:]
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    jobs = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        names = list(dict.fromkeys(m.witness for m in chosen))
        for witness, clean in zip(
            names, pool.map(lambda w: outcome("-".join(w), w, None), names), strict=True
        ):
            if clean.problem or clean.caught:
                sys.exit(f"{witness} fails without any bug: {clean.problem}{clean.said}")
        outcomes = pool.map(
            lambda pair: outcome(str(pair[0]), pair[1].witness, pair[1]), enumerate(chosen)
        )
        survivors = 0
        if as_table:
            print("| bug | in | caught by | which says |\n|-|-|-|-|")
        for mutation, found in zip(chosen, outcomes, strict=True):
            survivors += not found.caught
            verdict = found.problem or found.said or "SURVIVES"
            test, sanitizer = mutation.witness
            file = Path(mutation.file).name
            if as_table:
                how = f"`{test}`, {SANITIZERS[sanitizer]}"
                print(f"| {mutation.name} | `{file}` | {how} | {verdict} |", flush=True)
            else:
                state = "caught" if found.caught else "SURVIVES"
                print(f"{state:8} {mutation.name:50} {found.seconds:5.1f} s  {verdict}", flush=True)
    if survivors:
        print(f"{survivors} bugs went unnoticed", file=sys.stderr)
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
