"""The page on several runs: what the folders hold, nothing invented, missing results named."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

from PIL import Image

from clustermim_fast import cli
from clustermim_fast.api import compare_runs
from clustermim_fast.api.comparing import _read
from clustermim_fast.report.comparison import differing_settings
from clustermim_fast.report.results import Column, lines_of, protocol_notes, result_columns
from tests.report.test_report import Page

QUIET = {"say": lambda line: None}


def result(kind, pretrained, random=40.0, **changes):
    rows = [("pretrained", pretrained), ("random_init", random), ("raw_pixels", 33.3)]
    return {
        "kind": kind,
        "pool": "mean",
        "settings": {"k": 20},
        "data": "/images",
        "train_images": 100,
        "test_images": 50,
        "classes": 10,
        "step": 20,
        "rows": [
            {"name": name, "accuracy_percent": value, "interval95_percent": [value - 5, value + 4]}
            for name, value in rows
        ],
        **changes,
    }


KNN = "eval/knn.json"


def broken(**changes):
    """A file whose first row has these values."""
    values = result("knn", 60.0)
    values["rows"][0].update(changes)
    return json.dumps(values).encode()


@pytest.fixture
def folder(tmp_path):
    """folder(name, method, results) -> a run folder with a config, two lines of metrics and them.

    Batches of 8; 10 steps at 16 images/s, then 10 at 40: 5 + 2 seconds.
    """

    def make(name, method="clustermim", results=(), figures=(), **settings):
        run = tmp_path / name
        (run / "eval").mkdir(parents=True)
        config = {
            "method": method,
            "out": name,
            "optim": {"epochs": 4, "batch_size": 8, "accumulate": 1},
            "model": {"encoder": "vit_tiny_patch16_224", "embed_dim": 32, "depth": 2},
            **settings,
        }
        (run / "config.json").write_text(json.dumps(config))
        tokens = {"loss_floor_lnK": 2.08} if method == "clustermim" else {}
        with open(run / "metrics.jsonl", "w") as file:
            for step, speed in ((10, 16.0), (20, 40.0)):
                line = {"step": step, "epoch": step / 10, "loss": 2.0, "images_per_s": speed}
                file.write(json.dumps(line | tokens) + "\n")
        for kind, values in dict(results).items():
            (run / "eval" / f"{kind}.json").write_text(json.dumps(values))
        for figure in figures:
            (run / "figures").mkdir(exist_ok=True)
            Image.new("RGB", (12, 8), "red").save(run / "figures" / f"{figure}.png")
        return run

    return make


def read(*folders):
    return [_read(folder, folder.name) for folder in folders]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"[]", "config.json is not the config of a run"),
        ("config.json", b'{"model": null}', "config.json is not the config of a run"),
        ("config.json", b"\xff", "config.json cannot be read as JSON"),
        ("eval/knn.json", b"\xff", "knn.json cannot be read as JSON"),
        (
            KNN,
            broken(accuracy_percent=None),
            "accuracy_percent of pretrained: .* got null; measure",
        ),
        (KNN, broken(accuracy_percent="60"), 'accuracy_percent of .* a number, got "60"'),
        (KNN, broken(accuracy_percent=float("nan")), "expected a number, got NaN"),
        (KNN, broken(seed_deviation_points=None), "seed_deviation_points of pretrained: expected"),
        (
            KNN,
            broken(interval95_percent=[None, 2]),
            "interval95_percent of pretrained: expected two",
        ),
        (KNN, broken(interval95_percent=[1]), "expected two numbers, got .1."),
        (KNN, broken(name=["a"]), "name of a row: expected text, got"),
        (KNN, json.dumps(result("knn", 60.0, step="10")).encode(), 'step: .* integer, got "10"'),
        (KNN, json.dumps(result("knn", 60.0, step=None)).encode(), "step: .* integer, got null"),
    ],
)
def test_what_is_no_run_is_named(folder, tmp_path, file, content, message):
    run = folder("a")
    (run / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        compare_runs([run], out=tmp_path / "page.html", **QUIET)


def test_lines_of_metrics_that_are_not_whole_are_left_out(folder, tmp_path):
    run = folder("a")
    whole = _read(run, "a").metrics
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'3\n"step"\n{"step": 9}\n{"step": null, "epoch": 3, "loss": 2.0}\n')
        file.write(b'{"step": 30, "epoch": 3, "images_per_s": "x"}\n\xff\n{"st')
    assert _read(run, "a").metrics == whole
    compare_runs([run], out=tmp_path / "page.html", **QUIET)


def test_a_line_a_run_and_baselines_that_agree_are_one(folder):
    both = read(
        folder("a", results={"knn": result("knn", 60.0), "linear": result("linear", 70.0)}),
        folder("b", "mae", results={"knn": result("knn", 55.0)}),
    )
    knn, linear = Column("knn", "mean"), Column("linear", "mean")
    assert result_columns(both) == [knn, linear, Column("attentive", "")]
    lines = list(lines_of(both))
    assert [line.title for line in lines] == ["a", "b", "random initialisation", "raw pixels"]
    assert lines[0].cells[knn].accuracy == 60.0
    assert lines[0].cells[knn].interval == (55.0, 64.0)
    assert linear not in lines[1].cells
    assert lines[2].cells[knn].text == "40.0"
    assert lines[2].cells[linear].text == "40.0"


def test_random_initialisations_that_differ_stay_apart(folder):
    runs = read(
        folder("a", results={"knn": result("knn", 60.0)}),
        folder("b", results={"knn": result("knn", 55.0, random=41.0)}),
        folder("c", results={"knn": result("knn", 50.0)}, model={"encoder": "resnet18"}),
    )
    lines = [line for line in lines_of(runs) if line.title == "random initialisation"]
    assert [line.cells[Column("knn", "mean")].text for line in lines] == ["40.0", "41.0", "40.0"]
    assert [line.detail.rpartition("; ")[2] for line in lines] == ["of a", "of b", "of c"]
    assert lines[2].detail.startswith("resnet18")


def test_poolings_are_columns(folder):
    rows = [
        {
            "name": "pretrained",
            "pooling": pooling,
            "accuracy_percent": value,
            "seed_deviation_points": 0.26,
        }
        for pooling, value in (("abmilp", 66.0), ("cls", 61.0))
    ]
    (run,) = read(folder("a", results={"attentive": {"kind": "attentive", "rows": rows}}))
    (line, *_) = lines_of([run])
    assert line.cells[Column("attentive", "abmilp")].accuracy == 66.0
    assert line.cells[Column("attentive", "cls")].accuracy == 61.0
    assert line.cells[Column("attentive", "cls")].interval is None
    assert line.cells[Column("attentive", "cls")].remark == "± 0.3 between seeds"


def test_a_network_without_cls_misses_none(folder, tmp_path):
    def attentive(*pools):
        rows = [{"name": "pretrained", "pooling": p, "accuracy_percent": 60.0} for p in pools]
        return {"attentive": {"kind": "attentive", "rows": rows}}

    vit = folder("vit", results=attentive("abmilp", "cls", "attn_mean"))
    plain = folder("plain", results=attentive("abmilp"))
    cnn = folder("cnn", results=attentive("abmilp"), model={"encoder": "resnet10t"})
    own = folder("own", results=attentive("abmilp"), model={"encoder": "not_of_this_timm"})
    page = compare_runs([vit, plain, cnn, own], out=tmp_path / "page.html", **QUIET).read_text()
    for pool in ("cls", "attn_mean"):
        assert f"evaluate attentive {plain} pool={pool}" in page
        assert f"evaluate attentive {own} pool={pool}" in page
        assert f"evaluate attentive {cnn} pool={pool}" not in page


def test_few_labels_are_columns_with_their_command(folder):
    (run,) = read(folder("a"))
    for stem, title, words in (
        ("knn_10pct", "k nearest neighbours, 10%", "knn {} shots=10%"),
        ("linear_5_per_class", "linear probe, 5 a class", "linear {} shots=5"),
        ("attentive", "attentive probe", "attentive {}"),
    ):
        assert Column(stem, "mean").title == title
        assert Column(stem, "mean").command(run) == f"clustermim evaluate {words.format(run.path)}"
    assert Column("knn", "cls").command(run).endswith(" pool=cls")


def test_budget(folder):
    run = folder("a")
    (read_run,) = read(run)
    assert read_run.images_seen == 160
    assert read_run.seconds == pytest.approx(80 / 16 + 80 / 40)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["images_seen"] = 120  # a batch cannot be larger than the set: the run's word counts
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (read_run,) = read(run)
    assert read_run.images_seen == 120
    assert read_run.seconds == pytest.approx(60 / 16 + 60 / 40)


def test_page(folder, tmp_path):
    a = folder("run <a>", results={"knn": result("knn", 61.26)}, figures=["predictions_1"])
    b = folder("b", "mae", results={"knn": result("knn", 55.0, step=10)}, figures=["predictions_1"])
    page = compare_runs([a, b], out=tmp_path / "pages" / "all.html", **QUIET)
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    shown = " ".join(" ".join(parsed.texts).split())
    for expected in ("61.3", "56.3 to 65.3", "random initialisation", "2 of 4", "160", "at step 10",
                     f"clustermim evaluate attentive {b}", "run <a>"):  # fmt: skip
        assert expected in shown, expected
    assert "<a>" not in text
    assert text.count(">missing<") == 4  # linear and attentive of both
    alts = [image["alt"] for image in parsed.images]
    assert alts.count("What each model sees and predicts: b") == 1
    assert {"cross-entropy", "pixel loss", "accuracy"} <= set(alts)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert all(address.startswith("data:") for address in parsed.addresses)
    assert not re.search(r"https?://|@import|url\(", text)


def test_settings_that_differ_and_only_they(folder):
    runs = read(folder("a", seed=1), folder("b", seed=2, mask={"ratio": 0.6}))
    assert list(differing_settings(runs)) == [("seed", ["1", "2"]), ("mask.ratio", ["–", "0.6"])]


def test_runs_of_images_without_labels_miss_no_accuracies(folder, tmp_path):
    """A folder without classes, beside one with; a folder that is gone may have had some."""
    for name in ("flat/1.png", "classes/a/1.png", "classes/b/1.png"):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)

    def run(name, data=None, **options):
        return folder(name, data={"path": str(tmp_path / "data" / (data or name))}, **options)

    page = tmp_path / "p.html"
    flat, classes, gone = run("flat"), run("classes"), run("gone")
    alone = compare_runs([flat], out=page, **QUIET).read_text(encoding="utf-8")
    assert "missing" not in Page(alone).texts
    assert "linear probe" not in alone
    assert "random initialisation" not in alone
    shown = " ".join("".join(Page(alone).texts).split())
    assert "The images of flat have no labels: an accuracy needs others" in shown
    assert "clustermim evaluate unlabeled RUN needs none" in shown
    assert "95 % interval" not in shown

    both = compare_runs([flat, classes, gone], out=page, **QUIET).read_text(encoding="utf-8")
    assert f"clustermim evaluate knn {classes}" in both
    assert f"clustermim evaluate knn {gone}" in both
    assert f"clustermim evaluate knn {flat}" not in both
    assert both.count(">missing<") == 6
    # Measured on the labels of other images after all.
    told = run("told", "flat", results={"knn": result("knn", 61.0)})
    text = compare_runs([told], out=page, **QUIET).read_text(encoding="utf-8")
    assert "61.0" in text
    assert "attentive probe" not in text


def test_other_protocols_are_said(folder):
    a = folder("a", results={"knn": result("knn", 60.0)})
    same = folder("same", results={"knn": result("knn", 61.0)})
    other = folder("other", results={"knn": result("knn", 60.0, settings={"k": 5}, test_images=9)})
    assert list(protocol_notes(read(a, same))) == []
    notes = " ".join(protocol_notes(read(a, other)))
    assert "k differs (a: 20; other: 5)" in notes
    assert "test_images differs (a: 50; other: 9)" in notes


def test_runs_without_anything(folder, tmp_path):
    run = folder("fresh")
    (run / "metrics.jsonl").unlink()
    text = compare_runs([run], out=tmp_path / "one.html", **QUIET).read_text(encoding="utf-8")
    assert "No run has written metrics yet" in text
    assert f"clustermim evaluate knn {run}" in text


def test_names_tell_equal_folders_apart(folder, tmp_path):
    runs = [folder("x/run"), folder("y/run")]
    text = compare_runs(runs, out=tmp_path / "two.html", **QUIET).read_text(encoding="utf-8")
    assert "x/run" in text
    assert "y/run" in text


def test_refusals(folder, tmp_path, capsys):
    run = folder("a", results={"knn": result("knn", 60.0), "other": {"blocks": []}})
    assert list(read(run)[0].evaluations) == ["knn"]
    with pytest.raises(ValueError, match="at least one run"):
        compare_runs([])
    with pytest.raises(ValueError, match="no run folder"):
        compare_runs([tmp_path], **QUIET)
    with pytest.raises(ValueError, match="given twice"):
        compare_runs([run, run], **QUIET)
    with pytest.raises(ValueError, match=r"ending in \.html"):
        compare_runs([run], out="page.pdf", **QUIET)
    (run / "eval" / "knn.json").write_text("{")
    with pytest.raises(ValueError, match=r"knn\.json cannot be read"):
        compare_runs([run], out=tmp_path / "p.html", **QUIET)
    assert cli.main(["compare", str(run), "outt=page.html"]) == 1
    assert "did you mean out" in capsys.readouterr().err


def test_command(folder, tmp_path, capsys):
    page = tmp_path / "p.html"
    assert cli.main(["compare", str(folder("a")), str(folder("lr=1")), f"out={page}"]) == 0
    assert "a, lr=1" in capsys.readouterr().out
    assert page.is_file()
