"""What a stage has found so far, a JSON line each: a stage that dies or hangs loses nothing.

Before a method is first called its name goes into the journal ("trying"). Where a process ends with
that as its last line, the method is what ended it: the next process of the stage leaves it out.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Journal:
    """Lines of one stage; ``kind`` is "row", "trying", "ready", "failed" or "note"."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: list[dict[str, Any]] = []
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    self.lines.append(json.loads(line))
                except json.JSONDecodeError:  # a process died while writing it
                    continue

    def write(self, kind: str, **facts: Any) -> None:
        line = {"kind": kind, "at": time.time(), **facts}
        self.lines.append(line)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def row(self, **facts: Any) -> None:
        """One result: it needs ``case`` and ``method``."""
        self.write("row", **facts)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]

    def failure(self, case: str, method: str) -> str | None:
        """Why ``method`` is left out of ``case``, if it is. A dead process counts everywhere, and
        for parts of the method, which are named after it."""
        for line in self.of("failed"):
            everywhere = line.get("fatal") and method.startswith(line["method"])
            if everywhere or (line["method"] == method and line["case"] == case):
                return line["reason"]
        return None

    def finished(self, case: str) -> bool:
        return any(line["case"] == case for line in self.of("finished"))

    def blame(self, reason: str) -> bool:
        """After a process died: name what it was trying, if it was; True if another may go on."""
        tried = next((x for x in reversed(self.lines) if x["kind"] != "note"), None)
        if tried is None or tried["kind"] != "trying":
            return False
        case, method = tried["case"], tried["method"]
        self.write("failed", case=case, method=method, reason=reason, fatal=method != "ours")
        return True
