"""PixelTokenizer: ids, decoding, patch orders, files, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clustermim_fast.tokenizers import PixelTokenizer, Tokenizer, load_tokenizer, storage

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photos(n=3, size=16, channels=3):
    """Smooth-ish uint8 images."""
    small = torch.randint(0, 256, (n, channels, size // 4, size // 4)).float()
    return F.interpolate(small, size=size, mode="bilinear").byte()


def patch_rows(images, p, order, mean=None, std=None, per_patch_norm=False):
    """The rows by loops over patches, float32 steps as torchvision's ToTensor and Normalize."""
    x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if mean is not None:
        x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    rows = []
    for image in x:
        for top in range(0, image.shape[1], p):
            for left in range(0, image.shape[2], p):
                patch = image[:, top : top + p, left : left + p]
                if per_patch_norm:
                    wide = patch.double()
                    patch = (wide - wide.mean()) / (wide.var() + 1e-6).sqrt()
                rows.append((patch.permute(1, 2, 0) if order == "hwc" else patch).flatten())
    return torch.stack(rows).float()


@pytest.mark.parametrize("order", ["hwc", "chw"])
@pytest.mark.parametrize("per_patch_norm", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_ids_are_those_of_the_rows(order, per_patch_norm, metric):
    images = photos()
    rows = patch_rows(images, 4, order, MEAN, STD, per_patch_norm)
    centroids = rows[torch.randperm(len(rows))[:10]] + 0.01 * torch.randn(10, 48)
    tokenizer = PixelTokenizer.from_centroids(
        centroids,
        4,
        patch_order=order,
        mean=MEAN,
        std=STD,
        per_patch_norm=per_patch_norm,
        metric=metric,
    )
    if metric == "euclidean":
        score = -((rows.double()[:, None] - centroids.double()[None]) ** 2).sum(dim=2)
    else:
        score = F.normalize(rows.double()) @ F.normalize(centroids.double()).T
    expected = score.argmax(dim=1).reshape(3, 16)
    assert torch.equal(tokenizer(images), expected)
    assert torch.equal(tokenizer(images.float() / 255), expected)
    normal = (images.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    assert torch.equal(tokenizer(normal, normalized=True), expected)


def test_hwc_is_maes_order_and_chw_is_unfolds():
    images = photos(1, 8)
    x = images.float() / 255
    mae = torch.einsum("nchpwq->nhwpqc", x.reshape(1, 3, 2, 4, 2, 4)).reshape(4, 48)
    unfold = F.unfold(x, 4, stride=4)[0].T
    for rows, order in ((mae, "hwc"), (unfold, "chw")):
        tokenizer = PixelTokenizer.from_centroids(rows.numpy(), 4, patch_order=order)
        assert tokenizer(images)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("order", ["hwc", "chw"])
@pytest.mark.parametrize("normalised", [False, True])
def test_decode_gives_the_image_back_where_every_patch_is_a_centroid(order, normalised):
    images = photos(2, 16)
    mean, std = (MEAN, STD) if normalised else (None, None)
    rows = patch_rows(images, 4, order, mean, std)
    tokenizer = PixelTokenizer.from_centroids(rows, 4, patch_order=order, mean=mean, std=std)
    decoded = tokenizer.decode(tokenizer(images))
    assert decoded.shape == (2, 3, 16, 16)
    torch.testing.assert_close(decoded, images.float() / 255, atol=1e-6, rtol=0)


def test_decode_other_grids_grey_and_refusals():
    rows = patch_rows(photos(1, 8), 4, "hwc")
    tokenizer = PixelTokenizer.from_centroids(rows, 4)
    tokens = torch.tensor([[0, 1, 2, 3, -1, 0]])
    wide = tokenizer.decode(tokens, grid=(2, 3))
    assert wide.shape == (1, 3, 8, 12)
    assert (wide[0, :, 4:, 4:8] == 0.5).all()
    assert torch.equal(wide, tokenizer.decode(tokens.reshape(1, 2, 3)))
    with pytest.raises(ValueError, match=r"L = 6 places, grid \(2, 2\) has 4"):
        tokenizer.decode(tokens)
    with pytest.raises(ValueError, match=r"ids must lie in -1 \.\. 3, got 4 \.\. 4"):
        tokenizer.decode(torch.full((1, 4), 4))
    assert tokenizer.decode(torch.empty(0, 4, dtype=torch.int64)).shape == (0, 3, 8, 8)


def test_centroids_without_brightness_are_shown_in_a_visible_range():
    images = photos(4, 16)
    for options in ({"per_patch_norm": True}, {"metric": "cosine"}):
        tokenizer = PixelTokenizer.fit(images, 5, 4, mean=MEAN, std=STD, max_iter=2, **options)
        pictures = tokenizer.centroid_images()
        assert 0 <= pictures.min() <= pictures.max() <= 1
        assert pictures.std() > 0.05


def test_one_channel_is_shown_in_three():
    tokenizer = PixelTokenizer.from_centroids(np.random.default_rng(0).random((6, 16)), 4)
    assert tokenizer.num_channels == 1
    image = tokenizer.decode(torch.zeros(1, 4, dtype=torch.int64))
    assert image.shape == (1, 3, 8, 8)
    assert torch.equal(image[:, 0], image[:, 2])


def test_grid_size():
    tokenizer = PixelTokenizer.from_centroids(np.zeros((1, 48)), 4)
    assert tokenizer.grid_size(8, 12) == (2, 3)
    with pytest.raises(ValueError, match="10 x 12 pixels are not a multiple of patch_size = 4"):
        tokenizer.grid_size(10, 12)
    assert isinstance(tokenizer, Tokenizer)


def fitted():
    return PixelTokenizer.fit(
        photos(8), 6, 4, mean=MEAN, std=STD, patch_order="chw", metric="cosine", max_iter=2
    )


def test_save_and_load_keep_everything(tmp_path):
    tokenizer = fitted()
    path = tmp_path / "deep" / "tok.safetensors"
    tokenizer.save(path)
    again = load_tokenizer(path)
    assert torch.equal(again.centroids, tokenizer.centroids)
    assert again.settings == tokenizer.settings
    assert again.settings.mean == MEAN  # the same floats, not their float32 rounding
    assert (again.metric, again.num_clusters, again.patch_size) == ("cosine", 6, 4)
    assert again.report == tokenizer.report
    assert again.fingerprint() == tokenizer.fingerprint()
    images = photos()
    assert torch.equal(again(images), tokenizer(images))
    assert sorted(p.name for p in path.parent.iterdir()) == ["tok.safetensors"]


def test_fingerprint_changes_with_whatever_changes_ids():
    rows = torch.rand(5, 48)
    base = PixelTokenizer.from_centroids(rows, 4).fingerprint()
    other = rows.clone()
    other[0, 0] += 1e-3
    changed = [
        PixelTokenizer.from_centroids(other, 4),
        PixelTokenizer.from_centroids(rows, 4, patch_order="chw"),
        PixelTokenizer.from_centroids(rows, 4, mean=MEAN, std=STD),
        PixelTokenizer.from_centroids(rows, 4, per_patch_norm=True),
        PixelTokenizer.from_centroids(rows, 4, metric="cosine"),
        PixelTokenizer.from_centroids(rows.reshape(20, 12), 2),
    ]
    assert len({base, *(t.fingerprint() for t in changed)}) == 1 + len(changed)
    assert base == PixelTokenizer.from_centroids(rows.numpy(), 4).fingerprint()


def test_broken_and_foreign_files(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no such file"):
        load_tokenizer(tmp_path / "none.safetensors")
    path = tmp_path / "tok.safetensors"
    fitted().save(path)
    whole = path.read_bytes()
    for broken in (b"", b"not a file", whole[:100], whole[:-1]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            load_tokenizer(path)
    save_file({"centroids": torch.zeros(2, 48)}, path)
    with pytest.raises(ValueError, match=r"not a tokenizer.*from_centroids"):
        load_tokenizer(path)

    def metadata(**changes):
        values = {"format": storage.FORMAT, "format_version": "1", "kind": "pixel"}
        values["settings"] = json.dumps({"patch_size": 4, "metric": "euclidean"})
        save_file({"centroids": torch.zeros(2, 48)}, path, metadata={**values, **changes})

    metadata(format_version="99")
    with pytest.raises(ValueError, match="format version 99, this package reads up to 1"):
        load_tokenizer(path)
    metadata(kind="text")
    with pytest.raises(ValueError, match="unknown kind 'text'"):
        load_tokenizer(path)
    metadata()
    with pytest.raises(ValueError, match="lacks or misnames a setting"):
        load_tokenizer(path)
    metadata(settings="{")
    with pytest.raises(ValueError, match="unreadable settings"):
        load_tokenizer(path)


def test_refusals():
    rows = np.zeros((3, 48))
    for call, message in [
        (lambda: PixelTokenizer.from_centroids(rows, 5), "D = 48 values.*C \\* 25"),
        (lambda: PixelTokenizer.from_centroids(rows[0], 4), "must have shape"),
        (lambda: PixelTokenizer.from_centroids(rows[:0], 4), "K >= 1"),
        (lambda: PixelTokenizer.from_centroids(rows * np.nan, 4), "NaN or infinity"),
        (lambda: PixelTokenizer.from_centroids(rows, 0), "patch_size must be an int >= 1, got 0"),
        (lambda: PixelTokenizer.from_centroids(rows, 4, patch_order="whc"), "patch_order must be"),
        (
            lambda: PixelTokenizer.from_centroids(rows, 4, mean=(0.5, 0.5), std=1.0),
            "one value a channel",
        ),
        (lambda: PixelTokenizer.from_centroids(rows, 4, std=(1.0, 0.0, 1.0)), "std must be > 0"),
        (lambda: PixelTokenizer.from_centroids(rows, 4, mean=0.5), "std must be given.*std=1.0"),
        (lambda: PixelTokenizer.from_centroids(rows, 4, metric="dot"), "metric must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="array of numbers"):
        PixelTokenizer.from_centroids(np.array([["a"]]), 1)
    tokenizer = PixelTokenizer.from_centroids(rows, 4)
    with pytest.raises(ValueError, match="uint8 pixels are never normalised"):
        tokenizer(photos(), normalized=True)
    with pytest.raises(ValueError, match="multiples of patch_size = 4"):
        tokenizer(torch.zeros(1, 3, 10, 8))
