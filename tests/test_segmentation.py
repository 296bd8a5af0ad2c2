"""Linear segmentation: mean IoU and the classifier against independent formulas, masks in place."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from clustermim_fast import cli
from clustermim_fast.data import open_masked_images
from clustermim_fast.evaluate import class_iou, confusion, pixel_patches, segment
from clustermim_fast.evaluate.segmentation import _fit, _rows
from tests.shapes import CLASSES, draw
from tests.test_foreign_weights import VIT


class Made:
    """Images and masks in memory."""

    def __init__(self, pixels, masks):
        self.pixels, self.truth = pixels, masks

    def __len__(self):
        return len(self.pixels)

    def images(self, indices):
        return self.pixels[indices]

    def masks(self, indices):
        return self.truth[indices]


def made(count, side=8, classes=3, seed=0):
    """Masks of noise, and images whose red channel tells them."""
    masks = torch.randint(
        0, classes, (count, side, side), generator=torch.Generator().manual_seed(seed)
    )
    pixels = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    pixels[:, 0] = (60 * masks).byte()
    return Made(pixels, masks.byte())


def own_pixels(images):
    """Features of patches of one pixel: its class, one-hot of the red channel."""
    classes = torch.nn.functional.one_hot(images[:, 0].long() // 60, 4).float()
    return classes.flatten(1, 2), tuple(images.shape[-2:])


def blind(images):
    random = torch.Generator().manual_seed(int(images.sum()))
    shape = len(images), images.shape[-1] ** 2, 4
    return torch.randn(shape, generator=random), tuple(images.shape[-2:])


def test_iou_equals_scikit_learns():
    truth, predicted = torch.randint(0, 5, (2, 40, 40))
    found = class_iou(confusion(truth.byte(), predicted, 5))
    expected = jaccard_score(truth.flatten(), predicted.flatten(), average=None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_ignored_pixels_and_absent_classes():
    truth = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 1, 1, 2]])
    matrix = confusion(truth, predicted, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert class_iou(matrix)[:2].tolist() == [0.5, 0.5]
    assert class_iou(matrix)[2:].isnan().all()


def test_features_that_tell_the_class_reach_100_and_noise_does_not():
    found = segment({"told": own_pixels, "blind": blind}, made(10), made(5, seed=1))
    told, noise = found["rows"]
    assert told["miou_percent"] == 100
    assert told["interval95_percent"] == [100, 100]
    assert told["pixel_accuracy_percent"] == 100
    assert noise["miou_percent"] < 40
    low, high = noise["interval95_percent"]
    assert low <= noise["miou_percent"] <= high
    assert (found["train_images"], found["test_images"], found["classes"]) == (10, 5, 3)
    assert json.loads(json.dumps(found)) == found


def test_ignored_pixels_change_nothing():
    train, test = made(8), made(4, seed=1)
    before = segment({"told": own_pixels}, train, test)["rows"]
    test.truth[:, :3] = 255
    after = segment({"told": own_pixels}, train, test)["rows"]
    assert after[0]["miou_percent"] == before[0]["miou_percent"] == 100


def test_the_network_runs_once_more_over_checked_images_only():
    """However many penalties: 10 training images (2 of them checked) and 3 test images."""
    seen = []

    def counted(images):
        seen.append(len(images))
        return own_pixels(images)

    segment({"told": counted}, made(10), made(3, seed=1), batch_size=4)
    assert sum(seen) == 10 + 2 + 3


def test_test_masks_choose_nothing():
    train, test = made(8), made(4, seed=1)
    one = segment({"blind": blind}, train, test)["rows"][0]
    test.truth = test.truth.flip(0)
    two = segment({"blind": blind}, train, test)["rows"][0]
    assert one["held_out_miou_percent"] == two["held_out_miou_percent"]
    assert one["penalty"] == two["penalty"]


def test_the_classifier_is_that_of_the_pixels():
    """Each pixel a row with its patch's feature: the same loss, up to the solver's tolerance."""
    masks = made(6, side=4).truth
    features = torch.randn(6, 4, 3)

    def patches(images):
        return features[images[:, 1, 0, 0].long()], (2, 2)

    pixels = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    pixels[:, 1] = torch.arange(6).view(6, 1, 1)
    part = Made(pixels, masks)
    x, shares = _rows(patches, part, torch.arange(6), 3, 2, 1000, 0)
    assert x.shape == (24, 3)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    found = _fit(x, shares, 1e-2, 3, 1000)

    scaler = StandardScaler().fit(features.flatten(0, 1))
    rows, labels = [], []
    for image in range(6):
        for y in range(4):
            for column in range(4):
                rows.append(features[image, 2 * (y // 2) + column // 2].numpy())
                labels.append(int(masks[image, y, column]))
    # Penalty w beside the mean loss: C = 1 / (w n).
    model = LogisticRegression(C=1 / (1e-2 * len(rows)), max_iter=1000, tol=1e-8)
    model.fit(scaler.transform(rows), labels)
    np.testing.assert_allclose(found.model.coef_, model.coef_, atol=2e-3)


def test_pixel_patches_are_the_patches():
    images = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    rows, grid = pixel_patches((2, 3), (0.0,) * 3, (1.0,) * 3)(images)
    assert grid == (2, 3)
    expected = images[1, :, 4:8, 4:8] / 255
    torch.testing.assert_close(rows[1, 4], expected.flatten())


@pytest.fixture
def folders(tmp_path):
    """12 images of shapes and their masks: background 0, shape 1."""
    random = np.random.default_rng(0)
    for number in range(12):
        kind = CLASSES[number % 3]
        image = draw(kind, random)
        for root, values in (("images", image), ("masks", (image.max(2) >= 100).astype(np.uint8))):
            (tmp_path / root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / root / kind / f"{number}.png")
    return tmp_path / "images", tmp_path / "masks"


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 61), (30, 30)])
def test_masks_are_cut_as_their_images(tmp_path, height, width):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 3 : height - 8, width // 4 : width // 2] = 1
    for root, values in (("i", np.repeat(200 * mask[..., None], 3, 2)), ("m", mask)):
        (tmp_path / root).mkdir()
        Image.fromarray(values).save(tmp_path / root / "a.png")
    part = open_masked_images(
        tmp_path / "i", tmp_path / "m", size=(32, 32), holdout=0.0, eval_crop=0.875
    )
    red = part.images(torch.tensor([0]))[0, 0].int()
    cut = part.masks(torch.tensor([0]))[0]
    assert 50 < int(cut.sum()) < 900
    # Bicubic mixes both sides at an edge; where it does not, image and mask agree.
    assert torch.equal(cut[red > 190], torch.ones_like(cut[red > 190]))
    assert torch.equal(cut[red < 10], torch.zeros_like(cut[red < 10]))
    assert int(((red > 190) | (red < 10)).sum()) > 600


def test_command(folders, tmp_path, capsys):
    images, masks = folders
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = timm.create_model(VIT, num_classes=0, **options)
    torch.save(encoder.state_dict(), tmp_path / "w.pth")
    out = tmp_path / "result.json"
    from clustermim_fast import api

    result = api.evaluate_segmentation(
        VIT, data=str(images), masks=str(masks), weights=tmp_path / "w.pth", out=out,
        model_options=options, penalties=(1e-3,),
    )  # fmt: skip
    assert json.loads(out.read_text())["rows"] == result["rows"]
    assert [row["name"] for row in result["rows"]] == ["pretrained", "random_init", "raw_pixels"]
    assert result["rows"][2]["miou_percent"] > 50  # bright shapes on a dark ground
    assert "mean IoU %" in capsys.readouterr().out
    card = result["card"]
    assert {"commit", "versions", "weights_sha256", "config", "finished"} <= card.keys()
    assert card["data"]["train_fingerprint"] != card["data"]["test_fingerprint"]
    assert cli.main(["evaluate", "segment", VIT, f"data={images}"]) == 1
    assert "masks: expected a folder" in capsys.readouterr().err


def test_refusals(folders):
    images, masks = folders

    def refused(message, mask=None):
        if mask is not None:
            Image.fromarray(mask).save(masks / "cross" / "0.png")
        with pytest.raises(ValueError, match=message):
            open_masked_images(images, masks, size=(16, 16), holdout=0.0).masks(torch.arange(12))

    refused("has mode RGB", np.zeros((16, 16, 3), np.uint8))
    refused(re.escape("has 8 x 16 pixels, its image 16 x 16"), np.zeros((8, 16), np.uint8))
    (masks / "cross" / "0.png").unlink()
    refused("1 of 12 images have none")
    with pytest.raises(ValueError, match="folder of PNG"):
        open_masked_images(images, masks / "nowhere", size=(16, 16))
    one = made(4)
    one.truth[:] = 1
    with pytest.raises(ValueError, match="at least two classes"):
        segment({"told": own_pixels}, one, one)
