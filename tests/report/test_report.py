"""report.html: every picture inside, nothing fetched, honest where something is missing."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import numpy as np
import torch
from PIL import Image

from clustermim_fast.masking import random_mask
from clustermim_fast.models import ModelConfig, create_model
from clustermim_fast.report import RunView, attention_maps, charts, figures, pictures, write_report
from clustermim_fast.tokenizers import Iteration, KMeansReport, PixelTokenizer
from tests.shapes import CLASSES, draw

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


class Page(HTMLParser):
    """Collects images, links and text."""

    def __init__(self, text):
        super().__init__()
        self.images, self.addresses, self.tags, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
        self.addresses += [values[key] for key in ("src", "href") if key in values]

    def handle_data(self, data):
        self.texts.append(data)


def shapes(count):
    random = np.random.default_rng(0)
    images = np.stack([draw(CLASSES[i % 3], random) for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def view(tmp_path, method="clustermim", **changes):
    images = shapes(24)
    tokenizer = PixelTokenizer.fit(images, 6, 4, mean=MEAN, std=STD, algorithm="lloyd", max_iter=3)
    config = ModelConfig(
        "vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2,
        decoder_dim=16, decoder_depth=1, decoder_heads=1,
    )  # fmt: skip
    model = create_model(method, config, (16, 16), 6).eval()
    line = {"loss": 1.7, "loss_floor_lnK": 1.79, "masked_accuracy": 0.2, "chance": 1 / 6}
    defaults = {
        "run_dir": tmp_path / "run <1>",
        "method": method,
        "model": model,
        "tokenizer": tokenizer if method == "clustermim" else None,
        "mean": MEAN,
        "std": STD,
        "samples": images[:7],
        "mask": random_mask(16, 0.75, 0, 0, np.arange(7)),
        "usage": torch.tensor([50, 30, 20, 0, 9, 1]),
        "usage_images": 24,
        "metrics": [{"epoch": 1.0, **line}, {"epoch": 2.0, **line, "loss": float("nan")}],
        "config": {"seed": 3, "data": {"path": "<shapes>"}},
        "about": [("images", "24")],
        "versions": {"torch": torch.__version__},
    }
    return RunView(**(defaults | changes))


def evaluation(kind):
    row = {"dim": 32, "accuracy_percent": 81.26, "interval95_percent": [70.0, 90.0]}
    return {
        "kind": kind,
        "pool": "mean",
        "settings": {"k": 20, "temperature": 0.07},
        "train_images": 1234,
        "test_images": 99,
        "classes": 3,
        "majority_percent": 34.0,
        "rows": [{"name": name, **row} for name in ("pretrained", "random_init", "raw_pixels")],
        "gain_points": {"random_init": {"gain": 12.3, "half_width95": 4.5}},
        "notes": ["Only the gain is claimed."],
    }


def read(run_view):
    page = write_report(run_view)
    return page.read_text(encoding="utf-8"), Page(page.read_text(encoding="utf-8"))


def test_every_picture_is_inside_and_decodes(tmp_path):
    run = view(tmp_path)
    _, page = read(run)
    names = {image["alt"].replace(" ", "_") for image in page.images}
    expected = {"loss", "accuracy", "predictions_1", "predictions_2", "token_maps_1",
                "token_maps_2", "codebook", "usage", "inertia", "cluster_sizes"}  # fmt: skip
    assert names == expected
    assert {path.stem for path in (run.run_dir / "figures").iterdir()} == expected
    for image in page.images:
        head, data = image["src"].split(",", 1)
        assert head == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        picture.load()
        assert (str(picture.width), str(picture.height)) == (image["width"], image["height"])
        assert np.asarray(picture.convert("L")).std() > 0  # not one flat colour


def test_replaced_patches_are_shown_as_centroids(tmp_path):
    """They change what the model is said to see, and nothing of the image or of the tokens."""
    run = view(tmp_path)
    replaced = ~run.mask & (torch.arange(16) < 8)
    before, after = (
        figures._token_columns(part) for part in (run, dataclasses.replace(run, replaced=replaced))
    )
    where = pictures.expand_mask(replaced, (4, 4), (16, 16)).expand(-1, 3, -1, -1)
    (image, seen, tokens), (image2, seen2, tokens2) = (
        [column.images for column in part[:3]] for part in (before, after)
    )
    assert torch.equal(image, image2)
    assert torch.equal(tokens, tokens2)
    assert torch.equal(seen2[where], tokens[where])
    assert torch.equal(seen2[~where], seen[~where])
    assert not torch.equal(seen2, seen)


def test_offline_and_without_scripts(tmp_path):
    text, page = read(view(tmp_path, evaluations={"knn": evaluation("knn")}))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", text)


def test_names_are_escaped(tmp_path):
    text, page = read(view(tmp_path))
    assert "run <1>" in "".join(page.texts)
    assert "<shapes>" not in text


def test_says_that_evaluation_is_missing(tmp_path):
    text, _ = read(view(tmp_path))
    assert "Not evaluated yet" in text
    assert "clustermim evaluate knn" in text


def test_evaluation_tables(tmp_path):
    results = {kind: evaluation(kind) for kind in ("knn", "linear")}
    text, page = read(view(tmp_path, evaluations=results))
    assert "Not evaluated yet" not in text
    for value in ("81.3", "70.0 to 90.0", "+12.3 ± 4.5", "1,234", "random initialisation",
                  "raw pixels", "Only the gain is claimed."):  # fmt: skip
        assert value in text
    assert page.tags.count("table") == 4


@pytest.mark.parametrize("norm", [False, True])
def test_mae_shows_reconstructions(tmp_path, norm):
    run = view(tmp_path, "mae", per_patch_norm=norm, usage=None)
    _, page = read(run)
    names = {image["alt"].replace(" ", "_") for image in page.images}
    assert names == {"loss", "predictions_1", "predictions_2", "spectra"}


def test_the_loss_is_called_what_it_is(tmp_path):
    """A2MIM's terms are no squared errors, and ccvit's pixel branch has no cross-entropy."""
    text, _ = read(view(tmp_path, "mae", usage=None))
    assert "mean squared error" in text
    row = {"step": 1, "epoch": 1.0, "loss": 1.1, "images_per_s": 3.0}
    terms = [row | {"spatial_loss": 1.0, "fourier_loss": 1.0}]
    text, _ = read(view(tmp_path, "mae", usage=None, metrics=terms))
    assert "mean squared error" not in text
    assert "(spatial) and of the image" in text
    text, _ = read(view(tmp_path, metrics=[row | {"token_loss": 1.0, "branch_loss": 0.1}]))
    assert "that of the pixel branch" in text


def test_run_without_metrics_or_usage(tmp_path):
    _, page = read(view(tmp_path, metrics=[], usage=None))
    names = {image["alt"].replace(" ", "_") for image in page.images}
    assert names == {"predictions_1", "predictions_2", "token_maps_1", "token_maps_2",
                     "inertia", "cluster_sizes"}  # fmt: skip


def test_token_maps_stand_five_to_a_column():
    tokens = PixelTokenizer.from_centroids(torch.rand(3, 48), 4)
    images = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    whole = figures.token_map_picture(tokens, images)
    left, right = (figures.token_map_picture(tokens, part) for part in (images[:5], images[5:]))
    assert whole.size == (2 * left.width, left.height)
    assert right.height < left.height
    found = np.asarray(whole)
    assert np.array_equal(found[:, : left.width], left)
    assert np.array_equal(found[: right.height, left.width :], right)
    assert (found[right.height :, left.width :] == 255).all()


def test_a_codebook_made_elsewhere_has_no_fit_to_show(tmp_path):
    run = view(tmp_path)
    given = PixelTokenizer.from_centroids(run.tokenizer.centroids, 4, mean=MEAN, std=STD)
    _, page = read(view(tmp_path, tokenizer=given))
    names = {image["alt"] for image in page.images}
    assert "codebook" in names
    assert not {"inertia", "cluster sizes"} & names


def test_the_fit_is_told(tmp_path):
    text, _ = read(view(tmp_path))
    assert "k-means (lloyd) on 384 patches, 3 iterations in" in text
    assert "it stopped because: max_iter = 3" in text


def test_mae_rows_of_a_perfect_model_are_the_images(tmp_path):
    """Un-normalising is right: a model that predicts the target exactly restores the picture."""
    from clustermim_fast.losses import patchify
    from clustermim_fast.report import figures

    for norm in (False, True):
        run = view(tmp_path, "mae", per_patch_norm=norm)

        def perfect(images, mask, norm=norm):
            patches = patchify(images, 4)
            if norm:
                variance, mean = torch.var_mean(patches, -1, keepdim=True)
                patches = (patches - mean) / (variance + 1e-6).sqrt()
            return patches

        run.model.patches = perfect
        columns = {column.title: column.images for column in figures._pixel_columns(run)}
        torch.testing.assert_close(columns["predicted"], run.samples / 255, rtol=0, atol=1e-5)
        torch.testing.assert_close(columns["restored"], run.samples / 255, rtol=0, atol=1e-5)


def test_masked_patches_are_hidden_and_only_they():
    images = torch.rand(2, 3, 8, 8)
    mask = torch.tensor([[True, False, False, True], [False, True, True, False]])
    hidden = pictures.hide_patches(images, mask, (2, 2))
    changed = (hidden != images).any(1).view(2, 2, 4, 2, 4).float().mean((2, 4)).flatten(1)
    assert torch.equal(changed, mask.float())


def test_spectra():
    """A wave of 3 periods is bright at (0, +-3) from the middle, and dark on another's scale."""
    x = torch.arange(16)
    wave = (0.5 + 0.4 * torch.cos(2 * torch.pi * 3 * x / 16)).expand(1, 3, 16, 16)
    spectrum = pictures.spectra(wave, wave)
    assert spectrum.shape == (1, 3, 16, 16)
    bright = spectrum[0, 0] > 0.5
    assert bright.nonzero().tolist() == [[8, 5], [8, 8], [8, 11]]
    noise = torch.rand(1, 3, 16, 16)
    assert float(pictures.spectra(0 * wave, noise).max()) == 0


def test_attention_maps_are_bright_where_weights_are():
    images = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    weights = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0.2]])
    red = pictures.heat(images / 255, weights, (2, 2))[:, 0].view(2, 2, 4, 2, 4).mean((2, 4))
    assert red.flatten(1).argmax(1).tolist() == [0, 3]
    assert float(red[0, 0, 0]) == pytest.approx(float(red[1, 1, 1]))  # each on its own scale
    picture = attention_maps(images, {"AbMILP": weights, "[cls]": weights.flip(1)}, (2, 2))
    assert np.asarray(picture.convert("L")).std() > 0
    with pytest.raises(ValueError, match=r"weights: expected \[2, 4\] for 'x'"):
        attention_maps(images, {"x": weights[:1]}, (2, 2))


def test_atlas_frames_unused_centroids():
    patches = torch.zeros(3, 3, 4, 4)
    picture = np.asarray(pictures.atlas(patches, torch.tensor([5, 0, 7]))).astype(int)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 90)
    columns = np.flatnonzero(red.any(0))
    assert len(columns)
    tile = (picture.shape[1] - 4) // 3
    assert columns.min() >= 2 * tile  # the unused one stands last


def test_token_colours_do_not_depend_on_sign_or_size():
    centroids = torch.randn(20, 12)
    colours = pictures.token_colours(centroids)
    assert colours.shape == (20, 3)
    assert float(colours.min()) >= 0
    assert float(colours.max()) <= 1
    torch.testing.assert_close(pictures.token_colours(3 * centroids + 5), colours)
    assert pictures.token_colours(torch.randn(1, 4)).shape == (1, 3)
    assert pictures.token_colours(torch.randn(5, 2)).shape == (5, 3)


def test_token_map_paints_minus_one_grey():
    tokens = torch.tensor([[0, -1]])
    painted = pictures.token_maps(tokens, torch.tensor([[1.0, 0, 0]]), (1, 2), (2, 4))
    assert painted[0, :, 0, 0].tolist() == [1, 0, 0]
    assert painted[0, :, 0, 3].tolist() == pytest.approx([pictures.HIDDEN] * 3)


def test_usage_counts():
    perplexity, dead = charts.usage(np.array([5, 5, 0, 5, 5]))
    assert perplexity == pytest.approx(4)
    assert dead == 1
    assert charts.usage(np.array([7, 0, 0]))[0] == pytest.approx(1)


def test_reseeded_clusters_are_marked():
    """An orange point on the curve and a line in the legend, only where there was one."""

    def orange(empty):
        steps = [Iteration(9.0 - i, None, n, 1.0, 0.1, 0.1) for i, n in enumerate(empty)]
        report = KMeansReport("lloyd", "euclidean", 3, 10, steps, sum(empty), inertia=5.0)
        picture = np.asarray(charts.inertia_curve(report)).astype(int)
        return int(((picture[..., 0] > 200) & (picture[..., 2] < 90)).sum())

    assert orange([0, 0, 0]) == 0
    assert orange([2, 0, 0]) > 50
