"""report.html: every picture inside, nothing fetched, honest where something is missing."""

from __future__ import annotations

import base64
import contextlib
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

from clustermim_fast.losses import patchify
from clustermim_fast.masking import random_mask
from clustermim_fast.models import ModelConfig, create_model
from clustermim_fast.report import (
    RunView,
    attention_chart,
    attention_maps,
    charts,
    columns,
    features,
    figures,
    frequency_chart,
    paint_epoch,
    pictures,
    write_report,
)
from clustermim_fast.report.painting import painting_of
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
        columns.token_columns(part) for part in (run, dataclasses.replace(run, replaced=replaced))
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


@pytest.mark.parametrize("norm", [False, True])
def test_ccvit_shows_its_pixel_branch(tmp_path, norm):
    """Of a perfect branch the images, in the patches that are predicted, hidden or replaced."""
    run = view(tmp_path)
    small = ModelConfig("beit_base_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2)
    model = create_model("ccvit", small, (16, 16), 6).eval()
    replaced = ~run.mask & (torch.arange(16) < 8)
    run = dataclasses.replace(
        run, method="ccvit", model=model, replaced=replaced, per_patch_norm=norm
    )
    shown = {column.title: column.images for column in columns.predictions(run)}
    assert list(shown) == ["image", "visible", "tokens", "predicted", "pixels"]
    scaled = run.samples / 255
    predicted = pictures.expand_mask(run.mask | replaced, (4, 4), (16, 16)).expand(-1, 3, -1, -1)
    assert torch.equal(shown["pixels"][~predicted], scaled[~predicted])
    assert not torch.equal(shown["pixels"], scaled)

    def perfect(images, mask):
        patches = patchify(scaled, 4)
        if not norm:
            return patches
        variance, mean = torch.var_mean(patches, -1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    model.branch_patches = perfect
    shown = {column.title: column.images for column in columns.predictions(run)}
    torch.testing.assert_close(shown["pixels"], scaled, rtol=0, atol=1e-5)
    text, _ = read(run)
    assert "the pixels of the second branch" in text

    paint_epoch(run, 3)
    text, _ = read(run)
    assert "below them the pixels of the second branch" in text
    with Image.open(run.run_dir / "figures" / "painting" / "epoch_00003.png") as row:
        assert row.height == 2 * (7 * 16 + 6)


def test_a_ccvit_without_a_pixel_head_paints_tokens_alone(tmp_path):
    small = ModelConfig("beit_base_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2)
    small = dataclasses.replace(small, shared_head=True)
    model = create_model("ccvit", small, (16, 16), 6).eval()
    run = view(tmp_path, model=model)
    assert [column.title for column in columns.predictions(run)][3:] == ["predicted"]


def test_what_lies_beside_the_painted_rows_is_left_alone(tmp_path):
    run = view(tmp_path)
    folder = run.run_dir / "figures" / "painting"
    paint_epoch(run, 1)
    for name in ("epoch_x.png", "epoch_00001 (copy).png", "epoch_-1.png"):
        (folder / name).write_bytes(b"no picture")
    first = paint_epoch(run, 2)
    assert painting_of(run).image.size == first.size
    assert (folder / "epoch_x.png").is_file()


def test_wide_charts_scroll_on_narrow_screens(tmp_path):
    run = view(tmp_path)
    (run.run_dir / "figures").mkdir(parents=True)
    for name, width in (("attention", 2250), ("neighbours", 1212)):
        Image.new("RGB", (width, 9)).save(run.run_dir / "figures" / f"{name}.png")
    text, _ = read(run)
    assert len(re.findall(r'<div class="scroll"><img [^>]*alt="attention">', text)) == 1
    assert not re.search(r'<div class="scroll"><img [^>]*alt="neighbours">', text)


@pytest.mark.parametrize("method", ["clustermim", "mae"])
def test_pixels_in_units_of_each_patch_are_said_to_be(tmp_path, method):
    """Their mean and contrast are the image's own: the model did not predict them."""
    said = "mean and contrast of each patch are the image&#39;s own"
    run = view(tmp_path, method, per_patch_norm=True, usage=None)
    paint_epoch(run, 1)
    assert read(run)[0].count(said) == (2 if method == "mae" else 0)
    assert said not in read(dataclasses.replace(run, per_patch_norm=False))[0]


def test_the_caption_of_evaluations_says_what_was_measured(tmp_path):
    row = {"epoch": 1, "rankme": 3.0, "images": "20 of the run's images"}
    text, _ = read(view(tmp_path, epochs=[row]))
    assert "kNN" not in text.partition('alt="evaluation"')[2].partition("</figcaption>")[0]
    knn = {"knn_percent": 50.0, "knn_low": 40.0, "knn_high": 60.0, "images": "5 others by 9"}
    text, _ = read(view(tmp_path, epochs=[row | knn | {"note": "data: x/test has no images"}]))
    caption = text.partition('alt="evaluation"')[2].partition("</figcaption>")[0]
    assert "kNN accuracy" in caption
    assert "5 others by 9" in caption
    assert "data: x/test has no images" in caption


def test_a_broken_result_is_said_on_the_page(tmp_path):
    text, _ = read(view(tmp_path, broken=["eval/knn.json: accuracy_percent: got null"]))
    assert "Left out: eval/knn.json: accuracy_percent: got null" in text


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
    for norm in (False, True):
        run = view(tmp_path, "mae", per_patch_norm=norm)

        def perfect(images, mask, norm=norm):
            patches = patchify(images, 4)
            if norm:
                variance, mean = torch.var_mean(patches, -1, keepdim=True)
                patches = (patches - mean) / (variance + 1e-6).sqrt()
            return patches

        run.model.patches = perfect
        shown = {column.title: column.images for column in columns.pixel_columns(run)}
        torch.testing.assert_close(shown["predicted"], run.samples / 255, rtol=0, atol=1e-5)
        torch.testing.assert_close(shown["restored"], run.samples / 255, rtol=0, atol=1e-5)


@pytest.fixture
def drawn_axes(monkeypatch):
    """The axes of the charts that a test draws."""
    kept = []
    real = charts.panels

    @contextlib.contextmanager
    def panels(*arguments, **options):
        with real(*arguments, **options) as (axes, drawn):
            kept.extend(axes)
            yield axes, drawn

    monkeypatch.setattr(features.charts, "panels", panels)
    return kept


def test_attention_by_block_counts_blocks_and_hides_no_line(drawn_axes):
    titles = {"cls_entropy": "entropy of [cls]", "cls_self": "[cls] to itself", "ratio": "ratio"}
    curves = {name: [0.1 * (block + 1) for block in range(12)] for name in titles}
    curves["ratio"] = [26.0, *[0.2] * 11]  # what is drawn at 0 cannot be read
    attention_chart({"pretrained": curves, "random_init": curves}, titles, 64)
    assert [axes.get_yscale() for axes in drawn_axes[:3]] == ["linear", "linear", "log"]
    for axes in drawn_axes[:3]:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        assert axes.get_legend() is None
    (legend,) = drawn_axes[0].figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["pretrained", "random initialisation", "ln 64: all alike"]


def test_frequencies_of_all_encoders_have_one_scale(drawn_axes):
    blocks = {"pretrained": [[0, -3.0]], "random_init": [[0.5, -1.0]]}
    frequency_chart(blocks, {"pretrained": [1.0, 2.0], "random_init": [1.0, 1.5]})
    assert drawn_axes[0].get_ylim() == drawn_axes[1].get_ylim()
    assert all(float(tick).is_integer() for tick in drawn_axes[2].get_xticks())


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
