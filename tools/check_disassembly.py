"""Fails when AVX code stands where every processor may run it.

    python tools/check_disassembly.py build/dev/libclustermim_core.a dist/*.whl

Each instruction-set path is a translation unit of its own, ``*_avx2.cpp``, ``*_avx512.cpp``,
``*_vnni.cpp`` or ``*_amx.cpp``.
Two things can go wrong, and both end as SIGILL on a machine that our own tests never run on:

* a unit without such a name holds VEX or EVEX code (a wrong compiler flag, a target attribute);
* a unit with such a name defines a weak symbol, i.e. an inline function or template that another
  unit may define too: the linker keeps one of the two, and may keep the one compiled for AVX-512.

In object files and archives both are looked at directly. In a linked module, or a wheel, code is
traced back through the symbol table: local symbols stand behind the name of their source file, and
a global function of an ISA unit must carry the ISA in its name. Needs binutils.
"""

from __future__ import annotations

import argparse
import bisect
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ISA_UNIT = re.compile(r"_(avx2|avx512|vnni|amx)\.cpp(\.o)?$")
ISA_NAME = re.compile(r"avx2|avx512|vnni|amx", re.IGNORECASE)
# 62 starts EVEX, c4 and c5 VEX, in 64-bit mode without exception. Only segment and address-size
# prefixes may stand before them.
VECTOR_ENCODINGS = {"62", "c4", "c5"}
PREFIXES = {"26", "2e", "36", "3e", "64", "65", "67"}
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t?(.*)$")
MEMBER = re.compile(r"^(\S+):\s+file format ")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")


class Function(NamedTuple):
    """A function of a linked module: its addresses, symbol and source file."""

    start: int
    end: int
    name: str
    file: str  # "" for functions that are global before linking


def run(*command: str) -> str:
    """The standard output of a binutils program."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_vector_encoded(raw_bytes: str) -> bool:
    """Whether an instruction, given as objdump's hex bytes, is VEX or EVEX encoded."""
    for byte in raw_bytes.split():
        if byte not in PREFIXES:
            return byte in VECTOR_ENCODINGS
    return False


def check_objects(path: Path) -> list[str]:
    """Problems of an object file or a static archive."""
    problems: list[str] = []
    member, function = path.name, "?"
    seen: set[tuple[str, str]] = set()
    for line in run("objdump", "-dw", str(path)).splitlines():
        if match := MEMBER.match(line):
            member = Path(match[1]).name
        elif match := FUNCTION.match(line):
            function = match[1]
        elif match := INSTRUCTION.match(line):
            if ISA_UNIT.search(member) or not is_vector_encoded(match[2]):
                continue
            if (member, function) not in seen:
                seen.add((member, function))
                problems.append(f"{path.name}({member}): {function}: {match[3].strip()}")
    member = path.name
    for line in run("readelf", "-sW", str(path)).splitlines():
        if line.startswith("File: "):
            member = Path(line.removeprefix("File: ").rstrip(")").rpartition("(")[2]).name
            continue
        fields = line.split()
        is_weak = len(fields) >= 8 and fields[4] == "WEAK" and fields[6] != "UND"
        if is_weak and ISA_UNIT.search(member):
            problems.append(
                f"{path.name}({member}): defines the weak symbol {fields[7]}: put it into an "
                "anonymous namespace, or another unit may run this one's instructions"
            )
    return problems


def functions_of(path: Path) -> list[Function]:
    """The functions of a linked module in the order of their addresses."""
    functions: list[Function] = []
    file = ""
    section = ""
    for line in run("readelf", "-sW", str(path)).splitlines():
        if line.startswith("Symbol table"):
            section = line.split("'")[1]
        fields = line.split()
        if section != ".symtab" or len(fields) < 7 or not fields[0].rstrip(":").isdigit():
            continue
        name = fields[7] if len(fields) > 7 else ""
        if fields[3] == "FILE":
            file = name
        elif fields[3] == "FUNC" and fields[6] != "UND":
            start = int(fields[1], 16)
            owner = file if fields[4] == "LOCAL" else ""
            functions.append(Function(start, start + int(fields[2], 0), name, owner))
    return sorted(functions)


def check_linked(path: Path) -> list[str]:
    """Problems of a shared object."""
    functions = functions_of(path)
    if not functions:
        return [f"{path.name}: no symbol table (stripped?): nothing can be traced to its unit"]
    starts = [function.start for function in functions]
    problems: list[str] = []
    seen: set[str] = set()
    for line in run("objdump", "-dw", str(path)).splitlines():
        match = INSTRUCTION.match(line)
        if match is None or not is_vector_encoded(match[2]):
            continue
        address = int(match[1], 16)
        owner: Function | None = None
        # Symbols may share an address (aliases); any of them that is an ISA unit's will do.
        for function in reversed(functions[: bisect.bisect_right(starts, address)]):
            if function.start <= address < function.end:
                owner = function
                if ISA_UNIT.search(function.file):
                    break
            elif owner is not None or address - function.start > 1 << 20:
                break
        if owner is not None and ISA_UNIT.search(owner.file):
            continue
        if owner is not None and owner.file == "" and ISA_NAME.search(owner.name):
            continue
        name = f"{owner.name} (of {owner.file or 'no single unit'})" if owner else f"0x{address:x}"
        if name not in seen:
            seen.add(name)
            problems.append(f"{path.name}: {name}: {match[3].strip()}")
    return problems


def check(path: Path) -> list[str]:
    """Problems of one object file, archive, shared object or wheel; empty when it is clean."""
    if path.suffix == ".whl":
        problems: list[str] = []
        with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
            names = [name for name in wheel.namelist() if name.endswith(".so")]
            if not names:
                return [f"{path.name}: holds no compiled module"]
            for name in names:
                problems += check_linked(Path(wheel.extract(name, folder)))
        return problems
    return check_objects(path) if path.suffix in {".a", ".o"} else check_linked(path)


def main() -> int:
    """Check every path on the command line; print the problems and return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("paths", nargs="+", type=Path)
    problems = [problem for path in parser.parse_args().paths for problem in check(path)]
    for problem in problems:
        print(problem)
    print(f"check_disassembly: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
