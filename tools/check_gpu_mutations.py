"""Plants bugs in the Triton kernels one by one: the named test must notice each, without a GPU.

    python tools/check_gpu_mutations.py [--table] [part of a bug's name ...]

Each entry of tools/gpu_mutations.py replaces one piece of source text in a copy of the tree
(build/gpu_mutations) and runs its witness there, interpreted: a test that passes on the kernels as
they are and has to fail with the bug. --table prints the markdown of docs/gpu.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gpu_mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build/gpu_mutations"
SECONDS = 300  # a bug may make a kernel loop for ever


def copy_tree() -> None:
    """The package with its compiled core, and the tests."""
    shutil.rmtree(COPY, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for part in ("clustermim_fast", "tests"):
        shutil.copytree(ROOT / part, COPY / part, ignore=ignore)
    shutil.copyfile(ROOT / "pyproject.toml", COPY / "pyproject.toml")


def run(*witnesses: str) -> subprocess.CompletedProcess[str]:
    """These tests in the copy, interpreted."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(COPY),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *witnesses]
    try:
        return subprocess.run(
            command, cwd=COPY, env=environment, capture_output=True, text=True, check=False,
            timeout=SECONDS * len(witnesses),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, f"E   no end within {SECONDS} s", "")


def how(output: str) -> str:
    """What the test said: the first line of its error."""
    lines = [line[1:].strip() for line in output.splitlines() if line.startswith("E ")]
    return (lines[0] if lines else "?")[:110].replace("|", "\\|")


def mutated(mutation: Mutation) -> tuple[str, bool, str]:
    """("", whether the witness failed, what it said), or the problem first."""
    file = COPY / mutation.file
    source = file.read_text(encoding="utf-8")
    if source.count(mutation.text) != 1:
        return f"its text is not in {mutation.file} once", False, ""
    file.write_text(source.replace(mutation.text, mutation.bug), encoding="utf-8")
    done = run(mutation.witness)
    file.write_text(source, encoding="utf-8")
    if done.returncode not in {0, 1}:  # neither passed nor failed
        return done.stdout[-2000:] + done.stderr[-2000:], False, ""
    return "", done.returncode == 1, how(done.stdout)


def main() -> int:
    """One line for each bug; 1 where one survives."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    as_table = "--table" in sys.argv[1:]
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    copy_tree()
    done = run(*dict.fromkeys(m.witness for m in chosen))
    skipped = " skipped" in done.stdout.splitlines()[-1] if done.stdout else True
    if done.returncode or skipped:
        print(done.stdout + done.stderr)
        sys.exit("a witness fails, or is skipped, without any bug")
    survivors = 0
    if as_table:
        print("| kernels | bug | caught by | which says |\n|-|-|-|-|")
    for mutation in chosen:
        start = time.monotonic()
        problem, caught, said = mutated(mutation)
        survivors += not caught
        verdict = problem or (said if caught else "SURVIVES")
        if as_table:
            test = mutation.witness.removeprefix("tests/")
            print(f"| {mutation.op} | {mutation.name} | `{test}` | {verdict} |", flush=True)
        else:
            seconds = time.monotonic() - start
            outcome = "caught" if caught else "SURVIVES"
            print(f"{outcome:8} {mutation.name:46} {seconds:5.1f} s  {verdict}", flush=True)
    if survivors:
        print(f"{survivors} bugs went unnoticed", file=sys.stderr)
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
