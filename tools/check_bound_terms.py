"""Removes the terms of the certificate from the core one by one: its tests must notice each time.

    python tools/check_bound_terms.py [part of a term's name ...]

Each entry of TERMS replaces one piece of source text in a copy of the tree (build/bound_terms),
builds the core there and runs the witnesses: tests that pass with the term and have to fail without
it. A term whose path this machine lacks is left out and says so. docs/certificate.md, section 7.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY, BUILD = ROOT / "build/bound_terms/tree", ROOT / "build/bound_terms/cmake"
TESTS = "tests/ops/"
PARTS = ("csrc", "clustermim_fast", "tests", "CMakeLists.txt", "pyproject.toml")


@dataclass(frozen=True)
class Term:
    """One term of a bound; ``path``: the ISA path whose bound it is, for the witness to notice."""

    name: str
    file: str
    text: str
    without: str
    witness: str
    path: str = "generic"


CERT, NARROW = "csrc/assign/certificate.cpp", "csrc/assign/narrow_verdict_avx512.h"
COLUMNS, COORDINATES = "csrc/assign/codebook.cpp", "csrc/assign/codebook_projection.cpp"
INTEGERS, VERDICT = "csrc/assign/narrow_integer_search.cpp", "csrc/assign/narrow_integers_kernel.h"
PIXELS, TIERS = "csrc/assign/pixel_codebook.cpp", "csrc/assign/scores.cpp"
RIGHT = "test_certificate.py::test_the_core_is_right_on_the_same_input"
OF_PIXELS = "test_certificate_pixels.py::test_the_core_is_right_on_the_same_input"
OF_INTEGERS = "test_certificate_integers.py::test_the_core_is_right_on_the_same_input"
OF_SCORES = "test_certificate_pixel_scores.py::test_scores_that_rounding_turns_round"
OF_TIERS = "test_certificate_tiers.py::"

# Name, file, text, the text without the term, witness (a pytest id below tests/ops), ISA path.
TERMS = [
    Term(*entry)
    for entry in (
        # ---- scores: (6)
        ("bfloat16: a", CERT, "e.dot = 1.01f * kUnit * (1.0f + 15.0f + 1.0f + steps);",
         "e.dot = 0.0f;", f"{RIGHT}[bfloat16, dot, D = 384]", "amx"),
        ("bfloat16: b", CERT, "e.bias = 1.01f * kUnit * (steps + 1.0f);", "e.bias = 0.0f;",
         f"{RIGHT}[bfloat16, bias, D = 1024]", "amx"),
        ("float32: a", CERT, "e.dot = 1.01f * kUnit * (1.0f + chain + runs);", "e.dot = 0.0f;",
         f"{RIGHT}[float32, dot, D = 384]"),
        ("float32: b", CERT, "e.bias = 1.01f * kUnit * 2.0f;", "e.bias = 0.0f;",
         f"{RIGHT}[float32, bias]"),
        # ---- rounded points: (1), (4), (5)
        ("row, measured", CERT, "row.residual = root(error2);", "row.residual = root(0.0f);",
         f"{RIGHT}[bfloat16, rows, dot]", "amx"),
        ("lost squares, bfloat16", CERT, "lost_squares(dim)", "0.0",
         f"{RIGHT}[bfloat16, squares]", "amx"),
        ("lost squares, float32", CERT, "lost_squares(dim)", "0.0",
         f"{RIGHT}[float32, squares]"),
        ("centroid, measured", COLUMNS, "rounded.residual + 1.01f", "1.01f",
         f"{RIGHT}[bfloat16, centroids, dot]", "amx"),
        ("centroid, float32", COLUMNS, "1.01f * 0x1p-24f * (rounded.norm + rounded.residual)",
         "0.0f", f"{RIGHT}[float32, float32]"),
        ("(4): S_b delta_b", CERT, "2.0f * std::sqrt(distance2) + slack_b", "slack_b",
         f"{OF_PIXELS}[best, 8 bits]", "avx512_vnni"),
        ("(4): S_b^2 / 2", CERT, "2.0f * std::sqrt(distance2) + slack_b",
         "2.0f * std::sqrt(distance2)", f"{OF_PIXELS}[square of the best]", "avx512_vnni"),
        ("(4): S_j (delta_b + S_b)", CERT, "slack_s * (reach + 0.5f * slack_s)",
         "slack_s * 0.5f * slack_s", f"{OF_PIXELS}[centroids, 8 bits]", "avx512_vnni"),
        ("(4): S_j S_b", CERT, "std::sqrt(distance2 + extra)", "std::sqrt(distance2)",
         f"{OF_PIXELS}[both]", "avx512_vnni"),
        ("(4): S_j^2 / 2", CERT, "reach + 0.5f * slack_s", "reach",
         f"{OF_PIXELS}[own square]", "avx512_vnni"),
        ("(5): |xr| (r_j + r_b)", CERT, "row.norm * (s.residual + b.residual) +", "",
         f"{RIGHT}[bfloat16, centroids, dot]", "amx"),
        ("(5): rho (|c'_j| + |c'_b|)", CERT,
         "row.residual * (s.norm + s.residual + b.norm + b.residual)", "0.0f",
         f"{RIGHT}[bfloat16, rows, dot]", "amx"),
        # ---- narrow rows
        ("narrow: a, b", "csrc/assign/narrow_search.cpp",
         "book_.error.dot = book_.error.bias = 1.01f * kUnit * chain;", "",
         f"{RIGHT}[bfloat16, dot, euclidean]", "amx"),
        ("narrow: row", NARROW, "residual = root_above(sums.error2)", "residual = splat(0.0f)",
         f"{RIGHT}[bfloat16, rows, no tie]", "amx"),
        ("narrow: centroids", NARROW, "slack = fma(2.0f, residual, own)",
         "slack = times(2.0f, residual)", f"{RIGHT}[bfloat16, centroids, D = 3]", "amx"),
        ("narrow: S delta", NARROW, "fma(0.5f, slack, distance)", "times(0.5f, slack)",
         f"{RIGHT}[bfloat16, triangle, D = 3]", "amx"),
        ("narrow: S^2 / 2", NARROW, "fma(0.5f, slack, distance)", "distance",
         "test_certificate_narrow.py::test_the_square_of_the_roundings_decides", "amx"),
        ("integers: rho", INTEGERS, "0.5 * std::sqrt(static_cast<double>(dim))", "0.0",
         f"{OF_INTEGERS}[rows]", "avx2"),
        ("integers: r", INTEGERS, "std::sqrt(residual2)", "0.0",
         f"{OF_INTEGERS}[centroids]", "avx2"),
        ("integers: S delta", VERDICT, "(distance + book.slack) *",
         "(0.0f * distance + book.slack) *", f"{OF_INTEGERS}[rows]", "avx2"),
        ("integers: marks", VERDICT, "(2.0f * marks + 1.0f) * book.margin", "0.0f",
         f"{OF_INTEGERS}[marks]", "avx2"),
        # ---- subspace
        ("subspace: coordinates", "csrc/assign/projection.cpp",
         "return skew + packed + 1.05f * (score_error(format, dim).dot * root + 0x1p-23f);",
         "return 0.0f;", "test_certificate_subspace.py::test_coordinates_that_decide"),
        ("subspace: |w| (|q_j| + |q_b|)", CERT, "2.0f * row.outside * (b.outside + s.outside)",
         "0.0f",
         "test_nearest_centroid_adversarial_subspace.py::test_adversarial_in_a_subspace[gaussian]"),
        # ---- uint8 images
        ("pixels: a", PIXELS, "columns.error.dot = 1.01f * 3.0f * 0x1p-24f;", "",
         f"{OF_SCORES}[long_sums-avx512_vnni]", "avx512_vnni"),
        ("pixels: b", PIXELS, "columns.error.bias = 1.01f * 2.0f * 0x1p-24f;", "",
         f"{OF_SCORES}[rounded_biases-avx512_vnni]", "avx512_vnni"),
        ("pixels: rho", PIXELS, "row_residual = round_up(", "row_residual = 0 * round_up(",
         f"{OF_PIXELS}[pixels]", "avx512_vnni"),
        ("pixels: r, 8 bits", PIXELS, "columns.residual[column] = coarse.residual;", "",
         f"{OF_PIXELS}[centroids, 8 bits]", "avx512_vnni"),
        ("pixels: r, 16 bits", PIXELS, "{r.residual, r.norm, -r.bias}", "{0.0f, r.norm, -r.bias}",
         f"{OF_PIXELS}[centroids, 16 bits]", "avx512_vnni"),
        # ---- the tiers behind the filter
        ("float32 tier: relative", "csrc/assign/decide.cpp",
         "1.02f * 0x1p-24f * (static_cast<float>(book_.dim) / 16.0f + 47.0f)", "0.0f",
         "test_certificate_sums.py::test_the_float32_tier_needs_its_bound"),
        ("float32 tier: underflow", "csrc/assign/decide.cpp",
         "lost_squares(book_.dim + 1)", "0.0",
         f"{OF_TIERS}test_squares_that_underflow[32]"),
        ("float64 tier: relative", TIERS, "return 1.01 * static_cast<double>(dim + 8) * 0x1p-53;",
         "return 0.0 * dim;", f"{OF_TIERS}test_float64_sums_lose_small_squares"),
        ("float64 tier: underflow", TIERS,
         "return std::ceil(0.5 * static_cast<double>(dim)) * 0x1p-1074;", "return 0.0 * dim;",
         f"{OF_TIERS}test_squares_that_underflow[64]"),
        ("float64 tier: quotients", TIERS, " + 0x1p-1073}", "}",
         f"{OF_TIERS}test_quotients_that_underflow"),
        ("exact tier: cosines in float64", "csrc/assign/exact_nearest.cpp", "0x1p-48 * (a + b)",
         "0.0", f"{OF_TIERS}test_cosines_that_float64_cannot_compare"),
    )
]  # fmt: skip


def run(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """In the copy; its output is shown if it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=COPY, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done


def copy_tree() -> None:
    """Only what changed, so that only that is compiled again."""
    COPY.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PARTS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    wanted = {name for name in listed if name and (ROOT / name).is_file()}
    for old in [path for path in COPY.rglob("*") if path.is_file()]:
        if old.suffix in {".cpp", ".h", ".py"} and str(old.relative_to(COPY)) not in wanted:
            old.unlink()
    for name in wanted:
        to = COPY / name
        if not to.exists() or to.read_bytes() != (ROOT / name).read_bytes():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to)


def build() -> None:
    """The extension of the copy as its sources are now."""
    run("cmake", "--build", BUILD)
    run("cmake", "--install", BUILD, "--prefix", COPY)


def configure() -> None:
    """As `make core` does."""
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
    run("cmake", "-S", COPY, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}")  # fmt: skip


def usable_paths() -> set[str]:
    """ISA paths of this machine, and a check that it is the copy that Python finds."""
    code = (
        "from clustermim_fast.ops import _backend as b; print(b.__file__);"
        "print(*[n for n, s in b.core().build_info()['isa_paths'].items() if s == 'usable'])"
    )
    where, names = run(sys.executable, "-c", code).stdout.splitlines()
    assert Path(where).is_relative_to(COPY), f"{where} is not the copy's"
    return set(names.split())


def passes(*witnesses: str) -> bool:
    """Whether none of these tests fails."""
    ids = [TESTS + witness for witness in witnesses]
    options = ("-q", "-x", "-p", "no:cacheprovider")
    done = run(sys.executable, "-m", "pytest", *options, *ids, check=False)
    if done.returncode not in {0, 1}:  # neither passed nor failed
        sys.exit(done.stdout + done.stderr)
    return done.returncode == 0


def main() -> None:
    """One line for each term."""
    copy_tree()
    configure()
    build()
    paths = usable_paths()
    chosen = [t for t in TERMS if not sys.argv[1:] or any(word in t.name for word in sys.argv[1:])]
    tried = [t for t in chosen if t.path in paths]
    sources = {t.file: (COPY / t.file).read_text() for t in tried}
    wrong = [
        f"{t.name}: its text is not in {t.file} once"
        for t in tried
        if sources[t.file].count(t.text) != 1
    ]
    if wrong:
        sys.exit("\n".join(wrong))
    if not passes(*dict.fromkeys(t.witness for t in tried)):
        sys.exit("a witness fails with all terms in place")
    survivors = 0
    for term in chosen:
        if term not in tried:
            verdict = f"left out: no {term.path} here"
        else:
            (COPY / term.file).write_text(sources[term.file].replace(term.text, term.without))
            build()
            survives = passes(term.witness)
            (COPY / term.file).write_text(sources[term.file])
            survivors += survives
            verdict = "SURVIVES" if survives else "caught"
        print(f"{term.name:34} {verdict:24} {term.witness}", flush=True)
    if survivors:
        sys.exit(f"{survivors} terms can be removed without any test noticing")


if __name__ == "__main__":
    main()
