"""What a wheel may hold and link to; fails on anything else.

    python tools/audit_wheel.py dist/clustermim_fast-*.whl

The compiled core links the C and C++ runtimes and nothing more: one wheel serves every torch, with
or without CUDA; the CUDA C++ of csrc/ lies in it as it is. Prints the size and the libraries, which
README and CHANGELOG quote.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ALLOWED_LIBRARIES = re.compile(
    r"^(libc|libm|libstdc\+\+|libgcc_s|libpthread|librt|libdl|ld-linux[\w-]*|linux-vdso)\.so"
)
ALLOWED_SUFFIXES = {".py", ".pyi", ".so", ".typed", ".j2", ".html", ".css", ".json"}
MAX_BYTES = 4 << 20
CSRC = Path(__file__).resolve().parent.parent / "csrc"
KERNELS = "clustermim_fast/kernels/"


def kernel_sources() -> dict[str, bytes]:
    """What CMakeLists.txt installs for the compiler on the user's machine, by its name there."""
    files = {f for kind in ("hopper/*.h", "*/hopper_*.h", "*/hopper_*.cu") for f in CSRC.glob(kind)}
    return {KERNELS + f.relative_to(CSRC).as_posix(): f.read_bytes() for f in files}


def linked_libraries(path: Path) -> list[str]:
    """The names in a shared object's ``ldd``."""
    output = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
    return [Path(line.split()[0]).name for line in output.splitlines() if line.strip()]


def audit(wheel_path: Path) -> list[str]:
    """Problems of a wheel; prints its size and what its core links."""
    problems = []
    size = wheel_path.stat().st_size
    print(f"{wheel_path.name}: {size / 1e3:.0f} kB")
    if size > MAX_BYTES:
        problems.append(f"{size} bytes, more than {MAX_BYTES}")
    kernels = kernel_sources()
    with zipfile.ZipFile(wheel_path) as wheel, tempfile.TemporaryDirectory() as folder:
        # auditwheel adds entries for the folders
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        for name in names:
            top = name.split("/", 1)[0]
            if top != "clustermim_fast" and not top.endswith(".dist-info"):
                problems.append(f"{name} does not belong into site-packages")
            elif name.startswith(KERNELS):
                if name not in kernels:
                    problems.append(f"{name} is no kernel of csrc/")
            elif top == "clustermim_fast" and Path(name).suffix not in ALLOWED_SUFFIXES:
                problems.append(f"{name}: unexpected kind of file")
        for name, content in kernels.items():
            if name not in names or wheel.read(name) != content:
                problems.append(f"{name} must be the file of csrc/")
        if "clustermim_fast/py.typed" not in names:
            problems.append("py.typed is missing")
        if not any(name.endswith("licenses/LICENSE") for name in names):
            problems.append("the licence is missing")
        cores = [name for name in names if name.endswith(".so")]
        if len(cores) != 1 or not cores[0].startswith("clustermim_fast/_core."):
            problems.append(f"expected one compiled module clustermim_fast/_core, got {cores}")
        for name in cores:
            path = Path(wheel.extract(name, folder))
            libraries = linked_libraries(path)
            print(f"{name}: {path.stat().st_size / 1e3:.0f} kB, links {', '.join(libraries)}")
            problems += [
                f"{name} links {library}"
                for library in libraries
                if not ALLOWED_LIBRARIES.match(library)
            ]
            if re.search(rb"/(home|root|tmp|work)/", path.read_bytes()):
                problems.append(f"{name} holds a path of the machine that built it")
    return problems


def main() -> int:
    """Audit every wheel on the command line."""
    problems = [problem for path in sys.argv[1:] for problem in audit(Path(path))]
    print("\n".join([*problems, f"audit_wheel: {len(problems)} problems"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
