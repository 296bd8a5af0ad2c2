"""What this installation is and can do: ``clustermim info``, or ``python -m clustermim_fast.info``.

Every back-end that cannot run is listed with its reason, so that a question about speed starts from
facts. The part about the compiled core needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustermim_fast._version import __version__
from clustermim_fast.image_files import jpeg_decoder

BACKENDS = ("reference", "cpu", "triton", "cuda")
ENVIRONMENT = ("CLUSTERMIM_BACKEND", "CLUSTERMIM_ISA", "OMP_NUM_THREADS")
OPTIONAL_PACKAGES = (
    "timm",
    "torchvision",
    "scikit-learn",
    "safetensors",
    "matplotlib",
    "Jinja2",
    "tqdm",
    "triton",
    "simplejpeg",
    "torchcodec",
    "pyarrow",
)


@dataclass(frozen=True)
class Info:
    """The facts that ``info()`` collects; ``str()`` of it is the printed page.

    ``backends`` maps an op to its back-ends, each with None when it can run here, else the reason
    why not. ``gpu_runs`` maps an op to the architectures and back-ends of recorded correct runs on
    a GPU; ``gpu_choice`` a CUDA device to what serves each op there if no back-end is named.
    ``core`` is ``_core.build_info()``, or None with the reason in ``core_error``. ``cuda`` says
    whether there is a driver, and which compiler the CUDA C++ kernels would have.
    """

    version: str
    location: str
    python: str
    platform: str
    core: dict[str, Any] | None
    core_error: str | None
    cuda: str
    torch: str | None
    torch_error: str | None
    threads: int | None
    devices: tuple[str, ...]
    backends: dict[str, dict[str, str | None]] = field(default_factory=dict)
    gpu_runs: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    gpu_choice: dict[str, dict[str, str]] = field(default_factory=dict)
    packages: dict[str, str | None] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"clustermim_fast {self.version}",
            f"  at          {self.location}",
            f"  python      {self.python}, {self.platform}",
            *self._core_lines(),
            *self._torch_lines(),
        ]
        lines += [f"  {name}={value}" for name, value in self.environment.items()]
        if self.backends:
            lines += ["back-ends", *self._backend_lines(), *self._gpu_lines()]
        lines += ["optional packages (pip install 'clustermim_fast[train]')"]
        for name, version in self.packages.items():
            lines.append(f"  {name:<13} {version or 'not installed'}")
        lines.append(f"plain JPEG files are decoded by {jpeg_decoder()}")
        return "\n".join(lines)

    def _core_lines(self) -> list[str]:
        if self.core is None:
            return [f"  core        not available: {self.core_error}"]
        paths = "; ".join(f"{name}: {state}" for name, state in self.core["isa_paths"].items())
        return [
            f"  core        {self.core['compiler']}, {self.core['build_type']} build",
            f"  flags       {self.core['flags']}",
            f"  CUDA        {self.cuda}",
            f"  ISA path    {self.core['isa']} ({paths})",
        ]

    def _torch_lines(self) -> list[str]:
        if self.torch is None:
            return [f"  torch       not available: {self.torch_error}"]
        return [
            f"  torch       {self.torch}, {self.threads} threads",
            f"  devices     {', '.join(self.devices)}",
        ]

    def _backend_lines(self) -> list[str]:
        """One line for each group of ops with the same answer, and the reasons below it."""
        groups: dict[tuple[tuple[str, str | None], ...], list[str]] = {}
        for op, reasons in self.backends.items():
            groups.setdefault(tuple(reasons.items()), []).append(op)
        lines = []
        for reasons_of_group, ops in groups.items():
            lines.append(f"  {', '.join(ops)}")
            for name, reason in reasons_of_group:
                lines.append(f"    {name:<10} {'available' if reason is None else 'no: ' + reason}")
        return lines

    def _gpu_lines(self) -> list[str]:
        """Which kernels a GPU has run in our hands, and what that means for the others."""
        lines = []
        for op, runs in self.gpu_runs.items():
            found = "; ".join(f"{arch}: {', '.join(names)}" for arch, names in runs.items())
            lines.append(f"  run on GPUs by us: {op} ({found})")
        if not self.gpu_runs:
            lines.append("  triton: no GPU has run our kernels in our hands; they were interpreted")
            lines.append("    and compiled, and are checked against the reference at first use")
        ops = [op for op, reasons in self.backends.items() if "no such" not in str(reasons["cuda"])]
        run = any("cuda" in names for runs in self.gpu_runs.values() for names in runs.values())
        if ops and not run:
            lines.append("  cuda: CUDA C++ for Hopper, compiled at first use; no GPU has run it in")
            lines.append(
                "    our hands: it serves where it is named, if it agrees with plain torch"
            )
        for device, choices in self.gpu_choice.items():
            groups: dict[str, list[str]] = {}
            for op, choice in choices.items():
                groups.setdefault(choice, []).append(op)
            lines.append(f"  on {device}, unless another is named:")
            lines += [f"    {', '.join(ops)}: {choice}" for choice, ops in groups.items()]
        return lines


def _core_facts() -> tuple[dict[str, Any] | None, str | None]:
    try:
        core = importlib.import_module("clustermim_fast._core")
    except ImportError as error:
        return None, f"{error}; reinstall with `pip install .`, or run `make core` in a checkout"
    return dict(core.build_info()), None


def _cuda_facts(core_error: str | None, torch_error: str | None) -> str:
    if core_error:
        return core_error
    driver = importlib.import_module("clustermim_fast._core").gpu_problem() or "a CUDA driver"
    if torch_error:
        return driver
    nvrtc = importlib.import_module("clustermim_fast.ops._nvrtc")
    return f"{driver}; {nvrtc.unavailable_reason() or f'NVRTC {nvrtc.compiler()}'}"


def _op_names() -> list[str]:
    """The folders of ``ops``: an op has one home and one name everywhere."""
    folder = Path(__file__).with_name("ops")
    return sorted(path.parent.name for path in folder.glob("[a-z]*/op.py"))


def _backends(torch: Any) -> dict[str, dict[str, str | None]]:
    """For each op and back-end, None or the reason why it cannot run on any device here."""
    availability = importlib.import_module("clustermim_fast.ops._backend").availability
    answers: dict[str, dict[str, str | None]] = {}
    for op in _op_names():
        module = importlib.import_module(f"clustermim_fast.ops.{op}.op")
        on_cpu = availability(torch.device("cpu"), module.IMPLEMENTED)
        on_cuda = availability(torch.device("cuda"), module.IMPLEMENTED)
        answers[op] = {n: None if on_cpu[n] is None else on_cuda[n] for n in BACKENDS}
    return answers


def _gpu_choice(torch: Any, count: int) -> dict[str, dict[str, str]]:
    """For each CUDA device and op what serves it; nothing is run to find out."""
    standing = importlib.import_module("clustermim_fast.ops._choice").standing
    unavailable = importlib.import_module("clustermim_fast.ops._backend").availability
    ops = importlib.import_module("clustermim_fast.ops._self_checks").OPS
    answers: dict[str, dict[str, str]] = {}
    for device in (f"cuda:{i}" for i in range(count)):
        answers[device] = {}
        for op, implemented in ops.items():
            reasons = unavailable(torch.device(device), implemented)
            usable = tuple(n for n in ("cuda", "triton") if reasons[n] is None)
            answers[device][op] = standing(op, device, usable)
    return answers


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def info() -> Info:
    """Collect the facts about this installation, its compiled core, torch and the back-ends."""
    core, core_error = _core_facts()
    torch_version: str | None = None
    torch_error: str | None = None
    threads: int | None = None
    devices: tuple[str, ...] = ()
    backends: dict[str, dict[str, str | None]] = {}
    gpu_runs: dict[str, dict[str, tuple[str, ...]]] = {}
    gpu_choice: dict[str, dict[str, str]] = {}
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        torch_error = str(error)
    else:
        torch_version = str(torch.__version__)
        threads = torch.get_num_threads()
        has_cuda = torch.cuda.is_available()
        gpus = range(torch.cuda.device_count() if has_cuda else 0)
        devices = ("cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in gpus))
        backends = _backends(torch)
        gpu_runs = importlib.import_module("clustermim_fast.ops._choice").RECORDED_RUNS
        gpu_choice = _gpu_choice(torch, len(gpus))
    return Info(
        version=__version__,
        location=str(Path(__file__).parent),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{platform.system()} {platform.machine()}",
        core=core,
        core_error=core_error,
        cuda=_cuda_facts(core_error, torch_error),
        torch=torch_version,
        torch_error=torch_error,
        threads=threads,
        devices=devices,
        backends=backends,
        gpu_runs=gpu_runs,
        gpu_choice=gpu_choice,
        packages={name: _version_of(name) for name in OPTIONAL_PACKAGES},
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    )


def main() -> int:
    """Print ``info()``."""
    print(info())
    return 0


if __name__ == "__main__":
    sys.exit(main())
