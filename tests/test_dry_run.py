"""`dry_run=true` and memory that does not suffice."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

import torch
from PIL import Image

import clustermim_fast
from clustermim_fast import cli
from clustermim_fast.api import trying
from clustermim_fast.train.memory import is_out_of_memory, smaller_batch
from tests.shapes import TINY, draw_folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("data") / "shapes", 16)


def test_five_steps_leave_a_sheet_and_nothing_else(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [f"{key}={value}" for key, value in TINY.items()]
    assert cli.main(["pretrain", f"data={shapes}", "--dry_run", "epochs=40", *settings[:3],
                     *settings[4:]]) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert "images/s" in told["speed"]
    assert "for 40 epochs of 3 steps" in told["whole"]
    assert "GiB" in told["memory"]
    # blr 1.5e-3 of images below 48 px, for 16 of 256 images; 12 of the 120 steps are warm-up
    assert "7.81e-06 at step 1, 9.38e-05 after 12 steps" in told["lr"]
    assert "M in the encoder" in told["parameters"]
    assert any("stands in for the run's, K = 8" in line for line in lines)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert [str(path) for path in files] == ["runs/clustermim_shapes.dry_run.png"]
    assert told["crops"].split()[1] == str(files[0])
    # 8 lines of an image and 3 x (crop, visible), 128 px and gaps of 6, below the titles
    with Image.open(files[0]) as sheet:
        assert sheet.size == (7 * 134 + 6, 8 * 134 + 6 + 27)


def test_the_sheet_lies_beside_the_folder(shapes, tmp_path, monkeypatch):
    given = {"data": shapes, "dry_run": True, "say": lambda line: None, **TINY, "method": "mae"}
    clustermim_fast.pretrain(out=f"{tmp_path}/run/", **given)
    assert [path.name for path in tmp_path.iterdir()] == ["run.dry_run.png"]
    (tmp_path / "file").touch()
    monkeypatch.setattr(trying, "run", None)  # refused before a step
    with pytest.raises(ValueError, match="file is a file"):
        clustermim_fast.pretrain(out=tmp_path / "file" / "run", **given)


def test_its_steps_are_the_runs(shapes, tmp_path, threads):
    """Same weights, images and masks: the first loss is the run's, bit for bit; not square."""
    threads(1)
    sizes = TINY | {"img_size": "16x24"}
    options = {"data": shapes, "method": "mae", "out": tmp_path / "run", "report": False,
               "export": False, "say": lambda line: None} | sizes  # fmt: skip
    tried = clustermim_fast.pretrain(**options, dry_run=True)
    assert tried.step == 5
    assert not (tmp_path / "run").exists()
    with Image.open(tmp_path / "run.dry_run.png") as sheet:
        assert sheet.size[0] == 7 * (24 * 6 + 6) + 6  # at least 128 px wide: six times
    clustermim_fast.pretrain(**options, **{"log.every_steps": 1})
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == tried.metrics["losses"][0]
    assert first["lr"] == tried.metrics["first_lr"]


def test_a_warm_up_longer_than_the_run_is_refused_as_in_the_run(shapes, tmp_path):
    with pytest.raises(ValueError, match="warmup_epochs"):
        clustermim_fast.pretrain(
            data=shapes, out=tmp_path / "run", dry_run=True, steps=6, warmup_epochs=3,
            say=lambda line: None, **TINY,
        )  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError()],
)
@pytest.mark.parametrize("dry", ["yes", "no"])
def test_out_of_memory_names_the_batch_to_try(error, dry, shapes, tmp_path, monkeypatch, capsys):
    def step(*arguments, **options):
        raise error

    monkeypatch.setattr("clustermim_fast.train.step.forward_step", step)
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    settings = [f"{key}={value}" for key, value in TINY.items() if key != "batch_size"]
    command = ["pretrain", f"data={shapes}", f"out={tmp_path / 'run'}", f"dry_run={dry}",
               "method=mae", "batch_size=12", "accum_iter=2", *settings]  # fmt: skip
    assert cli.main(command) == 1
    message = capsys.readouterr().err
    assert "batch_size=6 accum_iter=4 keeps the effective batch (24)" in message
    assert message.count("\n") == 1


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("batch", "accumulate", "repeats", "expected"),
    [
        (256, 1, 1, (128, 2)),
        (32, 8, 1, (16, 16)),
        (100, 3, 1, (50, 6)),
        (7, 2, 1, (2, 7)),
        (12, 1, 3, (6, 2)),
        (6, 1, 3, (3, 2)),
        (3, 1, 3, None),
        (1, 4, 1, None),
    ],
)
def test_smaller_batch(batch, accumulate, repeats, expected):
    assert smaller_batch(batch, accumulate, repeats) == expected
