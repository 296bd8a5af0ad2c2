"""Reads the machine code of a compiled kernel: what it counts, loop by loop.

Needs the cuobjdump and nvdisasm that come with triton.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

COUNTS = {  # column -> opcodes
    "HGMMA": r"[HQIB]GMMA",
    "UTCMMA": r"UTC\w*MMA",
    "HMMA": r"[HQI]MMA|DMMA",
    "FFMA": r"FFMA2?",
    "TMA": r"UTMALDG|UTMASTG|UTMAREDG|UBLKCP",
    "G128": r"(LDG|LDGSTS|STG)\b.*\.128",
    "Gnarrow": r"LDG\S*\.[US](8|16)\b",
    "G": r"LDG|LDGSTS|STG",
    "local": r"LDL|STL",
    "total": r".",
}


@dataclass
class Instruction:
    label: str  # of this place, or ""
    op: str
    target: str  # the label that a branch goes to, or ""
    always: bool  # not under a predicate


@functools.lru_cache
def _tool(name: str) -> str:
    beside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(beside) if beside.exists() else str(getattr(triton.knobs.nvidia, name).path)


def _run_tool(name: str, *arguments: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_tool(name), *arguments, file.name]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout


def resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of the kernel in a cubin."""
    text = _run_tool("cuobjdump", "--dump-resource-usage", cubin=cubin)
    return {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def instructions(cubin: bytes) -> list[Instruction]:
    """The instructions of the kernel in a cubin, in order."""
    found, label = [], ""
    for line in _run_tool("nvdisasm", "-c", cubin=cubin).splitlines():
        if m := re.match(r"\s*(\.L_x?_?\w+):", line):
            label = m.group(1)
        elif m := re.match(r"\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);", line):
            branch = m.group(2).startswith("BRA")
            target = re.search(r"\.L_x?_?\w+", m.group(3)) if branch else None
            always = not m.group(1) and not re.match(r"!?U?P\w+,", m.group(3))
            found.append(Instruction(label, m.group(2), target.group(0) if target else "", always))
            label = ""
    return found


def spilled_bytes(code: list[Instruction]) -> int:
    """Bytes stored to and loaded from local memory by a thread, each instruction counted once."""
    words = {".256": 8, ".128": 4, ".64": 2}
    return sum(
        4 * next((n for suffix, n in words.items() if suffix in c.op), 1)
        for c in code
        if re.match(COUNTS["local"], c.op)
    )


def count(code: list[Instruction]) -> dict[str, int]:
    """Instructions of each kind; a loop's body counts once."""
    ops = [c.op for c in code if c.op != "NOP"]
    return {name: sum(1 for op in ops if re.match(kind, op)) for name, kind in COUNTS.items()}


def loop_counts(code: list[Instruction]) -> list[dict[str, int]]:
    """Counts of each loop's own instructions, those of inner loops left out, and its ``depth``.

    ptxas may have unrolled or peeled a loop; spin waits, of a few instructions, are left out.
    """
    blocks, follows = _flow(code)
    natural = {
        head: body
        for head, body in _natural_loops(follows).items()
        if sum(blocks[n][1] - blocks[n][0] for n in body) > 10
    }
    found = []
    for head, body in natural.items():
        inner = [b for h, b in natural.items() if h != head and h in body and b < body]
        own = [c for n in sorted(body - set().union(*inner)) for c in code[slice(*blocks[n])]]
        found.append({"depth": sum(body <= b for b in natural.values()), **count(own)})
    return found


def _flow(code: list[Instruction]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Basic blocks as (first, end), and for each the blocks that can come next."""
    at = {c.label: i for i, c in enumerate(code) if c.label}
    leaving = ("EXIT", "RET")
    ends = [i + 1 for i, c in enumerate(code) if c.target or c.op.startswith(leaving)]
    starts = sorted({0, *at.values(), *(e for e in ends if e < len(code))})
    blocks = list(zip(starts, [*starts[1:], len(code)], strict=True))
    number = {start: n for n, start in enumerate(starts)}
    follows = []
    for n, (_, end) in enumerate(blocks):
        last = code[end - 1]
        leaves = last.always and (last.target or last.op.startswith(leaving))
        after = [] if leaves or n + 1 == len(blocks) else [n + 1]
        if last.target in at:
            after.append(number[at[last.target]])
        follows.append(after)
    return blocks, follows


def _natural_loops(follows: list[list[int]]) -> dict[int, set[int]]:
    """Head -> blocks of the loop: an edge back to a block that dominates its source."""
    order: list[int] = []
    seen, stack = {0}, [(0, iter(follows[0]))]
    while stack:
        node, rest = stack[-1]
        fresh = next((n for n in rest if n not in seen), None)
        if fresh is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(fresh)
            stack.append((fresh, iter(follows[fresh])))
    order.reverse()
    before = {n: [m for m in order if n in follows[m]] for n in order}
    dominators = {n: set(order) for n in order}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for n in order[1:]:
            new = {n} | set.intersection(*(dominators[m] for m in before[n]))
            changed |= new != dominators[n]
            dominators[n] = new
    loops: dict[int, set[int]] = {}
    for n in order:
        for head in follows[n]:
            if head in dominators[n]:
                body, todo = loops.setdefault(head, {head}), [n]
                while todo:
                    m = todo.pop()
                    if m not in body:
                        body.add(m)
                        todo += before[m]
    return dict(sorted(loops.items()))
