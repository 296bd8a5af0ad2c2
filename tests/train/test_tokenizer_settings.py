"""Settings of a tokenizer's fit reach it, for pixels and for features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import train
from clustermim_fast.tokenizers import FeatureTokenizer, PixelTokenizer, load_tokenizer
from clustermim_fast.train import prepare
from tests.shapes import draw_folder

# Each with a value that is not its default.
FIT = {"metric": "cosine", "algorithm": "lloyd", "max_iter": 3, "init": "random", "tol": 0.5,
       "reassignment_ratio": 0.25}  # fmt: skip


def ready(config):
    images = train.open_run_images(config)
    return train.resolve(config, images), images


@pytest.mark.parametrize("kind", ["pixel", "feature"])
def test_every_setting_of_k_means_reaches_the_fit(tiny, kind, monkeypatch):
    """A feature tokenizer was fitted from k-means++ whatever tokenizer.init said."""
    seen = {}

    class Stop(Exception):
        pass

    def fit(images, *arguments, **options):
        seen.update(options)
        seen["batch"] = len(next(iter(images))) if kind == "feature" else options["batch_size"]
        raise Stop

    monkeypatch.setattr({"pixel": PixelTokenizer, "feature": FeatureTokenizer}[kind], "fit", fit)
    settings = {f"tokenizer__{key}": value for key, value in (FIT | {"batch_size": 7}).items()}
    config, images = ready(tiny(tokenizer__kind=kind, **settings))
    with pytest.raises(Stop):
        train.prepare_tokenizer(config, images)
    assert {key: seen[key] for key in FIT} == FIT
    assert seen["batch"] == 7


def test_images_per_class(tiny, tmp_path):
    """As many of each class, evenly spaced in it, however large the others are."""
    folder = draw_folder(tmp_path / "shapes", 9)
    for number in range(2, 9):
        (folder / "disc" / f"{number:03d}.png").unlink()
    config, images = ready(tiny(data=folder, tokenizer__images_per_class=3))
    chosen = prepare._to_fit_on(images, config.tokenizer)
    assert np.bincount(images.labels[chosen]).tolist() == [3, 2, 3]
    assert np.flatnonzero(images.labels == 0)[[0, 4, 8]].tolist() == chosen[:3].tolist()
    few, _ = ready(tiny(data=folder, tokenizer__images_per_class=3, tokenizer__max_images=4))
    assert len(prepare._to_fit_on(images, few.tokenizer)) == 4
    assert train.prepare_tokenizer(config, images).report.num_rows == 8 * 16


def test_images_per_class_needs_classes(tiny):
    with pytest.raises(ValueError, match=r"images_per_class: .* has no class sub-folders"):
        train.prepare_tokenizer(*ready(tiny(tokenizer__images_per_class=3)))


def test_the_reassignment_ratio(tmp_path):
    """Of images in which one colour is rare its centroid is given up at a high ratio, else kept."""
    images = torch.zeros(40, 3, 4, 4, dtype=torch.uint8)
    images[:20] += 100
    images[0] = 255  # one patch in forty
    found = {}
    for ratio in (0.0, 0.9):
        tokenizer = PixelTokenizer.fit(
            images, 3, 4, max_iter=2, reassignment_ratio=ratio, algorithm="clustermim",
            batch_size=40,
        )  # fmt: skip
        found[ratio] = tokenizer.report.reseeded
    assert found[0.0] == 0
    assert found[0.9] > 0
    with pytest.raises(ValueError, match=r"reassignment_ratio must be in \[0, 1\), got 1"):
        PixelTokenizer.fit(images, 3, 4, reassignment_ratio=1.0)


def test_fit_command_takes_every_setting(tmp_path, capsys):
    from clustermim_fast import cli

    folder = draw_folder(tmp_path / "shapes", 4)
    file = tmp_path / "t.safetensors"
    settings = ["init=random", "tol=0.5", "tokenizer.batch_size=5", "images_per_class=2",
                "normalize=no", "reassignment_ratio=0"]  # fmt: skip
    command = ["tokenizer", "fit", f"data={folder}", f"out={file}", "img_size=16", "patch_size=4"]
    assert cli.main([*command, "num_clusters=4", *settings]) == 0, capsys.readouterr().err
    tokenizer = load_tokenizer(file)
    assert tokenizer.report.num_rows == 6 * 16
    assert tokenizer.mean is None
