"""skipped_files.txt: the files of a run that could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path


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
        if goes_on and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self._seen = {line.partition("\t")[0] for line in lines}
        else:
            path.unlink(missing_ok=True)
        self.add(broken)

    def add(self, broken: Iterable[tuple[str | Path, str]]) -> None:
        """Take in more files; no work where there are none."""
        fresh = [(str(p), reason) for p, reason in broken if str(p) not in self._seen]
        if not fresh:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            for path, reason in fresh:
                self._seen.add(path)
                file.write(f"{path}\t{reason}\n")
        self._say(f"{len(self._seen)} unreadable files skipped, listed in {self._path}")
