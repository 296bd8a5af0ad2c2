"""Runs on tokens of a frozen network's features: fitted, trained, resumed, reported."""

from __future__ import annotations

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import torch

from clustermim_fast import api, cli
from clustermim_fast.tokenizers import FeatureTokenizer, load_tokenizer
from clustermim_fast.train import load_run
from tests.shapes import TINY, draw_folder

QUIET = {"report": False, "export": False, "say": lambda line: None}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("data") / "shapes", 16)


@pytest.fixture(scope="module")
def teacher(shapes, tmp_path_factory):
    """A run of this project, whose export gives the features."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    api.pretrain(data=shapes, out=out, report=False, say=lambda line: None, **TINY)
    return out


def settings(teacher, **changes):
    return {**TINY, "tokenizer.kind": "feature", "tokenizer.model": str(teacher), **changes}


def test_a_run_on_feature_tokens(shapes, teacher, tmp_path):
    said = []
    run = settings(teacher, data=shapes, out=tmp_path / "run")
    result = api.pretrain(**run, say=said.append)
    assert result.metrics["loss"] > 0
    loaded = load_run(tmp_path / "run")
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer, FeatureTokenizer)
    exported = load_run(teacher).model.encoder
    state = tokenizer.network.state()
    assert all(torch.equal(state[name], value) for name, value in exported.state_dict().items())
    # The network is in the tokenizer's file, not in the model or its checkpoint.
    assert not any("network" in name for name, _ in loaded.model.named_parameters())
    assert (tmp_path / "run" / "figures" / "codebook.png").is_file()
    again = []
    api.pretrain(**run, **{**QUIET, "say": again.append})
    assert any("fitted on these images" in line for line in again)
    assert any("is complete" in line for line in again)


def test_other_weights_are_another_tokenizer(shapes, teacher, tmp_path):
    """The cache of a run folder looks into the network's file."""
    other = tmp_path / "other"
    api.pretrain(
        data=shapes, out=other, seed=3, **{**QUIET, "export": True}, **{**TINY, "epochs": "1"}
    )
    run = {"data": shapes, "out": tmp_path / "run", **QUIET}
    api.pretrain(**run, **settings(teacher, epochs="1"))
    before = load_tokenizer(tmp_path / "run" / "tokenizer.safetensors").fingerprint()
    (teacher / "export").rename(teacher / "kept")
    (other / "export").rename(teacher / "export")
    try:
        api.pretrain(**run, **settings(teacher, epochs="1"), resume="restart")
    finally:
        (teacher / "export").rename(other / "export")
        (teacher / "kept").rename(teacher / "export")
    after = load_tokenizer(tmp_path / "run" / "tokenizer.safetensors").fingerprint()
    assert after != before


def test_bfloat16_and_a_given_tokenizer_without_pictures(shapes, teacher, tmp_path):
    file = tmp_path / "tok.safetensors"
    tokenizer = FeatureTokenizer.from_centroids(
        torch.randn(5, 32), str(teacher), precision="bfloat16", metric="dot"
    )
    tokenizer.save(file)
    run = {"data": shapes, "out": tmp_path / "run", "say": lambda line: None, "export": False}
    sizes = {key: value for key, value in TINY.items() if key != "num_clusters"}
    api.pretrain(**run, **sizes, tokenizer=str(file))
    assert load_run(tmp_path / "run").tokenizer.pictures is not None


def test_a_given_codebook_is_shown_with_images_only(shapes, teacher, tmp_path):
    """Its centroids have no pictures of their own; those of the images are found."""
    file = tmp_path / "t.safetensors"
    FeatureTokenizer.from_centroids(torch.randn(5, 32), str(teacher)).save(file)
    say = {"say": lambda line: None}
    with pytest.raises(ValueError, match="given centroids have no pictures"):
        api.show_tokenizer(file, **say)
    api.show_tokenizer(file, data=shapes, img_size=(16, 16), **say)
    assert (tmp_path / "t_maps.png").is_file()
    with pytest.raises(ValueError, match="18 x 18 pixels are not a multiple of patch_size = 4"):
        api.show_tokenizer(file, data=shapes, img_size=(18, 18), **say)


def test_cli(shapes, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["img_size=16", "patch_size=4", "num_clusters=6", "layer=0", "apply_norm=no"]
    command = ["tokenizer", "fit", f"data={shapes}", "kind=feature", f"model={teacher}", *options]
    assert cli.main([*command, "metric=cosine", "algorithm=lloyd", "out=t.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert "tensors loaded" in printed
    assert "cosine" in printed
    assert (tmp_path / "t.png").is_file()
    tokenizer = load_tokenizer("t.safetensors")
    assert (tokenizer.num_clusters, tokenizer.network.settings.layer) == (6, 0)
    assert not tokenizer.network.settings.apply_norm
    show = ["tokenizer", "show", "t.safetensors", f"data={shapes}", "img_size=16", "out=a/t.png"]
    assert cli.main(show) == 0
    assert "never, in 48 images" in capsys.readouterr().out
    for name in ("t.png", "t_maps.png"):
        assert (tmp_path / "a" / name).is_file()
    for extra, message in [
        (["layer=9"], "layer must lie in -2 .. 1"),
        (["metric=l1"], "tokenizer.metric must be one of"),
        (["per_patch_norm=yes"], "normalises pixels"),
        (["weights=none.pth"], "no such file: none.pth"),
    ]:
        keys = {text.partition("=")[0] for text in extra}
        rest = [text for text in command if text.partition("=")[0] not in keys]
        assert cli.main([*rest, *extra]) == 1
        assert message in capsys.readouterr().err
