"""`eval_every` and `watch`: what is seen while a run goes on, and that it changes nothing."""

from __future__ import annotations

import json
import math
import os
import re
import shutil

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import numpy as np
import torch
from PIL import Image

import clustermim_fast
from clustermim_fast import evaluate
from clustermim_fast.api import along
from clustermim_fast.data import open_images
from clustermim_fast.train import load_run
from tests.shapes import TINY, draw_folder
from tests.train.runs import rows, states_equal

RELOADS = 'http-equiv="refresh"'


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """train/ and test/ with classes."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_folder(root / "train", 16)
    draw_folder(root / "test", 5, seed=1)
    return root


@pytest.fixture
def pretrain(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(along, "SHARE", math.inf)

    def call(name, **options):
        given = {"data": shapes, "report": False, "export": False, "say": lambda line: None}
        return clustermim_fast.pretrain(out=tmp_path / name, **{**given, **TINY, **options}).run_dir

    return call


def epochs_of(run):
    return [json.loads(line) for line in (run / "eval" / "epochs.jsonl").read_text().splitlines()]


def test_looking_changes_nothing(pretrain, threads, shapes):
    """Weights, optimizer and every number of metrics.jsonl are those of a run nobody looked at."""
    threads(1)
    said = []
    plain = pretrain("plain")
    seen = pretrain("seen", eval_every=1, watch=True, say=said.append)
    assert states_equal(plain, seen)
    assert rows(plain) == rows(seen)

    # The numbers are those of the weights: the last ones are in the checkpoint.
    first, last = epochs_of(seen)
    assert [first["epoch"], last["epoch"]] == [1, 2]
    loaded = load_run(seen)
    bank, asked = (open_images(shapes, size=16, split=name) for name in ("train", "test"))
    norm = {"mean": loaded.config.data.mean, "std": loaded.config.data.std}
    known, features = (
        evaluate.encoder_features(loaded.model.encoder, part, batch_size=16, **norm)
        for part in (bank, asked)
    )
    labels, truth = (torch.from_numpy(part.labels) for part in (bank, asked))
    found = evaluate.knn_predict(known, labels, features, k=20).weighted
    assert last["knn_percent"] == pytest.approx(100 * float((found == truth).float().mean()))
    assert last["rankme"] == pytest.approx(evaluate.rankme(features), rel=1e-6)
    assert last["predicted_used"] == rows(seen)[-1]["predicted_used"]
    lines = [line for line in said if line.startswith("after epoch")]
    assert len(lines) == 2
    assert "of 15 held-out images by 48" in lines[1]
    assert "RankMe" in lines[1]


def test_the_page_while_it_trains_and_after(pretrain, tmp_path, monkeypatch):
    """Rewritten after each epoch, whole at any moment; it reloads itself only while it trains."""
    pages = []
    real = along.Along._watch

    def watch(self, epoch, model):
        picture = real(self, epoch, model)
        pages.append((self._folder / "report.html").read_text())
        return picture

    monkeypatch.setattr(along.Along, "_watch", watch)
    run = pretrain("run", watch="true", eval_every=1, method="mae")
    assert len(pages) == 2
    for page in pages:
        assert page.count(RELOADS) == 1
        assert "This run goes on" in page
        assert page.rstrip().endswith("</html>")
        assert 'alt="painting"' in page
        assert 'alt="evaluation"' in page
    ended = (run / "report.html").read_text()
    assert RELOADS not in ended
    assert "This run goes on" not in ended
    assert len(ended) > 0.9 * len(pages[-1])
    with Image.open(run / "figures" / "painting" / "image.png") as image:
        assert image.size == (8 * 118, 118)  # 16 px seven times, and a gap of 6


def test_a_run_that_stops_leaves_a_page_that_rests(pretrain, monkeypatch, tmp_path):
    real = along.Along.__call__

    def look(self, epoch, model):
        real(self, epoch, model)
        raise KeyboardInterrupt

    monkeypatch.setattr(along.Along, "__call__", look)
    with pytest.raises(KeyboardInterrupt):
        pretrain("run", watch=1, method="mae")
    text = (tmp_path / "run" / "report.html").read_text()
    assert 'alt="painting"' in text
    assert RELOADS not in text


def test_going_on_repeats_the_epochs_after_the_checkpoint(pretrain, tmp_path):
    options = {"eval_every": 1, "method": "mae", "epochs": 3}
    options |= {"log.keep": 3, "log.checkpoint_every_epochs": 1}
    run = pretrain("run", **options)
    whole = epochs_of(run)
    # as a kill after epoch 3, with the checkpoint of epoch 2
    kept = shutil.copytree(run, tmp_path / "two")
    folder = kept / "checkpoints"
    os.replace(folder / "epoch_0002.pt", folder / "last.pt")
    pretrain("two", **options)
    assert epochs_of(kept) == whole


def test_without_labels(tmp_path, pretrain):
    random = np.random.default_rng(0)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(20):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(flat / f"{number}.png")
    run = pretrain("run", data=flat, eval_every=2)
    (row,) = epochs_of(run)
    assert row["epoch"] == 2
    assert 1 <= row["rankme"] <= 20
    assert "knn_percent" not in row
    assert row["predicted_used"] >= 1


def test_labels_but_nothing_held_out(shapes, pretrain):
    run = pretrain("run", data=shapes / "train", eval_every=2, method="mae")
    (row,) = epochs_of(run)
    assert row["images"].startswith("10 others of the run's images")
    assert row["images"].endswith("by 38")  # 48, of which every fifth is asked
    assert 0 <= row["knn_low"] <= row["knn_percent"] <= row["knn_high"] <= 100


def test_the_page_costs_a_tenth_of_the_time_at_most(pretrain, monkeypatch):
    """Here an epoch is quicker than its page: after the first one only the last is drawn."""
    monkeypatch.setattr(along, "SHARE", 0.0)
    run = pretrain("run", watch=1, method="mae", epochs=4)
    drawn = sorted(path.name for path in (run / "figures" / "painting").glob("epoch_*.png"))
    assert drawn == ["epoch_00001.png", "epoch_00004.png"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ("empty", "no images below"),
        ("flat", "has no class sub-folders"),
        ("other classes", "has classes that .* lacks: disc_2"),
    ],
)
def test_test_images_that_cannot_be_asked_are_said(shapes, tmp_path, pretrain, changes, reason):
    """And the run goes on: it is asked about its own images, in log and report too."""
    data = shutil.copytree(shapes, tmp_path / "data")
    if changes == "empty":
        shutil.rmtree(data / "test")
        (data / "test").mkdir()
    elif changes == "flat":
        for number, file in enumerate(sorted((data / "test").rglob("*.png"))):
            shutil.move(file, data / "test" / f"{number}.png")
    else:
        (data / "test" / "disc").rename(data / "test" / "disc_2")
    said = []
    options = {"eval_every": 1, "method": "mae", "say": said.append, "report": True}
    run = pretrain("run", data=data, **options)
    told = [line for line in said if line.startswith("eval_every: ")]
    assert len(told) == 1
    assert re.search(reason, told[0])
    assert "others of the run's images" in told[0]
    assert all(re.search(reason, row["note"]) for row in epochs_of(run))
    page = (run / "report.html").read_text(encoding="utf-8")
    caption = page.partition('alt="evaluation"')[2].partition("</figcaption>")[0]
    assert re.search(reason, caption)


def test_nothing_held_out_is_no_failure(shapes, pretrain):
    """A folder without test/ is what most have."""
    said = []
    run = pretrain("run", data=shapes / "train", eval_every=2, method="mae", say=said.append)
    assert not [line for line in said if line.startswith("eval_every: ")]
    assert "note" not in epochs_of(run)[0]
