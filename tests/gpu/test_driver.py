"""The way to the CUDA driver, shown on a driver that writes down what it is called with.

There is no GPU here: that a launch reaches the driver as it should is all that can be proved.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

core = pytest.importorskip("clustermim_fast._core", reason="the core is not built")

HERE = Path(__file__).parent
NO_KERNEL_IMAGE = 209


def test_declarations_are_those_of_cuda_h(cuda_h) -> None:
    csrc = HERE.parents[1] / "csrc"
    if not csrc.exists():
        pytest.skip("the sources of the core are not beside these tests")
    command = ["g++", "-std=c++20", "-fsyntax-only", f"-I{cuda_h}", f"-I{csrc}"]
    subprocess.run([*command, HERE / "driver_abi.cpp"], check=True)


def run(code: str, folder: Path | None, log: Path, **environment: str) -> tuple[object, list[str]]:
    """Runs ``code`` in a new process, `core` imported and no torch; returns its `out`, and the
    driver's calls."""
    # LD_LIBRARY_PATH is how dlopen finds a driver: the core is told nothing.
    variables = os.environ | environment | {"FAKE_CUDA_LOG": str(log)}
    variables["LD_LIBRARY_PATH"] = str(folder) if folder else "/nowhere"
    whole = (
        "import json, sys\nimport clustermim_fast._core as core\n"
        f"{code}\nassert 'torch' not in sys.modules\nprint(json.dumps(out))"
    )
    result = subprocess.run(
        [sys.executable, "-c", whole],
        env=variables, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), log.read_text().splitlines() if log.exists() else []


LOAD = "kernel = core.load_gpu_kernel(cubin=b'image', name='scores', shared_bytes=200000, device=1)"
LAUNCH = """
def launch(**changes):
    core.launch_gpu_kernel(**(dict(
        kernel=kernel, grid=(132, 2, 1), block=(384, 1, 1), cluster=(1, 1, 1), shared_bytes=199680,
        stream=77, device=1, arguments=[]) | changes))
"""
CAUGHT = """
try:
    {}
    out = "nothing was raised"
except (RuntimeError, ValueError) as error:
    out = f"{{type(error).__name__}}: {{error}}"
"""


def test_a_kernel_is_loaded_and_launched(fake_driver, tmp_path) -> None:
    code = f"""
{LOAD}
{LAUNCH}
arguments = [(1 << 40).to_bytes(8, "little"), b"\\1\\2\\3\\4", bytes(range(130))]
launch(arguments=arguments)
launch(arguments=arguments, cluster=(2, 1, 1), stream=0)
launch(grid=(0, 1, 1))
out = core.gpu_problem()
"""
    out, calls = run(code, fake_driver, tmp_path / "log", FAKE_CUDA_ARGUMENTS="8,4,130")
    assert out == ""
    arguments = f"0000000000010000 01020304 {bytes(range(130)).hex()}"
    launched = "cuLaunchKernelEx 3 132 2 1 384 1 1 199680"
    assert calls == [
        # A thread that has no context gets the device's own: 71 is the handle of device 1.
        "cuInit 0",
        "cuDevicePrimaryCtxRetain 71",
        "cuModuleLoadData image in 71",
        "cuModuleGetFunction 2 scores",
        "cuFuncSetAttribute 3 shared bytes 200000",
        f"{launched} stream 77 {arguments}",
        f"{launched} stream 0 cluster 2 1 1 {arguments}",
        # A grid of no blocks is no launch.
    ]


def test_every_thread_gets_a_context_and_launches(fake_driver, tmp_path) -> None:
    code = f"""
import threading
{LOAD}
{LAUNCH}
threads = [threading.Thread(target=lambda: [launch() for _ in range(20)]) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
out = None
"""
    calls = run(code, fake_driver, tmp_path / "log")[1]
    assert sum(c.startswith("cuLaunchKernelEx") for c in calls) == 160
    assert sum(c.startswith("cuDevicePrimaryCtxRetain") for c in calls) == 9


def test_a_tensor_map_is_what_was_asked_for(fake_driver, tmp_path) -> None:
    code = """
map = core.encode_tensor_map(address=4096, dtype=2, sizes=[768, 1000], strides=[800], box=[64, 128],
                             swizzle=128)
core.encode_tensor_map(address=16, dtype=4, sizes=[16, 224, 3], strides=[16, 3584], box=[16, 1, 3],
                       swizzle=0)
core.encode_tensor_map(address=16, dtype=3, sizes=[2**32], strides=[], box=[8], swizzle=32)
out = map.hex()
"""
    out, calls = run(code, fake_driver, tmp_path / "log")
    assert out == "a5" * 128
    rest = "interleave 0 swizzle {} promotion 2 fill 0"
    head = "cuTensorMapEncodeTiled type"
    assert calls == [
        f"{head} 6 at 4096 sizes 768 1000 strides 1600 box 64 128 steps 1 1 {rest.format(3)}",
        f"{head} 0 at 16 sizes 16 224 3 strides 16 3584 box 16 1 3 steps 1 1 1 {rest.format(0)}",
        f"{head} 9 at 16 sizes {2**32} strides box 8 steps 1 {rest.format(1)}",
    ]


GOOD_MAP = dict(address=4096, dtype=2, sizes=[64, 9], strides=[64], box=[64, 8], swizzle=128)


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(address=4104), "address must be a multiple of 16, got 4104"),
        (dict(address=0), "address must be that of data"),
        (dict(dtype=9), "dtype must be a code"),
        (dict(sizes=[0, 9]), r"sizes must be from 1 to 2^32, got 0"),
        (dict(sizes=[2**32 + 1, 9]), "sizes must be from 1"),
        (dict(strides=[65]), "strides must be multiples of 16 bytes below 2^40 bytes, got 65"),
        (dict(strides=[-64]), "strides must be"),
        (dict(strides=[2**39]), "strides must be"),
        (dict(strides=[]), "strides must have one number less than sizes"),
        (dict(box=[64]), "box as many"),
        (dict(box=[64, 257]), "box must be from 1 to 256, got 257"),
        (dict(box=[72, 8]), "box[0] must be no wider than the swizzle, got 72"),
        (dict(box=[9, 8], swizzle=0), "box[0] must be a multiple of 16 bytes, got 9"),
        (dict(swizzle=16), "swizzle must be 0, 32, 64 or 128, got 16"),
        (dict(sizes=[9] * 6, strides=[64] * 5, box=[8] * 6), "sizes must be 1 to 5 numbers, got 6"),
        (dict(sizes=[], strides=[], box=[]), "strides must have one number less"),
    ],
)
def test_what_tma_cannot_do_is_named(changes, expected) -> None:
    with pytest.raises(ValueError) as error:
        core.encode_tensor_map(**(GOOD_MAP | changes))
    assert expected in str(error.value)


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute",
                                  "cuDevicePrimaryCtxRetain", "cuInit", "cuDeviceGet"])  # fmt: skip
def test_errors_of_loading_are_the_driver_s_words(fake_driver, tmp_path, call) -> None:
    failing = f"{call}={NO_KERNEL_IMAGE}"
    out, _ = run(CAUGHT.format(LOAD), fake_driver, tmp_path / "log", FAKE_CUDA_FAIL=failing)
    assert out == (
        f"RuntimeError: {call}: CUDA_ERROR_NO_BINARY_FOR_GPU (209): "
        "no kernel image is available for execution on the device"
    )


def test_errors_of_a_launch_are_the_driver_s_words(fake_driver, tmp_path) -> None:
    code = LOAD + LAUNCH + CAUGHT.format("launch()")
    out, _ = run(code, fake_driver, tmp_path / "log", FAKE_CUDA_FAIL="cuLaunchKernelEx=719")
    assert out == "RuntimeError: cuLaunchKernelEx: error (719): unknown to this driver"


def test_a_launch_without_a_kernel_is_an_error(fake_driver, tmp_path) -> None:
    code = LOAD + LAUNCH + CAUGHT.format("launch(kernel=0)")
    assert "kernel has no data" in str(run(code, fake_driver, tmp_path / "log")[0])


def test_without_a_driver_everything_says_so(tmp_path) -> None:
    problem = run("out = core.gpu_problem()", None, tmp_path / "log")[0]
    if not problem:
        pytest.skip("this machine has a CUDA driver")
    assert problem == "no CUDA driver"
    for call in (LOAD, f"core.encode_tensor_map(**{GOOD_MAP})"):
        assert run(CAUGHT.format(call), None, tmp_path / "log")[0] == "RuntimeError: no CUDA driver"


def test_an_old_driver_is_told_what_it_lacks(tmp_path) -> None:
    source = tmp_path / "old.cpp"
    source.write_text(
        'extern "C" int cuDriverGetVersion(int* version) { *version = 11080; return 0; }\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", tmp_path / "libcuda.so.1"], check=True)
    out, _ = run("out = core.gpu_problem()", tmp_path, tmp_path / "log")
    assert out == (
        "the CUDA driver must be for CUDA 12.0 or newer, got one for 11.8, which has no cuInit: "
        "update the driver"
    )
