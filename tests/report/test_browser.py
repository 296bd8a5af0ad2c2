"""tools/check_report_pages.py sees what is wrong with a page; the pages: `make check-pages`."""

from __future__ import annotations

import base64
import io
import shutil

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

from PIL import Image

from tools import check_report_pages
from tools.check_report_pages import BROWSERS, look, problems


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


GOOD = (
    f'<img src="{picture()}"> <div class="scroll" style="overflow-x: auto">'
    '<div style="width: 900px">wide, but it scrolls</div></div>'
)
BAD = '<img src="http://example.org/a.png" alt="far"><div class="bar" style="width: 600px">x</div>'


@pytest.mark.parametrize(
    ("body", "expected"),
    [(GOOD, []), (BAD, ["picture does not load: far", "600 px wide, by DIV bar"])],
)
def test_what_a_browser_says(tmp_path, body, expected):
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH")
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><body style='margin: 0'>{body}</body>")
    found = look(browser, page, 390, tmp_path / "page.png")
    assert problems(found, 390) == expected
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == 390


def test_without_a_browser_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(check_report_pages.shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["check_report_pages"])
    assert check_report_pages.main() == 0
    assert "3 pages skipped, none of chromium" in capsys.readouterr().out
