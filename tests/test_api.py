"""`pretrain()` and what follows it, on shapes drawn here."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import timm
import torch
from timm.models import save_for_hf

import clustermim_fast
from clustermim_fast import api
from clustermim_fast.models import list_methods
from clustermim_fast.train import load_run, random_model
from tests.shapes import TINY, draw_folder
from tests.train.test_methods import CONVNEXT, RESNET


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("data") / "shapes", 16)


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """A finished run; tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = clustermim_fast.pretrain(data=shapes, out=out, say=lambda line: None, **TINY)
    assert result.run_dir == out
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_run_folder_is_complete(finished):
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoints/last.pt",
        "tokenizer.safetensors",
        "report.html",
        "figures/loss.png",
        "export/model.safetensors",
        "export/config.json",
        "export/tokenizer/tokenizer.safetensors",
    ):
        assert (finished / name).is_file(), name


def test_export_has_the_encoders_features(finished):
    loaded = load_run(finished)
    again = timm.create_model(f"local-dir:{finished / 'export'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(
        loaded.model.encoder.forward_features(images), again.forward_features(images)
    )
    assert tuple(again.pretrained_cfg["mean"]) == pytest.approx(loaded.config.data.mean)


@pytest.mark.parametrize(
    ("method", "network"),
    [*((method, "") for method in list_methods()), ("a2mim", RESNET), ("a2mim", CONVNEXT)],
)
def test_every_method_from_a_folder_to_an_encoder(shapes, tmp_path, method, network):
    """data= and method= alone choose the network and the masks; report and export follow."""
    sizes = ["img_size", "batch_size", "workers"]
    if not network:
        sizes += ["patch_size", "model.embed_dim", "model.depth", "model.num_heads"]
    settings = {name: TINY[name] for name in sizes}
    if network:
        settings |= {"backbone": network, "model.output_stride": 8, "mask.unit": 8}
    said = []
    result = clustermim_fast.pretrain(
        data=shapes, method=method, epochs=1, out=tmp_path / "run", say=said.append, **settings
    )
    assert (result.run_dir / "report.html").is_file()
    assert (result.run_dir / "figures" / "predictions_1.png").is_file()
    fits = method in ("clustermim", "ccvit")
    assert any(line.startswith("fitting the tokenizer: K = ") for line in said) == fits
    encoder = load_run(result.run_dir).model.encoder
    again = timm.create_model(f"local-dir:{result.run_dir / 'export'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(encoder.forward_features(images), again.forward_features(images))
    table = []
    api.evaluate_run("knn", result.run_dir, say=table.append)
    assert "pretrained" in table[0]


def test_tokenizer_is_cached_by_content(shapes, run, tmp_path, monkeypatch):
    said = []
    options = {"data": shapes, "out": run, "report": False, "export": False, "say": said.append}
    before = (run / "tokenizer.safetensors").read_bytes()
    monkeypatch.setattr(api.pretraining, "prepare_tokenizer", None)  # would be called to fit
    api.pretrain(**options, **TINY)
    assert any("fitted on these images" in line for line in said)
    assert any("is complete" in line for line in said)
    assert (run / "tokenizer.safetensors").read_bytes() == before

    # Other images under the same names: the cache must not be used.
    other = shutil.copytree(shapes, tmp_path / "shapes")
    shutil.copyfile(other / "disc" / "000.png", other / "cross" / "000.png")
    with pytest.raises(TypeError):
        api.pretrain(**{**options, "data": other, "resume": "restart"}, **TINY)


def test_the_tokenizers_note_stays_true_when_images_change(shapes, tmp_path):
    """A run that goes on keeps its tokenizer, which was not fitted on the images of today."""
    folder, out = shutil.copytree(shapes, tmp_path / "shapes"), tmp_path / "run"
    options = {"data": folder, "out": out, "report": False, "export": False, "say": lambda _: None}
    options |= {"data.mean": "0.5,0.5,0.5", "data.std": "1,1,1"}
    api.pretrain(**options, **TINY)
    before = (out / "tokenizer.json").read_text()
    fitted = (out / "tokenizer.safetensors").read_bytes()
    for path in (folder / "cross").iterdir():
        shutil.copyfile(folder / "disc" / path.name, path)
    api.pretrain(**options, **TINY)
    assert (out / "tokenizer.json").read_text() == before
    api.pretrain(**options, **TINY, resume="restart")
    assert (out / "tokenizer.json").read_text() != before
    assert (out / "tokenizer.safetensors").read_bytes() != fitted


def test_one_of_several_processes_is_refused(shapes, tmp_path, monkeypatch):
    """Each would train alone and write the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for call in (api.pretrain, lambda **o: api.fit_tokenizer(tmp_path / "t.safetensors", **o)):
        with pytest.raises(ValueError, match="one process in this release, and WORLD_SIZE is 2"):
            call(data=shapes, **TINY)
    monkeypatch.setenv("WORLD_SIZE", "1")
    api.fit_tokenizer(tmp_path / "t.safetensors", data=shapes, say=lambda _: None, **TINY)


def test_the_report_of_an_unfinished_run(run):
    """A killed process may leave half a line; the files it could not read are counted in a list."""
    (run / "skipped_files.txt").write_text("a.jpg\tOSError: truncated\nb.jpg\tnot an image\n")
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 99, "ep')
    text = api.report_run(run).read_text()
    assert "2, in skipped_files.txt" in text


def test_restart_forgets_the_old_evaluations(run, shapes):
    api.evaluate_run("knn", run, k=5, cache=False, say=lambda _: None)
    options = {"data": shapes, "out": run, "export": False, "say": lambda _: None}
    api.pretrain(**options, **TINY)  # complete: nothing to do, nothing to forget
    assert "Not evaluated yet" not in (run / "report.html").read_text()
    shutil.copy(run / "figures" / "loss.png", run / "figures" / "attention.png")  # of a look
    assert 'alt="attention"' in api.report_run(run).read_text()
    api.pretrain(**options, **TINY, resume="restart")
    assert "Not evaluated yet" in (run / "report.html").read_text()
    assert 'alt="attention"' not in (run / "report.html").read_text()


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


def test_few_images_get_small_sizes_unless_given(tmp_path):
    few = draw_folder(tmp_path / "few", 1)
    said = []
    options = {"say": said.append, "report": False, "export": False, "epochs": 1}
    result = api.pretrain(few, out=tmp_path / "a", **options)
    (chosen,) = [line for line in said if line.startswith("chosen")]
    assert "img_size=16x16 patch_size=4" in chosen
    assert "num_clusters=3" in chosen  # 48 patches
    assert "batch_size=8" in chosen
    config = load_run(result.run_dir).config
    assert (config.tokenizer.num_clusters, config.optim.batch_size) == (3, 8)
    assert Path(config.data.path).is_absolute()
    fitted = tmp_path / "a" / "tokenizer.safetensors"
    result = api.pretrain(few, out=tmp_path / "c", tokenizer=fitted, **(options | {"steps": 2}))
    chosen = [line for line in said if line.startswith("chosen")][-1]
    assert chosen.endswith(f"tokenizer={fitted} steps=2 batch_size=8")
    assert (result.step, result.epoch) == (2, 2)
    result = api.pretrain(few, out=tmp_path / "b", num_clusters=5, batch_size=2, **options)
    config = load_run(result.run_dir).config
    assert (config.tokenizer.num_clusters, config.optim.batch_size) == (5, 2)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maskratio": 0.5}, "mask_ratio"),
        ({"optim.lrr": 0.5}, "optim.lr"),
        ({"data": ""}, "give data=DIR"),
        ({"data": "no/such/folder"}, "not an existing folder"),
        ({"method": "dino"}, "clustermim, mae"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        api.pretrain(**({"data": "digits"} | change))


def test_recipe_names_and_paths(finished, shapes):
    config, said = api.starting_config("digits_demo", {"epochs": "3"})
    assert (config.data.path, config.optim.epochs, said) == ("digits", 3, "")
    config, _ = api.starting_config(finished / "config.json", {"seed": 4})
    assert (config.seed, config.out, config.model.embed_dim) == (4, "", 32)
    config, said = api.starting_config(shapes, {})
    assert config.data.path == str(shapes)
    assert config.data.image_size == (16, 16)
    assert "16 x 16" in said
    # Another encoder is not squeezed into the width that was chosen for small images.
    config, _ = api.starting_config(None, {"data": shapes, "model": "vit_small_patch16_224"})
    assert config.model.embed_dim is None
    with pytest.raises(ValueError, match=r"digits_demo.*or a folder"):
        api.starting_config("digit_demo", {})


def test_mae_run_has_no_tokenizer(shapes, tmp_path):
    settings = {**TINY, "epochs": "1", "method": "mae", "norm_pix_loss": "true"}
    result = api.pretrain(shapes, out=tmp_path / "mae", say=lambda _: None, **settings)
    assert not (result.run_dir / "tokenizer.safetensors").exists()
    assert not (result.run_dir / "export" / "tokenizer").exists()
    assert (result.run_dir / "figures" / "predictions_1.png").is_file()
    assert not (result.run_dir / "figures" / "codebook.png").exists()


def test_fit_tokenizer_is_the_runs(finished, shapes, tmp_path):
    said = []
    out = tmp_path / "deep" / "t.safetensors"
    fitted = api.fit_tokenizer(out, data=shapes, say=said.append, **TINY)
    assert said[0].endswith("img_size=16x16 patch_size=4 num_clusters=8")  # no network, no epochs
    assert fitted.fingerprint() == load_run(finished).tokenizer.fingerprint()
    picture = api.show_tokenizer(out, say=said.append)
    assert picture == tmp_path / "deep" / "t.png"
    assert "K = 8" in "\n".join(said)
