"""What ends a run, what the user is told, and that the same command goes on without loss.

Others of docs/first_hour.md's list stand beside what they test: tests/train/test_signals.py (a
process killed or asked to stop), tests/data/test_cache_faults.py (cut and altered shards, a full
disk), tests/train/test_run.py (NaN in the loss or the weights, unreadable files).
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import torch
from PIL import Image

from clustermim_fast import api, checkpoint, cli, data, train
from clustermim_fast.tokenizers import load_tokenizer
from tests.shapes import TINY, draw_folder
from tests.train.runs import states_equal

QUIET = {"say": lambda line: None, "report": False, "export": False}
PER_EPOCH = {"log.checkpoint_every_epochs": 1}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("data") / "shapes", 16)


@pytest.fixture
def run_of(shapes, tmp_path, threads):
    """`run_of("name", **settings)`: a run of two epochs, pixels as targets."""
    threads(1)

    def call(name, **options):
        settings = {"data": shapes, "method": "mae", **PER_EPOCH, **TINY, **QUIET, **options}
        return api.pretrain(out=tmp_path / name, **settings).run_dir

    return call


def writes_checkpoints(path, told):
    """Checkpoint after checkpoint, each number told once it should last."""
    torch.set_num_threads(1)
    for number in range(10**6):
        weights = torch.full((400, 500), float(number))
        checkpoint.save_checkpoint(path, {"step": number, "a": weights, "b": [weights + 1]})
        os.write(told, number.to_bytes(8, "little"))


def kill_while_writing(path, moment):
    """SIGKILL ``moment`` seconds after the first checkpoint: the last number that was told."""
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            writes_checkpoints(path, send)
        finally:
            os._exit(1)
    os.close(send)
    numbers = os.read(receive, 8)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    while more := os.read(receive, 8 * 1024):
        numbers += more
    os.close(receive)
    return int.from_bytes(numbers[-8:], "little")


@pytest.mark.parametrize("moments", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments_of_a_checkpoint(moments, tmp_path):
    """What was told is whole, or what came after it; half a file never has the name."""
    choose = random.Random(moments)
    path, halves = tmp_path / "last.pt", 0
    for _ in range(moments):
        told = kill_while_writing(path, choose.uniform(0, 0.05))
        state = checkpoint.load_checkpoint(path)
        assert state["step"] in (told, told + 1)  # replaced, and killed before it was told
        assert (state["a"] == state["step"]).all()
        assert (state["b"][0] == state["step"] + 1).all()
        halves += any(tmp_path.glob(".*.partial"))
        checkpoint.remove_partial(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    assert halves > moments // 4  # or the moments were none of writing


def typed(shapes, **more):
    """The settings of `run_of` as a command has them."""
    settings = {"data": shapes, "method": "mae", "report": "no", "export": "no"}
    return [f"{key}={value}" for key, value in (settings | PER_EPOCH | TINY | more).items()]


def in_a_process(**more):
    """Options of a process that imports this package and computes in one thread."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("CLUSTERMIM_DEBUG", None)
    return {"env": environment, "text": True, "check": False, **more}


def test_a_disk_that_fills_up_loses_nothing(run_of, shapes, tmp_path):
    """It stops at the checkpoint that does not fit, and the same command ends as if undisturbed."""
    whole = run_of("whole", epochs=1)
    size = (whole / "checkpoints" / "last.pt").stat().st_size
    shutil.copytree(tmp_path / "whole", tmp_path / "full")
    settings = typed(shapes, epochs=1, resume="restart", out=tmp_path / "full")
    command = [sys.executable, "-m", "clustermim_fast", "pretrain", *settings]
    limit = (size - 1000, resource.RLIM_INFINITY)  # bytes of a file: as a full disk, but EFBIG
    full = subprocess.run(
        command,
        **in_a_process(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, timeout=300),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert full.returncode == 1
    assert "last.pt cannot be written (File too large): the disk is full" in full.stderr
    assert "the same command goes on" in full.stderr
    run_of("full", epochs=1, resume="restart")
    assert states_equal(whole, tmp_path / "full")


TMPFS = """
set -e
mount -t tmpfs -o size={size} tmpfs {place}
{python} -m clustermim_fast pretrain {settings} out={place}/run 2> {errors} && exit 9 || true
mount -o remount,size=1g {place}
{python} -m clustermim_fast pretrain {settings} out={place}/run
cp {place}/run/checkpoints/last.pt {result}
"""


@pytest.mark.slow
def test_a_real_file_system_that_is_full(run_of, shapes, tmp_path):
    """The same on a tmpfs of a few kB, which is then enlarged."""
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("unshare -rm is not allowed here, and so no file system can be mounted")
    whole = run_of("whole")
    (tmp_path / "disk").mkdir()
    size = (whole / "checkpoints" / "last.pt").stat().st_size
    script = TMPFS.format(
        size=int(1.7 * size),
        place=tmp_path / "disk",
        python=sys.executable,
        settings=" ".join(typed(shapes)),
        errors=tmp_path / "errors",
        result=tmp_path / "last.pt",
    )
    command = ["unshare", "-rm", "sh", "-c", script]
    assert subprocess.run(command, **in_a_process()).returncode == 0
    message = (tmp_path / "errors").read_text().splitlines()[-1]
    assert "cannot be written (No space left on device): the disk is full" in message
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "last.pt", tmp_path / "again" / "checkpoints" / "last.pt")
    assert states_equal(whole, tmp_path / "again")


def test_a_folder_that_may_not_be_written_is_refused_before_the_fit(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(api.pretraining, "prepare_tokenizer", None)  # would be called to fit
    monkeypatch.setattr(os, "access", lambda place, mode: False)  # root may write everywhere
    for more in ({}, {"dry_run": True}):
        with pytest.raises(checkpoint.WriteError, match="nothing may be written there: give anoth"):
            api.pretrain(data=shapes, out=tmp_path / "run", say=print, **TINY, **more)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, and"):
        api.pretrain(data=shapes, out=tmp_path / "file" / "run", **QUIET, **TINY)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_vanish_while_it_trains(shapes, tmp_path, workers, monkeypatch, capsys):
    """A disk that is gone ends the run; when it is back, the same command loses nothing."""
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    folder, away = shutil.copytree(shapes, tmp_path / "shapes"), tmp_path / "away"
    settings = {**TINY, **PER_EPOCH, "method": "mae", "data": folder, "report": "no"}
    settings |= {"export": "no", "data.in_memory": "no", "workers": workers, "epochs": 3}
    texts = [f"{key}={value}" for key, value in settings.items()]
    saved = train.loop.save_state

    def save(*arguments):
        path = saved(*arguments)
        folder.rename(away)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "save_state", save)
        assert cli.main(["pretrain", *texts, f"out={tmp_path / 'cut'}"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"the images of {folder} are gone" in message
    assert "the same command goes on from the last checkpoint" in message
    assert len(message) < 400
    away.rename(folder)
    assert train.load_run(tmp_path / "cut").epoch == 1
    for name in ("cut", "whole"):
        assert cli.main(["pretrain", *texts, f"out={tmp_path / name}"]) == 0
    assert states_equal(tmp_path / "whole", tmp_path / "cut")


def test_one_file_that_is_gone_is_skipped(shapes, tmp_path):
    folder = shutil.copytree(shapes, tmp_path / "shapes")
    images = data.open_images(folder, size=16, in_memory="no")
    (folder / "cross" / "003.png").unlink()
    assert images.images([3]).shape == (1, 3, 16, 16)
    assert [path.name for path, _ in images.broken] == ["003.png"]


def error_of(capsys, *command):
    assert cli.main([*map(str, command)]) == 1
    lines = capsys.readouterr().err.splitlines()
    return lines[-1]


@pytest.mark.parametrize("harm", ["cut", "other"])
def test_a_broken_tokenizer_file(harm, shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    file = tmp_path / "tok.safetensors"
    api.fit_tokenizer(file, data=shapes, say=lambda line: None, img_size=16, patch_size=4,
                      num_clusters=4)  # fmt: skip
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        file.write_bytes(b"\x80\x04not a tokenizer")
    settings = [f"{k}={v}" for k, v in TINY.items() if k != "num_clusters"]
    message = error_of(capsys, "pretrain", f"data={shapes}", f"tokenizer={file}", *settings)
    assert "is not a whole safetensors file" in message
    assert "copy or fit it again" in message


def test_a_runs_own_broken_tokenizer_is_made_again(shapes, tmp_path, threads):
    threads(1)
    options = {"data": shapes, **QUIET, **PER_EPOCH, **TINY}
    whole = api.pretrain(out=tmp_path / "whole", **options).run_dir
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    (cut / "tokenizer.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="may be deleted: the same command makes it"):
        api.pretrain(out=cut, **options)
    (cut / "tokenizer.safetensors").unlink()
    assert api.pretrain(out=cut, **options).step == 6
    first, second = (load_tokenizer(run / "tokenizer.safetensors") for run in (whole, cut))
    assert first.fingerprint() == second.fingerprint()


def test_wrong_counts_of_classes_and_clusters(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    run = api.pretrain(data=shapes, out=tmp_path / "run", **QUIET, **TINY).run_dir
    settings = [f"{k}={v}" for k, v in TINY.items() if k != "num_clusters"]
    command = ["pretrain", f"data={shapes}", f"out={run}", "num_clusters=9", *settings]
    message = error_of(capsys, *command)
    assert "tokenizer.num_clusters 8 there, 9 here" in message
    assert "resume=restart" in message

    other = draw_folder(tmp_path / "other" / "test", 2).parent
    shutil.copytree(shapes, other / "train")
    shutil.copytree(other / "test" / "cross", other / "test" / "ring")
    message = error_of(capsys, "evaluate", "knn", run, f"data={other}")
    assert "has classes that" in message
    assert "lacks: ring" in message


def test_pictures_of_floating_point_are_named(tmp_path, capsys, monkeypatch):
    """A NaN can only be in such a picture: it is listed, never trained on."""
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)).save(folder / "nan.tiff")
    settings = [f"{key}={value}" for key, value in TINY.items()]
    message = error_of(capsys, "pretrain", f"data={folder}", f"out={tmp_path / 'run'}", *settings)
    assert "none of the images" in message
