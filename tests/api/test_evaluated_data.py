"""What `evaluate_run()` reads: encoders, labels, folders and broken files."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import torch

from clustermim_fast import api
from clustermim_fast.train import load_run, random_model
from tests.shapes import draw_folder


def test_random_init_row_is_the_same_network_untrained(finished, monkeypatch):
    """Same shapes, the weights the run began with, and not those it ended with."""
    seen = {}

    def spy(subject, **options):
        seen.update(subject.encoders)
        raise KeyboardInterrupt  # only the encoders are of interest

    monkeypatch.setattr(api.evaluating.evaluate, "knn", spy)
    with pytest.raises(KeyboardInterrupt):
        api.evaluate_run("knn", finished, cache=False)
    trained, untrained = (seen[name].state_dict() for name in ("pretrained", "random_init"))
    begun = random_model(load_run(finished).config).encoder.state_dict()
    assert trained.keys() == untrained.keys()
    moved = 0
    for name in trained:
        assert trained[name].shape == untrained[name].shape
        assert torch.equal(untrained[name], begun[name])
        moved += not torch.equal(trained[name], untrained[name])
    assert moved > len(trained) / 2


def test_evaluates_an_exported_encoder(finished, shapes):
    result = api.evaluate_run("knn", finished / "export", data=str(shapes), k=5, say=lambda _: None)
    ours = api.evaluate_run("knn", finished, data=str(shapes), k=5, cache=False, say=lambda _: None)
    assert result["rows"][0] == ours["rows"][0]
    assert result["rows"][2] == ours["rows"][2]


def test_no_labels_is_refused_with_what_is_needed(finished, shapes, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(shapes.rglob("*.png"))[:10]):
        shutil.copyfile(path, flat / f"{number}.png")
    with pytest.raises(ValueError, match=r"needs labels.*DIR/<class>/"):
        api.evaluate_run("knn", finished, data=str(flat))
    for path in sorted(flat.iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match=r"needs labels.*DIR/<class>/"):  # not "cannot be read"
        api.evaluate_run("knn", finished, data=str(flat))
    single = draw_folder(tmp_path / "single", 1)
    with pytest.raises(ValueError, match="at most 1 images of a class"):
        api.evaluate_run("knn", finished, data=str(single))


def test_test_classes_are_matched_by_name(finished, tmp_path):
    """A class that is missing from the test folder must not shift the numbers of the others."""
    root = tmp_path / "split"
    draw_folder(root / "train", 12)
    draw_folder(root / "test", 6, seed=1)
    full = api.evaluate_run("knn", finished, data=str(root), k=3, cache=False, say=lambda _: None)
    assert full["notes"] == []
    shutil.rmtree(root / "test" / "cross")
    part = api.evaluate_run("knn", finished, data=str(root), k=1, cache=False, say=lambda _: None)
    assert part["test_images"] == 12
    shutil.copytree(root / "train", root / "same")
    shutil.rmtree(root / "test")
    (root / "same").rename(root / "test")
    shutil.rmtree(root / "test" / "cross")
    same = api.evaluate_run("knn", finished, data=str(root), k=1, cache=False, say=lambda _: None)
    assert same["rows"][2]["accuracy_percent"] == 100  # each image is its own nearest neighbour
    (root / "test" / "disc").rename(root / "test" / "ellipse")
    with pytest.raises(ValueError, match="lacks: ellipse"):
        api.evaluate_run("knn", finished, data=str(root))


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_files_are_noted(finished, tmp_path, monkeypatch, in_memory):
    """From the disk, the next file stands in under the label of the broken one: never unsaid."""
    folder = draw_folder(tmp_path / "shapes", 6)
    for name in ("train", "test"):
        shutil.copytree(folder, tmp_path / "split" / name)
    (tmp_path / "split" / "test" / "cross" / "005.png").write_text("text")
    if not in_memory:
        monkeypatch.setattr("clustermim_fast.data.images.IN_MEMORY_LIMIT", 0)
    data = str(tmp_path / "split")
    said = []
    run = shutil.copytree(finished, tmp_path / "run")
    for _ in range(2):  # the second time with features from the cache
        result = api.evaluate_run("knn", run, data=data, k=3, say=said.append)
    (note,) = result["notes"]
    assert note.startswith("1 unreadable files of")
    assert note.endswith("left out." if in_memory else "under the old label.")
    assert any(note in line for line in said)
    assert result["test_images"] == (17 if in_memory else 18)
