"""Runs the tests against a wheel, in an environment and a folder of their own.

    python tools/test_installed_wheel.py dist/clustermim_fast-*.whl [pytest arguments]

The tests are copied away from the checkout, so that ``import clustermim_fast`` can only find the
installed package. The environment is ``build/wheel-env``; it sees the packages of the environment
that runs this script (torch and the test tools are large), but never the checkout: the wheel's copy
stands first on the path, and this script checks that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
COPIED = (
    "tests",
    "tools",
    "csrc",
    "benchmarks",
    "examples",
    "docs",
    "README.md",
    "pyproject.toml",
    "CMakeLists.txt",
)


def make_environment(folder: Path, wheel: Path) -> Path:
    """A fresh environment that holds ``wheel`` and borrows every other package; its interpreter."""
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    target = next((folder / "lib").glob("python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(wheel.resolve())], check=True)
    # A plain path line: unlike the borrowed folder's own .pth files, which would bring an editable
    # install of the checkout along, it is taken as it is.
    borrowed = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    (target / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)) + "\n")
    return python


def main() -> int:
    """Install the wheel named on the command line and run pytest on a copy of the tests."""
    wheel, pytest_arguments = Path(sys.argv[1]), sys.argv[2:]
    python = make_environment(REPOSITORY / "build" / "wheel-env", wheel)
    with tempfile.TemporaryDirectory(prefix="wheel-tests-") as name:
        folder = Path(name)
        for item in COPIED:
            source = REPOSITORY / item
            if source.is_dir():
                shutil.copytree(source, folder / item, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy2(source, folder / item)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        data = os.environ.get("CLUSTERMIM_DATA") or str(REPOSITORY.parent / "shared" / "data")
        environment["CLUSTERMIM_DATA"] = data
        code = "import clustermim_fast; print(clustermim_fast.__file__)"
        where = subprocess.check_output(
            [str(python), "-c", code], cwd=folder, env=environment, text=True
        ).strip()
        if not Path(where).is_relative_to(python.parents[1]):
            print(f"the tests would import {where}, not the wheel")
            return 1
        print(f"testing {where}", flush=True)
        command = [str(python), "-m", "pytest", *pytest_arguments]
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
