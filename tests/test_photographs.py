"""docs/photographs.md as it stands, on small images: what it tells a newcomer to type works."""

from __future__ import annotations

import glob
import re
import shlex

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import timm
import torch
from PIL import Image

from clustermim_fast import cli, train
from tests.conftest import REPOSITORY
from tests.shapes import CLASSES, draw

PAGE = REPOSITORY / "docs" / "photographs.md"
# What the settings of the page's commands become: 4 x 4 patches, 2 updates, a run of a second.
SMALL = {
    "img_size": "64",
    "num_clusters": "8",
    "steps": "2",
    "epochs": "1",
    "batch_size": "4",
    "images": "10",
}
NETWORKS = {"resnet50": "resnet10t", "convnext_tiny": "convnext_atto"}
NARROW = {"model.embed_dim": "32", "model.depth": "2", "model.num_heads": "2"}


def blocks(language: str) -> list[str]:
    """The page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)


def commands() -> list[list[str]]:
    """The words of each `clustermim` command of the page, without `clustermim`."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "clustermim"]


def smaller(words: list[str]) -> list[str]:
    """The same command with small sizes; methods, folders and all else stay as they are."""
    if words[0] != "pretrain":
        named = [sorted(glob.glob(word)) if "*" in word else [word] for word in words]
        words = [word for group in named for word in group]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    small = {key: SMALL.get(key, value) for key, value in given.items()}
    if words[0] == "pretrain":
        small["backbone"] = NETWORKS.get(given["backbone"], given["backbone"])
        if small["backbone"] == given["backbone"]:  # a transformer
            small |= NARROW
    return [word for word in words if "=" not in word] + [f"{k}={v}" for k, v in small.items()]


def test_every_method_is_on_the_page():
    settings = [dict(word.split("=", 1) for word in words[1:]) for words in pretrainings()]
    methods = {
        (s.get("method", "clustermim"), s["backbone"].split("_")[0], s.get("tokenizer"))
        for s in settings
    }
    assert methods >= {
        ("clustermim", "vit", "tok.safetensors"),
        ("clustermim", "vit", "features.safetensors"),
        ("ccvit", "beit", None),
        ("a2mim", "vit", None),
        ("a2mim", "resnet50", None),
        ("a2mim", "convnext", None),
        ("mae", "vit", None),
    }


def pretrainings() -> list[list[str]]:
    return [words for words in commands() if words[0] == "pretrain"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """12 photographs without labels, wider than high, in ./photos."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        shape = draw(CLASSES[number % 3], random, side=24)
        picture = Image.fromarray(shape).resize((160, 120))
        picture.save(tmp_path / "photos" / f"{number:03d}.jpg")
    return tmp_path


def follow(page_commands, capsys, *more):
    for words in page_commands:
        extra = more if words[0] == "pretrain" else ()
        assert cli.main([*smaller(words), *extra]) == 0, (words, capsys.readouterr().err)
    for source in blocks("python"):
        exec(compile(source, str(PAGE), "exec"), {})


def test_the_first_commands_and_the_python(photos, capsys):
    fit, show, pretrain = commands()[:3]
    assert (fit[:2], show[:2], pretrain[0]) == (
        ["tokenizer", "fit"],
        ["tokenizer", "show"],
        "pretrain",
    )
    follow([fit, show, pretrain], capsys, "report=no")


def test_every_setting_is_known():
    for words in pretrainings():
        given = dict(word.split("=", 1) for word in words[1:])
        config = train.config_from_overrides(train.TrainConfig(), given)
        assert config.optim.steps == 10 or "epochs" in given


@pytest.mark.slow
def test_the_page(photos, capsys):
    """Every command, then every Python block; what the text names is there afterwards."""
    follow(commands(), capsys)
    named = re.findall(r"`((?:runs/|tok|feat)[\w./]+)`", PAGE.read_text("utf-8"))
    assert [name for name in named if not (photos / name).exists()] == []
    assert len(named) > 3

    images = torch.rand(2, 3, 64, 64)
    runs = sorted(path.parent for path in photos.glob("runs/*/export"))
    assert len(runs) == len(pretrainings())
    for run in runs:
        assert (run / "report.html").is_file()
        encoder = train.load_run(run).model.encoder.eval()
        again = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
        with torch.no_grad():
            expected, found = encoder.forward_features(images), again.forward_features(images)
        assert torch.equal(expected, found)
