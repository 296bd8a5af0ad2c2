"""README.md: its first screen runs as it stands, and every page that the pages name is there."""

from __future__ import annotations

import re

import pytest

from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]


def test_the_first_screen_runs():
    (code, *_) = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    known: dict[str, object] = {}
    exec(code, known)
    assert known["hidden"].grad is not None
    assert known["ids"].shape == (10_000,)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    if not (REPOSITORY / "ARCHITECTURE.md").is_file():
        pytest.skip("the checkout's own pages are not beside an installed wheel")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
