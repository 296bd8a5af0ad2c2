"""Reads what the compiler of CUDA C++ says of a kernel: what costs speed and is no error."""

from __future__ import annotations

import re

# Prints each kernel's registers and spills; the machine code is the same.
VERBOSE = ("--ptxas-options=-v", "--ptxas-options=--warn-on-spills")
KINDS = {
    "wgmma serialised": r"C75(0[0-79]|1\d)|wgmma.*serialized",
    "setmaxnreg ignored": r"C7508|setmaxnreg.*ignored",
    "spills": r"[1-9]\d* bytes spill|Registers are spilled",
    "a stack": r"[1-9]\d* bytes (stack frame|cumulative stack size)",
    "a warning": r"\bwarning\b|Potential Performance Loss",
}


def problems(log: str) -> list[str]:
    """The kinds of trouble in a log of NVRTC made with :data:`VERBOSE`, each with its line."""
    return [
        f"{kind}: {line.strip()}"
        for line in log.splitlines()
        for kind, words in KINDS.items()
        if re.search(words, line)
    ]
