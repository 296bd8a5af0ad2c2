"""A cache gives what its folder gives, byte for byte."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from clustermim_fast import data
from clustermim_fast.data.cache import Cache, CacheStore, check_cache
from clustermim_fast.data.cache.index import exact_sums
from clustermim_fast.data.cache.store import open_caches
from clustermim_fast.image_files import JPEG_DECODERS
from clustermim_fast.recipes.auto import auto_recipe
from tests.data.cached import build, contents, noise, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder")


@pytest.fixture
def odd_folder(tmp_path):
    """One of each kind that the decoder treats in its own way, and two that cannot be read."""
    root = tmp_path / "odd"
    root.mkdir()
    colours = noise(40, 30, 3)
    Image.fromarray(colours).save(root / "colour.jpg", quality=95)
    Image.fromarray(colours).save(root / "half.jpg", subsampling=2)
    Image.fromarray(colours).save(root / "progressive.jpg", progressive=True)
    Image.fromarray(colours[..., 0]).save(root / "grey.jpg")
    Image.fromarray(colours).convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(colours).convert("P").save(root / "palette.png")
    Image.fromarray(noise(40, 36, 4)).save(root / "alpha.png")
    wide = np.random.default_rng(1).integers(0, 65536, (40, 40)).astype(np.uint16)
    Image.fromarray(wide).save(root / "grey16.png")
    for turn in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(colours).save(root / f"turned{turn}.jpg", exif=exif)
    Image.fromarray(noise(130, 170, 3)).save(root / "large.jpg")
    whole = (root / "colour.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("this is not a picture")
    return root


@pytest.mark.parametrize("decoder", JPEG_DECODERS)
def test_odd_images_are_stored_as_the_folder_decodes_them(odd_folder, tmp_path, decoder):
    if decoder != "pillow":
        pytest.importorskip(decoder, reason=f"{decoder} is not installed")
    cache = build(odd_folder, tmp_path / "cache", size=64, decoder=decoder)
    names = (cache.folder / "names.txt").read_text().split()
    broken = ["text.jpg", "truncated.jpg"]
    assert names == sorted({p.name for p in odd_folder.iterdir()} - set(broken))
    stored = data.open_images(cache.folder, size=32, in_memory="no")
    for index, name in enumerate(names):
        decoded = data.decode_image(odd_folder / name, 64, "pillow")
        assert torch.equal(stored.pixels(index), torch.from_numpy(decoded)), name
    assert [item.name for item in cache.broken] == broken
    assert all(item.reason for item in cache.broken)
    assert "0x" not in (cache.folder / "broken.txt").read_text()  # an address


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize("split, holdout", [("train", 0.0), ("train", 0.25), ("test", 0.25)])
def test_crops_views_and_labels_are_those_of_the_folder(
    folder, tmp_path, in_memory, split, holdout
):
    build(folder, tmp_path / "cache")
    one, other = (
        data.open_images(place, size=8, split=split, holdout=holdout, in_memory=kept)
        for place, kept in ((folder, "yes"), (tmp_path / "cache", in_memory))
    )
    ids = np.arange(len(one))
    assert len(one) == len(other) > 0
    assert one.labels.tolist() == other.labels.tolist()
    assert one.class_names == other.class_names == ["cat", "dog"]
    assert torch.equal(one.images(ids), other.images(ids))
    config = data.DataConfig()
    assert torch.equal(one.crops(3, 1, ids, config), other.crops(3, 1, ids, config))
    assert other.in_memory == (in_memory == "yes")
    assert [path.name for path, _ in other.broken] == ["006.png"]


def test_train_and_test_folders_become_two_caches(tmp_path):
    from clustermim_fast.api import cache_images

    write_folder(tmp_path / "set" / "train", 12)
    write_folder(tmp_path / "set" / "val", 8)
    said = []
    cache_images(tmp_path / "set", tmp_path / "cache", workers=1, say=said.append)
    for split, count in (("train", 11), ("test", 7), ("all", 18)):
        assert len(data.open_images(tmp_path / "cache", size=8, split=split)) == count
    assert len(said) == 2
    assert "11 images, 2 classes" in said[0]
    assert "1 unreadable, listed in" in said[0]
    assert "images/s, 1 threads, JPEG by" in said[0]


def test_mean_and_std_are_those_of_all_stored_pixels(folder, tmp_path):
    cache = build(folder, tmp_path / "cache", size=11)
    images = data.open_images(cache.folder, size=8)
    pixels = torch.cat([images.pixels(i).flatten(1) for i in range(len(images))], dim=1).double()
    mean, std = pixels.mean(1) / 255, pixels.std(1, correction=0) / 255
    for measured, exact in zip(images.channel_stats(), (mean, std), strict=True):
        assert np.allclose(measured, exact, rtol=0, atol=5.01e-7)  # written with six digits


def test_sums_are_exact_at_the_largest_values():
    for count in (1, 255, 256, 257, 70_000):
        rows = np.full((3, count), 255, dtype=np.uint8)
        sums, squares = exact_sums(rows)
        assert sums.tolist() == [255 * count] * 3
        assert squares.tolist() == [65025 * count] * 3


def test_sizes_are_chosen_as_for_the_folder(folder, tmp_path):
    build(folder, tmp_path / "cache")
    assert auto_recipe(str(folder))[1] == auto_recipe(str(tmp_path / "cache"))[1]


def test_more_threads_give_the_same_bytes(tmp_path):
    folder = write_folder(tmp_path / "folder", 150)  # three shards
    one = contents(build(folder, tmp_path / "one", threads=1).folder)
    three = contents(build(folder, tmp_path / "three", threads=3).folder)
    assert one == three
    assert len([name for name in one if name.endswith(".bin")]) == 3


def test_other_programs_can_check_it(folder, tmp_path):
    cache = build(folder, tmp_path / "cache")
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=cache.folder, check=True)
    listed = {
        line.split("  ")[1] for line in (cache.folder / "SHA256SUMS").read_text().splitlines()
    }
    assert listed == {path.name for path in cache.folder.iterdir()} - {"SHA256SUMS"}
    assert check_cache(cache.folder) == []


def test_a_worker_maps_the_files_itself(folder, tmp_path):
    from multiprocessing.reduction import ForkingPickler

    cache = build(folder, tmp_path / "cache")
    store = CacheStore([cache], np.arange(len(cache.shapes)))
    first = store[0].clone()
    sent = ForkingPickler.dumps(store)
    assert len(sent) < cache.facts["bytes"]  # what is mapped does not travel
    assert torch.equal(ForkingPickler.loads(sent)[0], first)


def test_shards_without_images(tmp_path):
    folder = write_folder(tmp_path / "folder", 130, classes=("all",))
    for index in [*range(64), 128, 129]:  # the first shard and the last
        for path in (folder / "all").glob(f"{index:03d}.*"):
            path.write_text("no picture")
    cache = build(folder, tmp_path / "cache")
    assert cache.facts["shards"] == [0, 64, 0]
    images = data.open_images(cache.folder, size=8, in_memory="no")
    assert torch.equal(images.pixels(0), data.open_images(folder, size=8).pixels(0))
    assert len(Cache.open(cache.folder).broken) == 66


def test_small_caches_are_read_into_memory(folder, tmp_path):
    cache = build(folder, tmp_path / "cache")
    listing = data.cache.cache_listing(cache.folder, "train", 0.0)
    assert open_caches(listing, "auto", cache.facts["bytes"]).in_memory
    assert not open_caches(listing, "auto", cache.facts["bytes"] - 1).in_memory
