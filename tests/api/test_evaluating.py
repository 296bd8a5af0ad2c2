"""`evaluate_run()`: every protocol, its card and its report."""

from __future__ import annotations

import json
import subprocess

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import timm
from timm.models import save_for_hf

from clustermim_fast import api
from clustermim_fast.train import load_run


def test_evaluations_and_their_report(run):
    tables = []
    knn = api.evaluate_run("knn", run, k=5, say=tables.append)
    linear = api.evaluate_run("linear", run, say=tables.append)
    assert json.loads((run / "eval" / "knn.json").read_text()) == knn
    card = knn["card"]
    assert card["config"] == json.loads((run / "config.json").read_text())
    assert card["weights_sha256"] != card["data"]["train_fingerprint"]
    for row in ("weights_sha256", "data", "config", "commit", "versions"):
        assert card[row] == linear["card"][row]
    assert card["protocol"][0].startswith("kNN, k = 5")
    assert card["versions"]["timm"] == timm.__version__
    assert card["interval"].startswith("percentile bootstrap")
    assert [row["name"] for row in linear["rows"]] == ["pretrained", "random_init", "raw_pixels"]
    assert linear["train_images"] + linear["test_images"] == 48
    (note,) = knn["notes"]
    assert note.startswith("Test: 20 %")
    assert note.endswith("pretraining saw them, without labels.")
    assert "random initialisation" in tables[0]
    assert knn["step"] == load_run(run).step
    text = api.report_run(run).read_text()
    assert "Not evaluated yet" not in text
    assert "logistic" in text or "linear probe" in text
    few = api.evaluate_run("knn", run, k=3, shots="3", seeds=3, say=lambda _: None)
    text = api.report_run(run).read_text()
    assert "k nearest neighbours, 3 a class" in text
    assert "Low-shot: 3 of each class." in text
    row = few["rows"][0]
    assert f"{row['accuracy_percent']:.1f} ± {row['seed_deviation_points']:.1f}" in text
    assert "mean of 3 seeds" in text


def test_attentive_settings_reach_their_parts(run, shapes):
    options = {"epochs": 2, "warmup_epochs": 0.5, "probe_batch_size": 8, "depth": 2, "layer": 0}
    options |= {"learning_rates": (0.1,), "pool": "abmilp", "say": lambda _: None}
    result = api.evaluate_run("attentive", run, **options)
    assert json.loads((run / "eval" / "attentive.json").read_text()) == result
    protocol = result["card"]["protocol"]
    assert "one un-augmented view; base learning rate 0.1" in protocol  # given, not chosen
    assert protocol[2].startswith("AbMILP: content patch, attention none, depth 2")
    settings = result["settings"]
    assert settings["training"] | {"epochs": 2, "batch_size": 8} == settings["training"]
    assert (settings["abmilp"]["depth"], settings["layer"]) == (2, 0)
    assert [row["name"] for row in result["rows"]] == ["pretrained", "random_init"]
    assert not list((run / "eval").glob("*/tokens*"))
    assert result["rows"][0]["title"] in api.report_run(run).read_text()
    with pytest.raises(TypeError, match="depht"):
        api.evaluate_run("attentive", run, depht=2)


def test_attentive_by_a_teacher_and_without_cls(run, shapes):
    options = {"epochs": 1, "warmup_epochs": 0, "learning_rates": (0.1,), "say": lambda _: None}
    result = api.evaluate_run(
        "attentive", run, pool="attn_mean,teacher", teacher=run / "export", **options
    )
    assert result["settings"]["teacher"] == str(run / "export")
    # The run's own weights are its teacher: the same patches are pooled.
    mean, taught = result["rows"][:2]
    assert mean["accuracy_percent"] == taught["accuracy_percent"]
    network = timm.create_model("resnet10t", num_classes=0)
    network.pretrained_cfg["input_size"] = (3, 32, 32)
    save_for_hf(network, run / "resnet", safe_serialization=True)
    result = api.evaluate_run("attentive", run / "resnet", data=str(shapes), **options)
    assert result["pool"] == "abmilp,mean"


def test_fine_tuning_and_its_card(run):
    options = {"epochs": 1, "train_batch_size": 8, "layer_decay": 0.5, "say": lambda _: None}
    result = api.evaluate_run("finetune", run, **options)
    assert json.loads((run / "eval" / "finetune.json").read_text()) == result
    training = result["settings"]["training"]
    assert (training["epochs"], training["batch_size"], training["layer_decay"]) == (1, 8, 0.5)
    assert [row["name"] for row in result["rows"]] == ["pretrained", "random_init"]
    assert result["card"]["protocol"][0].startswith("fine-tuning (mean of patch tokens); 1 epochs")
    assert "fine-tuning" in api.report_run(run).read_text()


def test_low_shot_results_have_files_of_their_own(run, shapes, tmp_path):
    options = {"k": 1, "seeds": 3, "say": lambda _: None}
    result = api.evaluate_run("knn", run, shots="2", **options)
    assert result["train_images"] == 6
    assert "bootstrap" in result["card"]["interval"]
    assert (
        "low-shot: 2 of the training images of each class, drawn by seed"
        in (result["card"]["protocol"])
    )
    assert json.loads((run / "eval" / "knn_2_per_class.json").read_text()) == result
    api.evaluate_run("linear", run, shots="25%", penalties=(0.1,), say=lambda _: None)
    assert (run / "eval" / "linear_25pct.json").is_file()
    assert not (run / "eval" / "knn.json").exists()
    exported = api.evaluate_run(
        "knn", run / "export", data=str(shapes), out=tmp_path / "new" / "knn.json", k=1,
        say=lambda _: None,
    )  # fmt: skip
    assert json.loads((tmp_path / "new" / "knn.json").read_text()) == exported
    assert exported["card"]["config"] is None


def test_the_commit_on_a_card(monkeypatch, tmp_path):
    """Of the checkout with what was changed in it; nothing where the package is installed."""
    repository = tmp_path / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    (repository / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    monkeypatch.setattr(api.card, "REPOSITORY", repository)
    commit = api.card.source_commit()
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert commit == head.stdout.strip()
    (repository / "file").write_text("2")
    assert api.card.source_commit() == commit + "+"
    monkeypatch.setattr(api.card, "REPOSITORY", tmp_path)
    assert api.card.source_commit() is None
