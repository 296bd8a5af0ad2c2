"""Assigning real patches to centroids: ours beside torch, faiss, scikit-learn and its Intel build.

    python -m benchmarks.ops.bench_nearest_centroid --data ../shared/data [--json FILE]

is the whole campaign (about ten minutes once the cache is filled, see `benchmarks.workloads`): for
each number of threads and each instruction set that the peers are held to, a process of its own
measures the limits of the machine, every workload, uint8 images to ids, calls of one row and worst
cases, and prints its tables. Times: ns a row, minimum of the rounds, all methods interleaved.
Wrong ids: counted for every method on the rows that it was timed on, against the truth of
``tests/ops/truth.py`` (float64 with an error bound, exact arithmetic for what it leaves).

    python -m benchmarks.ops.bench_nearest_centroid --data ../shared/data --check-only

counts the wrong ids of every ISA path on all rows of all workloads, untimed.

    pytest benchmarks/ops/bench_nearest_centroid.py --benchmark-enable

times ours on small made-up rows, for quick before-and-after checks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cache
from benchmarks.assignment import memory, methods, sections, tables, worst_cases
from benchmarks.assignment.limits import measure_limits
from benchmarks.harness import limited_threads, machine, say, write_json
from benchmarks.workloads import WORKLOADS, Store
from clustermim_fast import ops
from clustermim_fast.bench.assigners import PEERS
from clustermim_fast.bench.paths import certificate_switchable, isa_paths

MODULE = "benchmarks.ops.bench_nearest_centroid"
SECTIONS = ("memory", "rows", "images", "calls", "worst")
# Libraries read these when they are loaded. oneDAL follows MKL's in its matrix products; the rest
# of it (and numpy's loops) goes on with what the processor has.
HELD_ENVIRONMENT = {
    "avx2": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
        "FAISS_SIMD_LEVEL": "AVX2",
    }
}


def run_process(threads: int, held: str, arguments: list[str], cache_folder: Path) -> dict:
    """One process of the campaign; what it measured."""
    environment = os.environ | HELD_ENVIRONMENT.get(held, {})
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder / f"inductor-{held or 'best'}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        own = ["--threads", str(threads), "--child", str(out)] + (["--hold", held] if held else [])
        command = [sys.executable, "-W", "ignore", "-m", MODULE, *arguments, *own]
        subprocess.run(command, check=True, env=environment)
        return json.loads(out.read_text())


def child(options: argparse.Namespace) -> None:
    """What one process of the campaign does."""
    options.held = options.hold[0] if options.hold else ""
    threads = options.threads[0]
    store = Store(options.data, options.cache, options.images)
    if options.held:
        import torch._inductor.config as inductor

        inductor.cpp.simdlen = 256
    found: dict[str, Any] = {"threads": threads, "held": options.held, "rows": []}
    with limited_threads(threads):
        if options.check_only:
            found["check"] = sections.check_every_path(store, options.workloads)
        else:
            _measure(found, store, options)
    options.child.write_text(json.dumps(found))


def _measure(found: dict[str, Any], store: Store, options: argparse.Namespace) -> None:
    wanted = options.sections
    if "memory" in wanted:
        found["memory"] = memory.memory_rows(store)
    limits = measure_limits(options.rounds)
    found["limits"] = asdict(limits)
    say(f"limits: {found['limits']}")
    if not certificate_switchable():
        say(methods.CERTIFIED_ONLY)
    if "rows" in wanted:
        for name in options.workloads:
            found["rows"] += sections.workload_rows(WORKLOADS[name], store, limits, options)
    if "images" in wanted:
        for k in (100, 1000):
            found["rows"] += sections.image_rows(k, store, limits, options)
    found["rows"] = [asdict(row) for row in found["rows"]]
    if "calls" in wanted:
        found["calls"] = sections.one_row_calls(options)
    if "worst" in wanted:
        found["worst"] = worst_cases.worst_rows(store, options)


def print_tables(found: dict[str, Any]) -> None:
    held = f", ours and peers held to {found['held']}" if found["held"] else ""
    print(f"\n## {found['threads']} threads{held}\n")
    if "limits" in found:
        read, fp32, bf16 = found["limits"].values()
        print(
            f"Limits measured: reading memory {read:.1f} GB/s; torch.mm fp32 {fp32:.0f}, "
            f"bf16 {bf16:.0f} GFLOP/s (fp32 is the limit of the paths without matrix units). "
            f"Ours by itself takes the path {methods.usable_isas()[-1]}.\n"
        )
    if found["rows"]:
        print(tables.row_table(found["rows"]), "\n")
        offered = any(row["method"] == methods.UNCERTIFIED for row in found["rows"])
        print("" if offered or found["held"] else f"{methods.CERTIFIED_ONLY}\n")
    if "worst" in found:
        print(tables.worst_table(found["worst"]), "\n")
    if "calls" in found:
        print(tables.call_table(found["calls"]), "\n")
    for line in found.get("memory", []):
        print(
            f"Peak memory of patch_tokens, {line['images']} images, K = {line['num_centroids']}: "
            f"{line['mib']:.1f} MiB above inputs and ids (goal: under 64)"
        )
    for line in found.get("check", []):
        print(*(line[k] for k in ("workload", "op", "isa", "wrong_ids")), "wrong of", line["rows"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the image archives")
    parser.add_argument(
        "--cache", type=Path, default=cache.DEFAULT, help="folder; default %(default)s"
    )
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--peers", nargs="+", choices=["all", *(p.key for p in PEERS)], default=["all"]
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    isas = list(isa_paths())
    parser.add_argument("--isa", nargs="*", choices=["all", *isas], default=["all"],
                        help="ISA paths of ours to force one by one")  # fmt: skip
    parser.add_argument("--hold", nargs="*", choices=list(HELD_ENVIRONMENT), default=None,
                        help="also: ours and the peers held to this ISA (avx2)")  # fmt: skip
    parser.add_argument("--images", type=int, help="use only this many images of each archive")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=4.0,
                        help="of all rounds of one method in one workload")  # fmt: skip
    parser.add_argument("--check-only", action="store_true", help="count wrong ids, every path")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """The campaign; the number of processes of it that failed."""
    options = parse()
    if options.child:
        child(options)
        return 0
    passed = _without(sys.argv[1:], ("--threads", "--hold", "--json"))
    start = time.perf_counter()
    runs = [(threads, "", passed) for threads in options.threads]
    if options.check_only:
        runs = runs[:1]
    else:
        # The goals are about the first number of threads; the others get less time.
        fewer = [
            "--sections",
            *(s for s in options.sections if s in ("rows", "images")),
            "--isa",
        ]  # no path by force
        fewer += ["--rounds", str(min(2, options.rounds))]
        fewer += ["--max-seconds", str(min(2.0, options.max_seconds))]
        runs = [runs[0], *((threads, "", [*passed, *fewer]) for threads, _, _ in runs[1:])]
        holds = ["avx2"] if options.hold is None else options.hold
        usable = [held for held in holds if isa_paths()[held] == "usable"]
        if "rows" in options.sections:
            held_rows = [*passed, "--sections", "rows"]
            runs += [(options.threads[0], held, held_rows) for held in usable]
    found, failed = [], 0
    for threads, held, arguments in runs:
        say(f"--- {threads} threads {held and 'held to ' + held}")
        try:
            found.append(run_process(threads, held, arguments, options.cache))
        except subprocess.CalledProcessError as error:
            say(f"FAILED: {error}")
            failed += 1
            continue
        print_tables(found[-1])
        sys.stdout.flush()
        if options.json:  # after each: an interrupted campaign keeps what it has
            write_json(options.json, found)
    if not options.check_only:
        print(f"\n## Goals, {options.threads[0]} threads\n")
        first = [r for f in found for r in f["rows"] if f["threads"] == options.threads[0]]
        print(tables.goal_table(first))
    print(f"\n{machine()}\n{time.perf_counter() - start:.0f} s in all")
    return failed


def _without(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    """``arguments`` without the options ``names`` and their values."""
    kept, skipping = [], False
    for argument in arguments:
        if argument.startswith("--"):
            skipping = argument.partition("=")[0] in names
        if not skipping:
            kept.append(argument)
    return kept


@pytest.mark.parametrize(
    ("n", "d", "k"), [(100_000, 48, 50), (20_000, 48, 512), (10_000, 768, 100), (2_000, 768, 1000)]
)
def test_nearest_centroid_speed(benchmark, n, d, k):
    x, c = torch.randn(n, d), torch.randn(k, d)
    benchmark(ops.nearest_centroid, x, c)


@pytest.mark.parametrize(("size", "p", "k"), [(32, 4, 50), (224, 16, 100)])
def test_patch_tokens_speed(benchmark, size, p, k):
    images = torch.randint(0, 256, (50, 3, size, size), dtype=torch.uint8)
    benchmark(ops.patch_tokens, images, torch.randn(k, p * p * 3), p)


if __name__ == "__main__":
    sys.exit(main())
