"""`evaluate attention` and `evaluate unlabeled` on a run, on a folder without labels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

from PIL import Image

import clustermim_fast
from clustermim_fast import api, cli
from tests.shapes import TINY, draw_folder

QUIET = {"say": lambda line: None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("looking")
    shapes = draw_folder(root / "shapes", 8)
    settings = TINY | {"epochs": "1"}
    clustermim_fast.pretrain(
        data=shapes, out=root / "run", export=False, report=False, **settings, **QUIET
    )
    return root / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def flat(tmp_path):
    """10 images in one folder: no labels."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, path in enumerate(sorted(draw_folder(tmp_path / "made", 4).rglob("*.png"))[:10]):
        shutil.copy(path, folder / f"{number}.png")
    return folder


def test_a_report_leaves_a_broken_result_out(run):
    """A watched run would otherwise end with it."""
    folder = run / "eval"
    folder.mkdir(exist_ok=True)
    row = {"name": "pretrained", "accuracy_percent": None}
    (folder / "knn.json").write_text(json.dumps({"rows": [row]}))
    (folder / "linear.json").write_text("{")
    text = api.report_run(run).read_text(encoding="utf-8")
    assert "knn.json: accuracy_percent of pretrained: expected a number, got null" in text
    assert "linear.json cannot be read as JSON" in text


def test_attention_of_a_run(run, capsys):
    assert cli.main(["evaluate", "attention", str(run), "images=6", "batch_size=4"]) == 0
    printed = capsys.readouterr().out
    assert "16 patches (ln 16 = 2.77), 2 heads" in printed
    result = json.loads((run / "eval" / "attention.json").read_text())
    assert (result["images"], result["patches"], result["step"]) == (6, 16, 1)
    for name in ("pretrained", "random_init"):
        values = result["encoders"][name]["mean"]
        assert set(values) == set(result["statistics"])
        assert all(len(row) == 2 for row in values.values())
        # What a query gives to [cls] and to the patches is all it has.
        total = np.array(values["cls_to_cls"]) + 16 * np.array(values["cls_to_patch"])
        np.testing.assert_allclose(total, 1, rtol=1e-5)
    assert result["encoders"]["pretrained"] != result["encoders"]["random_init"]
    card = result["card"]
    assert card["config"] == json.loads((run / "config.json").read_text())
    assert {"commit", "versions", "weights_sha256", "machine", "finished"} <= card.keys()
    assert len(card["data"]["fingerprint"]) == 64
    picture = Image.open(run / "figures" / "attention.png")
    assert np.asarray(picture.convert("L")).std() > 0


def test_unlabeled_images_elsewhere(run, flat, tmp_path):
    result = api.evaluate_unlabeled(
        run, data=str(flat), queries=3, neighbours=2, out=tmp_path / "look" / "my", **QUIET
    )
    assert (result["images"], result["split"]) == (10, "all")
    for name, width in (("pretrained", 32), ("random_init", 32), ("raw_pixels", 768)):
        assert result["encoders"][name]["width"] == width
        assert 1 <= result["encoders"][name]["rankme"] <= 10
    names = {path.name for path in (tmp_path / "look").iterdir()}
    assert names == {
        "my.json", "my_neighbours.png", "my_neighbours_random_init.png", "my_frequency.png"
    }  # fmt: skip
    assert not (run / "eval" / "unlabeled.json").exists()
    assert json.loads((tmp_path / "look" / "my.json").read_text()) == result
    here = api.evaluate_unlabeled(run, images=10, out=tmp_path / "own", **QUIET)["card"]
    assert here["weights_sha256"] == result["card"]["weights_sha256"]
    assert here["data"]["fingerprint"] != result["card"]["data"]["fingerprint"]


def test_pictures_of_looks_are_compared(run):
    api.evaluate_unlabeled(run, images=12, queries=2, neighbours=3, **QUIET)
    page = api.compare_runs([run], out=run / "page.html", **QUIET).read_text(encoding="utf-8")
    assert "Nearest neighbours" in page
    assert "Spatial frequencies" in page
    assert "unlabeled" not in page  # no accuracies: no column of the table
    report = api.report_run(run).read_text(encoding="utf-8")
    for name in ("neighbours", "neighbours random init", "frequency"):
        assert f'alt="{name}"' in report
    assert 'alt="attention"' not in report


def test_attention_maps_of_a_probe(run, tmp_path, capsys):
    """The command draws them, the report and the comparison show them; of another evaluation no
    picture stays."""
    (run / "report.html").touch()  # one there is is written again
    quick = ["epochs=1", "learning_rates=1", "probe_batch_size=8", "pool=abmilp"]
    assert cli.main(["evaluate", "attentive", str(run), *quick]) == 0
    drawn = run / "figures" / "attentive_maps.png"
    assert f"where AbMILP and [cls] look: {drawn}" in capsys.readouterr().out
    with Image.open(drawn) as picture:
        assert picture.height > picture.width * 0.8  # some test images below each other
    for page in (run / "report.html", api.compare_runs([run], out=run / "page.html", **QUIET)):
        assert "What the attentive probe looks at" in page.read_text(encoding="utf-8")
    again = {"epochs": 1, "learning_rates": (1.0,), "probe_batch_size": 8, **QUIET}
    few = {"shots": "3", "out": str(tmp_path / "elsewhere.json"), "pool": "abmilp"}
    api.evaluate_run("attentive", run, **few, **again)
    assert (tmp_path / "elsewhere_maps.png").is_file()
    api.evaluate_run("attentive", run, pool="mean", **again)
    assert not drawn.exists()


def test_refusals(run, flat):
    with pytest.raises(ValueError, match="fewer than the 10 images"):
        api.evaluate_unlabeled(run, data=str(flat), neighbours=10, **QUIET)
    with pytest.raises(ValueError, match=r"neighbours: expected at least 1 .* got 0"):
        api.evaluate_unlabeled(run, data=str(flat), neighbours=0, **QUIET)
    with pytest.raises(ValueError, match="images: expected"):
        api.evaluate_attention(run, images=-1, **QUIET)
    with pytest.raises(ValueError, match="no such run folder"):
        api.evaluate_attention("nowhere", **QUIET)
