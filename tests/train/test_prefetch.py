"""Batches by a thread: the same ones, in memory that is not written to while it is in use."""

from __future__ import annotations

import threading

import pytest
import torch

from clustermim_fast import train
from clustermim_fast.data import DataConfig, open_images
from clustermim_fast.masking import MaskConfig
from clustermim_fast.train.batches import Plan, TrainingBatches, choose_workers, make_loader
from clustermim_fast.train.prefetch import Prefetched
from tests.data.cached import build, write_folder


def test_batches_are_those_made_on_demand():
    images = open_images("digits", size=32)
    batches = TrainingBatches(images, DataConfig(), MaskConfig(), 8, seed=3)
    plan = Plan(num_samples=len(images), batch_size=90, accumulate=1, epochs=2, seed=3)
    other = make_loader(batches, plan, 5, workers=0, pin_memory=False)
    count = 0
    for mine, theirs in zip(
        make_loader(batches, plan, 5, workers=None, pin_memory=False), other, strict=True
    ):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.samples, theirs.samples)
        assert torch.equal(mine.masks.mask, theirs.masks.mask)
        count += 1
    assert count == plan.total_steps - 5


def fill(key, out):
    return out.fill_(key)


def test_a_batch_stays_until_the_next_is_asked_for():
    made = []

    def make(key, out):
        made.append(key)
        return out.fill_(key)

    batches = iter(Prefetched(range(9), make, [torch.empty(4) for _ in range(3)]))
    for wanted in range(9):
        batch = next(batches)
        assert len(made) <= wanted + 3  # no more exist than there is memory
        assert (batch == wanted).all()
    with pytest.raises(StopIteration):
        next(batches)


def test_the_thread_ends_with_its_reader():
    before = threading.active_count()
    batches = iter(Prefetched(range(1000), fill, [torch.empty(4) for _ in range(3)]))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_an_error_reaches_the_reader():
    def make(key, out):
        if key == 2:
            raise OSError("the disk is gone")
        return out.fill_(key)

    batches = iter(Prefetched(range(9), make, [torch.empty(4) for _ in range(3)]))
    assert [int(next(batches)[0]), int(next(batches)[0])] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_who_reads(tmp_path):
    write_folder(tmp_path / "folder", 8)
    build(tmp_path / "folder", tmp_path / "cache")
    cpu = torch.device("cpu")
    for path, size, in_memory, expected in (
        ("cache", 128, "no", None),
        ("cache", 128, "yes", None),
        ("cache", 32, "yes", 0),
        ("folder", 128, "yes", None),
    ):
        images = open_images(tmp_path / path, size=size, in_memory=in_memory)
        assert choose_workers(None, images, cpu) == expected
        assert choose_workers(3, images, cpu) == 3
    files = open_images(tmp_path / "folder", size=128, in_memory="no")
    assert choose_workers(None, files, cpu) >= 1


def test_crops_made_on_a_device_are_not_pinned(tiny):
    """Pinning is for CPU tensors: torch refuses others."""
    config = tiny()
    images = train.open_run_images(config)
    for resident in (False, True):
        moved = images.to(torch.device("meta")) if resident else images
        batches = TrainingBatches(moved, config.data, config.mask, 3, 0)
        loader = make_loader(batches, Plan.of(40, 8, 1, 1, 0), 0, workers=0, pin_memory=True)
        assert loader.pin_memory is not resident
