"""`pretrain()` and the tokenizers it fits, on shapes drawn here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import timm
import torch

import clustermim_fast
from clustermim_fast import api
from clustermim_fast.models import list_methods
from clustermim_fast.train import load_run
from tests.shapes import TINY, draw_folder
from tests.train.test_methods import CONVNEXT, RESNET


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


def test_mae_run_has_no_tokenizer(shapes, tmp_path):
    settings = {**TINY, "epochs": "1", "method": "mae", "norm_pix_loss": "true"}
    result = api.pretrain(shapes, out=tmp_path / "mae", say=lambda _: None, **settings)
    assert not (result.run_dir / "tokenizer.safetensors").exists()
    assert not (result.run_dir / "export" / "tokenizer").exists()
    assert (result.run_dir / "figures" / "predictions_1.png").is_file()
    assert not (result.run_dir / "figures" / "codebook.png").exists()


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


def test_fit_tokenizer_is_the_runs(finished, shapes, tmp_path):
    said = []
    out = tmp_path / "deep" / "t.safetensors"
    fitted = api.fit_tokenizer(out, data=shapes, say=said.append, **TINY)
    assert said[0].endswith("img_size=16x16 patch_size=4 num_clusters=8")  # no network, no epochs
    assert fitted.fingerprint() == load_run(finished).tokenizer.fingerprint()
    picture = api.show_tokenizer(out, say=said.append)
    assert picture == tmp_path / "deep" / "t.png"
    assert "K = 8" in "\n".join(said)


def test_one_of_several_processes_that_cannot_meet_is_refused(shapes, tmp_path, monkeypatch):
    """Each would train alone and write the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2, and RANK, .* not set: start with"):
        api.pretrain(data=shapes, **TINY)
    with pytest.raises(ValueError, match="fit runs in one process, and WORLD_SIZE is 2"):
        api.fit_tokenizer(tmp_path / "t.safetensors", data=shapes, **TINY)
    monkeypatch.setenv("WORLD_SIZE", "1")
    api.fit_tokenizer(tmp_path / "t.safetensors", data=shapes, say=lambda _: None, **TINY)


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
