"""Who may import whom, as code: reads the imports of the package and the includes of csrc/.

    python tools/check_layers.py

The rows are ARCHITECTURE.md's. An import must point to a lower row; parts of one row never import
each other. ``tests/test_layers.py`` runs this and plants violations to see them caught.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "clustermim_fast"
REPOSITORY = Path(__file__).resolve().parent.parent

PYTHON_ROWS = (
    ("_version",),
    ("_core",),
    ("ops",),
    ("nn", "weights", "encoders", "patch_grid", "counter_rng", "image_files", "ranks"),
    ("models", "tokenizers", "masking", "losses", "optim", "checkpoint", "data", "testing"),
    ("train", "evaluate", "report", "export", "bench"),
    ("recipes",),
    ("api",),
    ("cli",),
    ("__main__",),
)
PYTHON_ROW = {part: row for row, parts in enumerate(PYTHON_ROWS) for part in parts}
# Outside the rows: what each may import of the package, and nothing else.
FREE_PARTS = {
    "__init__": {"_version"},  # all other names are loaded on first use
    "info": {"_version", "_core", "ops", "image_files"},
}
# The parts that stay light enough for somebody else's program; of other projects they may import:
THIRD_PARTY = {
    "_version": set(),
    "__init__": set(),
    "ops": {"numpy", "torch", "triton"},
    "nn": {"torch"},
    "counter_rng": {"numpy"},
    "image_files": set(),
    "info": {"numpy", "torch", "triton"},
    "testing": {"numpy", "torch"},
}
CORE_USERS = {"ops", "info"}
LIBRARY_FILE = Path("ops/_library.py")
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
PICKLE_ERRORS = {"pickle", "pickle.UnpicklingError", "pickle.PickleError"}  # to catch torch.load's

CPP_BASE, CPP_ENGINES, CPP_BINDINGS = {"core"}, {"assign", "gpu", "hopper"}, {"bindings"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
ISA_SOURCE = re.compile(r"_avx(2|512)\.cpp$")


def part_of(file: Path) -> str:
    """The part of the package that ``file`` (relative to the package) belongs to."""
    return file.parts[0] if len(file.parts) > 1 else file.stem


def imported_modules(tree: ast.AST, file: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every (statement, absolute dotted name) imported anywhere in ``file``, functions included."""
    package = [PACKAGE, *file.parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node, f"{module}.{alias.name}"


def type_checking_statements(tree: ast.AST) -> set[int]:
    """Ids of the statements under ``if TYPE_CHECKING:``, which never run."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }


def check_import(part: str, file: Path, name: str) -> str | None:
    """What is wrong with ``file`` of ``part`` importing the dotted ``name``, or None."""
    top, *rest = name.split(".")
    if name.startswith("torch.library") and file != LIBRARY_FILE:
        return "only ops/_library.py touches torch.library"
    if top in PICKLES and name not in PICKLE_ERRORS:
        return "nothing that a user hands in is unpickled"
    if top != PACKAGE:
        allowed = THIRD_PARTY.get(part)
        if allowed is not None and top not in sys.stdlib_module_names and top not in allowed:
            return f"{part} may import {', '.join(sorted(allowed)) or 'nothing'} of other projects"
        if top == "triton" and not file.name.startswith("triton_") and part != "info":
            return "triton is imported in ops/<op>/triton_*.py only"
        return None
    other = rest[0] if rest and rest[0] in PYTHON_ROW.keys() | FREE_PARTS.keys() else "__init__"
    if other == part:
        return None
    if other == "_core" and part not in CORE_USERS:
        return f"only {' and '.join(sorted(CORE_USERS))} import _core"
    if part in FREE_PARTS:
        return None if other in FREE_PARTS[part] else f"{part} may not import {other}"
    if other == "__init__":
        known = rest and rest[0] != "__version__"
        return f"{name} is no part that the layers know" if known else None
    if part not in PYTHON_ROW:
        return f"{part} has no row: give it one in tools/check_layers.py and ARCHITECTURE.md"
    if other == "info":
        return None if part == "cli" else "only cli imports info"
    if PYTHON_ROW[other] == PYTHON_ROW[part]:
        return f"{part} and {other} stand on one row: siblings do not import each other"
    if PYTHON_ROW[other] > PYTHON_ROW[part]:
        return f"{part} stands below {other}: imports point down only"
    return None


def check_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Attribute uses and calls that no file may hold, as (line, problem)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name == "torch.library":
                yield node.lineno, "only ops/_library.py touches torch.library"
            if name.startswith("pickle.") and name not in PICKLE_ERRORS:
                yield node.lineno, "nothing that a user hands in is unpickled"
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        function = ast.unparse(node.func)
        if function == "torch.load" and keywords.get("weights_only") != "True":
            yield node.lineno, "torch.load needs weights_only=True: files may come from anyone"
        if keywords.get("allow_pickle", "False") != "False":
            yield node.lineno, "allow_pickle runs code from a file that may come from anyone"


def check_python(package: Path) -> list[str]:
    """Problems of every Python file under ``package``."""
    problems = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        if "utils" in file.stem:
            problems.append(f"{PACKAGE}/{file}: name a file by its topic, not utils")
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        part = part_of(file)
        skipped = type_checking_statements(tree) if part == "__init__" else set()
        found = [
            (statement.lineno, problem)
            for statement, name in imported_modules(tree, file)
            if id(statement) not in skipped and (problem := check_import(part, file, name))
        ]
        if file != LIBRARY_FILE:
            found += check_calls(tree)
        for line, problem in dict.fromkeys(found):
            problems.append(f"{PACKAGE}/{file}:{line}: {problem}")
    return problems


def cpp_row(part: str) -> int:
    """The row of a folder of csrc/: core, then shared engines, then ops, then bindings."""
    for row, parts in ((0, CPP_BASE), (1, CPP_ENGINES), (3, CPP_BINDINGS)):
        if part in parts:
            return row
    return 2


def check_include(part: str, quote: str, name: str, own_files: set[str]) -> str | None:
    """What is wrong with a file of ``part`` including ``name``, or None."""
    if name.startswith(("torch/", "ATen/", "c10/")):
        return "the core never includes torch: one build serves every version of it"
    if name == "Python.h" or name.startswith("pybind11/"):
        return None if part in CPP_BINDINGS else "only csrc/bindings knows Python"
    if quote == "<":
        return None
    if "/" not in name:
        return None if name in own_files else f"write it as <folder>/{name}"
    other = name.split("/", 1)[0]
    if other == part or cpp_row(other) < cpp_row(part):
        return None
    if cpp_row(other) == cpp_row(part):
        return f"{part} and {other} stand on one row: share through csrc/core or csrc/assign"
    return f"{part} stands below {other}: includes point down only"


def check_isa_header(text: str) -> bool:
    """Whether a header that ISA units include keeps its functions private to each of them.

    As far as text can tell: it has an anonymous namespace or defines no function body at all.
    ``tools/check_disassembly.py`` looks at the compiled objects and is the judge.
    """
    without_comments = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    private = re.search(r"\bnamespace\s*\{", without_comments) is not None
    return private or re.search(r"\)\s*(const\s*)?(noexcept\s*)?\{", without_comments) is None


def check_cpp(csrc: Path) -> list[str]:
    """Problems of every C++ and CUDA file under ``csrc``."""
    problems = []
    files = [p for p in sorted(csrc.rglob("*")) if p.suffix in {".h", ".cpp", ".cuh", ".cu"}]
    includes: dict[Path, list[str]] = {}
    for path in files:
        file = path.relative_to(csrc)
        part = file.parts[0]
        own_files = {p.name for p in path.parent.iterdir()}
        text = path.read_text(encoding="utf-8")
        includes[file] = []
        for match in INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start(2)) + 1
            if problem := check_include(part, match[1], match[2], own_files):
                problems.append(f"csrc/{file}:{line}: {problem} (it includes {match[2]})")
            if match[1] == '"':
                includes[file].append(match[2] if "/" in match[2] else f"{part}/{match[2]}")
    for unit in (file for file in includes if ISA_SOURCE.search(file.name)):
        waiting, seen = list(includes[unit]), set()
        while waiting:
            name = waiting.pop()
            if name in seen or not (csrc / name).is_file():
                continue
            seen.add(name)
            waiting += includes.get(Path(name), [])
            if not check_isa_header((csrc / name).read_text(encoding="utf-8")):
                problems.append(
                    f"csrc/{unit}: includes {name}, whose functions are in no anonymous namespace: "
                    "the linker may hand this unit's copy to another processor"
                )
    return problems


def main() -> int:
    """Check the checkout that this file belongs to."""
    problems = check_python(REPOSITORY / PACKAGE) + check_cpp(REPOSITORY / "csrc")
    print("\n".join([*problems, f"check_layers: {len(problems)} problems"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
