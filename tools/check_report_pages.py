"""The report and the comparison in a real browser: a tiny run, Chromium, no network.

    python -m tools.check_report_pages [--out FOLDER] [RUN ...]

Makes two runs of seconds (or takes those given), their reports and the page that compares them, and
opens each at 1280 and at 390 pixels with every host unreachable. Fails where a picture does not
load, or where the page is wider than the window. The screenshots stay in FOLDER (build/pages).

Without Chromium on PATH it says so, counts the pages that were not looked at, and ends with 0.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from clustermim_fast import api, pretrain

REPOSITORY = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 390)
SETTINGS: dict[str, Any] = {
    "data": "digits", "img_size": 16, "patch_size": 4, "epochs": 1, "num_clusters": 16,
    "model.embed_dim": 32, "model.depth": 1, "model.num_heads": 2, "model.decoder_dim": 16,
    "model.decoder_depth": 1, "report": False, "export": False,
}  # fmt: skip

# Chromium's own window is never narrower than 500 pixels: the page stands in a frame of the width.
FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }}
iframe {{ border: 0; width: {width}px; height: {height}px }}</style>
<iframe id="page" srcdoc="{page}"></iframe><pre id="found"></pre><script>
window.onload = () => {{
  const page = document.getElementById("page").contentDocument, images = [...page.images];
  document.getElementById("found").textContent = JSON.stringify({{
    height: page.documentElement.scrollHeight,
    width: page.documentElement.scrollWidth,
    images: images.length,
    broken: images.filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.alt || i.src),
    wide: [...page.querySelectorAll("body *")].filter(
      e => !e.closest(".scroll") && e.getBoundingClientRect().right > {width} + 1
    ).map(e => e.tagName + " " + e.className).slice(0, 5),
  }});
}};
</script>"""


def browse(browser: str, file: Path, *options: str) -> str:
    """What headless Chromium prints for a local file; every host name fails."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", *options,
            file.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{browser} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def look(browser: str, page: Path, width: int, picture: Path) -> dict[str, Any]:
    """What the page is at a width: height, width, number of images, broken ones; a screenshot."""
    text = html.escape(page.read_text(encoding="utf-8"))
    framed = picture.with_suffix(".html")
    framed.write_text(FRAME.format(width=width, height=900, page=text), encoding="utf-8")
    dump = browse(browser, framed, "--virtual-time-budget=10000", "--dump-dom")
    match = re.search(r'<pre id="found">(.+?)</pre>', dump, re.DOTALL)
    if match is None:
        raise RuntimeError(f"{page}: the script in the page did not run")
    found: dict[str, Any] = json.loads(html.unescape(match.group(1)))
    height = found["height"]
    framed.write_text(FRAME.format(width=width, height=height, page=text), encoding="utf-8")
    browse(browser, framed, f"--screenshot={picture}", f"--window-size={width},{height}")
    framed.unlink()
    return found


def problems(found: dict[str, Any], width: int) -> list[str]:
    """What is wrong with a page at a width."""
    wrong = [f"picture does not load: {name}" for name in found["broken"]]
    if not found["images"]:
        wrong.append("no pictures")
    if found["width"] > width:
        wrong.append(f"{found['width']} px wide, by {', '.join(found['wide']) or 'its text'}")
    return wrong


def tiny_runs(folder: Path) -> list[Path]:
    """A run of tokens and one of pixels on digits, the first evaluated."""
    runs = []
    for method in ("clustermim", "mae"):
        out = folder / method
        pretrain(method=method, out=out, say=lambda line: None, **SETTINGS)
        runs.append(out)
    api.evaluate_run("knn", runs[0], say=lambda line: None)
    return runs


def main() -> int:
    """Look at all pages; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders; none: two tiny ones")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "pages")
    options = parser.parse_args()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print(f"check_report_pages: 3 pages skipped, none of {', '.join(BROWSERS)} on PATH")
        return 0
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        runs = options.runs or tiny_runs(Path(name))
        pages = {run.name: api.report_run(run) for run in runs}
        pages["comparison"] = api.compare_runs(
            runs, out=Path(name) / "comparison.html", say=lambda line: None
        )
        for title, page in pages.items():
            for width in WIDTHS:
                picture = options.out / f"{title}_{width}.png"
                found = look(browser, page, width, picture)
                wrong = problems(found, width)
                failed += bool(wrong)
                size = f"{found['images']} pictures, {found['height']} px high"
                print(f"{title} at {width} px: {size}; {'; '.join(wrong) or 'fits'}", flush=True)
    print(f"check_report_pages: {failed} of {len(pages) * len(WIDTHS)} wrong; {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
