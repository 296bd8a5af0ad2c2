"""The stub of the compiled core names what the core has: functions and their arguments."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import clustermim_fast

core = pytest.importorskip("clustermim_fast._core", reason="the core is not built")
STUB = Path(clustermim_fast.__file__).parent / "_core.pyi"


def arguments_of_the_core(name: str) -> list[str]:
    """From the signature that pybind11 writes into the docstring."""
    signature = getattr(core, name).__doc__.splitlines()[0]
    return re.findall(r"(\w+): ", signature[: signature.rindex("->")])


def test_the_stub_is_the_cores() -> None:
    found = {
        node.name: [a.arg for a in node.args.kwonlyargs]
        for node in ast.parse(STUB.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    names = [n for n in dir(core) if callable(getattr(core, n)) and not n.startswith("_")]
    assert found == {name: arguments_of_the_core(name) for name in names}
