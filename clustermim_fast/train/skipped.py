"""skipped_files.txt: the files of a run that could not be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from clustermim_fast.ranks import everyone


class SkippedFiles:
    """Collects unreadable files, writes each once, and says in one line how many there are.

    goes_on: keep what is listed already; a set read from disk meets its broken files once.
    """

    def __init__(
        self,
        path: Path,
        broken: Iterable[tuple[str | Path, str]],
        say: Callable[[str], None],
        *,
        goes_on: bool = False,
    ) -> None:
        self._path = path
        self._say = say
        self._seen: set[str] = set()
        self._waiting: list[tuple[str, str]] = []
        self._group = everyone()
        if self._group.rank > 0:
            pass
        elif goes_on and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self._seen = {line.partition("\t")[0] for line in lines}
        else:
            path.unlink(missing_ok=True)
        self.add(broken)
        self.write()

    def add(self, broken: Iterable[tuple[str | Path, str]]) -> None:
        """Take in more files; no work where there are none."""
        self._waiting += [(str(path), reason) for path, reason in broken]

    def write(self) -> None:
        """List what every rank took in since the last time; all of them call it."""
        text, self._waiting = json.dumps(self._waiting), []
        self._write([pair for part in self._group.texts(text) for pair in json.loads(part)])

    def _write(self, broken: Iterable[tuple[str, str]]) -> None:
        fresh = {path: reason for path, reason in broken if path not in self._seen}
        if not fresh or self._group.rank > 0:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            for path, reason in fresh.items():
                self._seen.add(path)
                file.write(f"{path}\t{reason}\n")
        self._say(f"{len(self._seen)} unreadable files skipped, listed in {self._path}")
