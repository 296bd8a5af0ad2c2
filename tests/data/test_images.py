"""Folders of images as people have them: classes or none, every mode Pillow knows, broken files."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from clustermim_fast import data
from clustermim_fast.data import DataConfig, ImageSet
from clustermim_fast.data.folder import list_folder
from clustermim_fast.data.store import MemoryStore


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def odd_folder(tmp_path):
    """Five odd files that must be read and two that cannot be."""
    Image.fromarray(noise(40, 30, 3)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(noise(40, 40, 3)).convert("P").save(tmp_path / "palette.png")
    alpha = noise(40, 40, 4)
    alpha[:20, :, 3] = 0
    alpha[20:, :, 3] = 255
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    grey = np.random.default_rng(1).integers(0, 65536, (40, 40)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    Image.fromarray(noise(1, 1, 3)).save(tmp_path / "one_pixel.png")
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole.jpg").unlink()
    (tmp_path / "text.jpg").write_text("this is not a picture")
    return tmp_path


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_odd_files(odd_folder, in_memory):
    images = data.open_images(odd_folder, size=32, in_memory=in_memory)
    views = images.images(torch.arange(len(images)))
    crops = images.crops(0, 0, torch.arange(len(images)), data.DataConfig())
    for batch in (views, crops):
        assert batch.shape == (len(images), 3, 32, 32)
        assert batch.dtype == torch.uint8
    assert sorted(path.name for path, _ in images.broken) == ["text.jpg", "truncated.jpg"]
    assert all(reason for _, reason in images.broken)
    if in_memory == "yes":
        assert len(images) == 5


def test_16_bit_grey_is_scaled_not_clipped(odd_folder):
    values = np.asarray(Image.open(odd_folder / "grey16.png")).astype(np.float64)
    decoded = data.decode_image(odd_folder / "grey16.png")
    assert abs(decoded.mean() - values.mean() / 257) < 0.3  # clipping would give about 254
    assert (decoded[0] == decoded[1]).all()
    assert np.abs(decoded[0] - values / 257).max() <= 0.5


def test_alpha_is_composited_on_white(odd_folder):
    decoded = data.decode_image(odd_folder / "alpha.png")
    assert (decoded[:, :20] == 255).all()
    source = np.asarray(Image.open(odd_folder / "alpha.png"))
    assert np.array_equal(decoded[:, 20:], source[20:, :, :3].transpose(2, 0, 1))


def test_one_pixel_becomes_an_even_image(odd_folder):
    images = data.open_images(odd_folder, size=32)
    index = [p.name for p in list_folder(odd_folder, "all", 0.0).paths if p.name[0] != "t"]
    view = images.images([index.index("one_pixel.png")])[0]
    assert (view == view[:, :1, :1]).all()


def test_exif_orientation(tmp_path):
    picture = Image.fromarray(noise(20, 30, 3))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert data.decode_image(tmp_path / "a.jpg").shape == (3, 30, 20)


def test_float_image_is_refused_with_a_reason(tmp_path):
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "f.tiff")
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "g.png")
    images = data.open_images(tmp_path, size=8)
    assert len(images) == 1
    assert "range of its values is not known" in images.broken[0][1]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
def test_every_mode_has_three_channels(mode, tmp_path):
    picture = Image.fromarray(noise(8, 9, 3))
    picture = picture.convert("L").convert("I").convert(mode) if mode == "I;16" else picture
    picture.convert(mode).save(tmp_path / "a.tiff")
    assert data.decode_image(tmp_path / "a.tiff").shape == (3, 8, 9)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_tiffs_of_other_numbers_of_channels(channels, tmp_path):
    """One is grey; two and five are no picture that Pillow knows, and listed as such."""
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 122, 277: channels, 278: 8, 279: 64}
    tags[279] *= channels
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    assert len(header) == tags[273]  # where the pixels begin
    (tmp_path / "a.tiff").write_bytes(header + bytes(64 * channels))
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "b.png")
    images = data.open_images(tmp_path, size=8)
    assert len(images) == 1 + (channels == 1)
    assert [path.name for path, _ in images.broken] == ["a.tiff"] * (channels != 1)


def test_large_images_are_reduced(tmp_path):
    Image.fromarray(noise(300, 500, 3)).save(tmp_path / "a.jpg")
    assert data.decode_image(tmp_path / "a.jpg", 64).shape == (3, 64, 107)
    assert data.decode_image(tmp_path / "a.jpg").shape == (3, 300, 500)


def make_classes(root, classes=("b", "a"), count=10):
    for label, name in enumerate(classes):
        (root / name / "deeper").mkdir(parents=True)
        for index in range(count):
            folder = root / name / ("deeper" if index % 2 else "")
            Image.fromarray(noise(8, 8, 3, seed=100 * label + index)).save(folder / f"{index}.png")


def test_classes_are_the_first_level(tmp_path):
    make_classes(tmp_path)
    (tmp_path / "notes.txt").write_text("not an image, and not called one")
    images = data.open_images(tmp_path, size=8)
    assert images.class_names == ["a", "b"]
    assert np.bincount(images.labels).tolist() == [10, 10]
    assert images.broken == []


def test_flat_folder_has_no_labels(tmp_path):
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "x.PNG")
    images = data.open_images(tmp_path, size=8)
    assert (len(images), images.labels, images.class_names) == (1, None, None)


def test_train_and_test_folders(tmp_path):
    make_classes(tmp_path / "train", count=4)
    make_classes(tmp_path / "val", count=2)
    assert len(data.open_images(tmp_path, size=8)) == 8
    assert len(data.open_images(tmp_path, size=8, split="test")) == 4


def test_hold_out_is_stratified_fixed_and_complete(tmp_path):
    make_classes(tmp_path)
    train = data.open_images(tmp_path, size=8, holdout=0.3)
    test = data.open_images(tmp_path, size=8, holdout=0.3, split="test")
    assert np.bincount(train.labels).tolist() == [7, 7]
    assert np.bincount(test.labels).tolist() == [3, 3]
    pixels = torch.cat([train.images(range(14)), test.images(range(6))]).flatten(1)
    assert len(torch.unique(pixels, dim=0)) == 20
    with pytest.raises(ValueError, match=r"set data\.holdout"):
        data.open_images(tmp_path, size=8, split="test")


def test_a_link_to_a_parent_ends(tmp_path):
    make_classes(tmp_path, count=2)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(data.open_images(tmp_path, size=8)) == 4


def test_memory_and_disk_give_the_same_pixels(tmp_path):
    for index in range(4):
        Image.fromarray(noise(30 + index, 50 - 3 * index, 3, seed=index)).save(
            tmp_path / f"{index}.png"
        )
    memory = data.open_images(tmp_path, size=(16, 24), in_memory="yes")
    disk = data.open_images(tmp_path, size=(16, 24), in_memory="no")
    ids = np.arange(4)
    assert torch.equal(memory.images(ids), disk.images(ids))
    config = data.DataConfig()
    assert torch.equal(memory.crops(3, 1, ids, config), disk.crops(3, 1, ids, config))
    assert memory.images(ids).shape == (4, 3, 16, 24)


def test_channel_stats_are_exact(tmp_path):
    array = noise(6, 16, 16, 3)
    for index in range(6):
        Image.fromarray(array[index]).save(tmp_path / f"{index}.png")
    mean, std = data.open_images(tmp_path, size=16).channel_stats()
    scaled = array.astype(np.float64) / 255
    assert np.allclose(mean, scaled.mean((0, 1, 2)), rtol=0, atol=1e-12)
    assert np.allclose(std, scaled.std((0, 1, 2)), rtol=0, atol=1e-12)


def test_digits():
    train = data.open_images("digits", size=32)
    test = data.open_images("digits", size=32, split="test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.images([0]).shape == (1, 3, 32, 32)
    assert np.bincount(test.labels).min() >= 34
    assert len(data.open_images("digits", size=32, split="all")) == 1797
    assert data.open_images("digits", size=16).images([5]).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "absent", "not an existing folder"),
        (lambda root: root, "no images below"),
        (lambda root: [(root / "a.jpg").write_text("x"), root][1], "can be read"),
    ],
)
def test_refusals(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        data.open_images(make(tmp_path), size=8)


def test_nothing_readable_on_disk(tmp_path):
    (tmp_path / "a.jpg").write_text("x")
    images = data.open_images(tmp_path, size=8, in_memory="no")
    with pytest.raises(RuntimeError, match="none of the 1 images can be read"):
        images.images([0])


def test_a_set_on_a_device_gives_the_same_crops():
    """The pixels are those of the store, wherever they lie; each image still crops itself."""
    images = torch.randint(0, 256, (7, 3, 20, 24), dtype=torch.uint8)
    stored = ImageSet(MemoryStore.from_tensor(images), (16, 16), eval_crop=1.0)
    moved = stored.to(torch.device("cpu"))
    assert moved.resident
    assert not stored.resident
    for config in (DataConfig(), DataConfig(repeats=2)):
        want = stored.crops(3, 1, [6, 0, 6, 2], config)
        assert torch.equal(moved.crops(3, 1, [6, 0, 6, 2], config), want)
    on_meta = stored.to(torch.device("meta")).crops(0, 0, [1], DataConfig())
    assert on_meta.device.type == "meta"  # made where the pixels are


def test_a_set_of_many_sizes_goes_to_no_device():
    pixels = [np.zeros((3, 8, width), dtype=np.uint8) for width in (8, 9)]
    stored = ImageSet(MemoryStore.from_arrays(pixels), (8, 8), source="photos")
    with pytest.raises(ValueError, match="images of one size, those of photos are of several"):
        stored.to(torch.device("cpu"))
