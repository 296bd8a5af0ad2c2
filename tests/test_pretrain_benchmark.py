"""Benchmarks of a run's parts: a step's are the step, its step is the driver's, programs run."""

from __future__ import annotations

import itertools
import sys

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("torchvision", reason="the extra [train] is not installed")

import torch

from benchmarks import scale
from benchmarks.end_to_end import bench_pretrain_step as bench
from benchmarks.end_to_end import bench_reading
from benchmarks.end_to_end.clock import Clock
from clustermim_fast.losses import LossConfig
from clustermim_fast.models import ModelConfig
from clustermim_fast.optim import set_learning_rate
from clustermim_fast.train.step import forward_step
from tests.shapes import draw_folder

CPU = torch.device("cpu")
TINY = bench.Case(
    ModelConfig(patch_size=4, embed_dim=16, depth=1, num_heads=2, decoder_dim=16, decoder_depth=1),
    side=16,
    stored=16,
    batch=4,
    clusters=5,
)


def test_parts_are_the_intervals_between_marks():
    times = iter([1.0, 3.0, 3.5, 7.5, 8.0])
    clock = Clock(CPU, lambda: next(times))
    clock.mark()
    for name in ("data", "mask", "data"):
        clock.mark(name)
    assert clock.seconds() == {"data": 6.0, "mask": 0.5, "step": 6.5}
    clock.mark()
    assert clock.seconds() == {"step": 0}


@pytest.mark.parametrize("name", ["clustermim", "mae"])
def test_no_time_between_parts_is_lost(name):
    ticks = itertools.count()
    ours = bench.Ours(name, TINY, torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), CPU)
    ours.clock._now = lambda: float(next(ticks))
    parts = ours.step()
    total = parts.pop("step")
    assert total == sum(parts.values()) == next(ticks) - 1  # from the first mark to the last
    expected = [part for part in bench.PARTS if part != "forward"]
    if name == "mae":
        expected.remove("tokens")
    assert list(parts) == expected


def test_the_step_is_the_drivers():
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    timed, plain = (bench.Ours("clustermim", TINY, images, CPU) for _ in range(2))
    for _ in range(2):
        timed.step()
        batch, masks = plain.batch()
        result = forward_step(
            plain.model, plain.tokenizer, batch, masks, plain.mean, plain.std, LossConfig()
        )
        result.loss.backward()
        set_learning_rate(plain.optimizer, bench.LR)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    for one, other in zip(timed.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_reference_learns_what_it_hides():
    """Its loss is over three quarters of the patches, and falls on images that it has seen."""
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).expand(4, 3, 16, 16)
    ours = bench.Ours("mae", TINY, images, CPU)
    model = bench.Reference(TINY, 16, 1, 1)
    predicted = torch.zeros(4, 16, 48)
    model.head.register_forward_hook(lambda *_: torch.cat([predicted[:, :1], predicted], dim=1))
    pixels = (images / 255 - ours.mean) / ours.std
    truth = bench.patchify(pixels, 4).square().mean(-1)[0].sort().values
    loss = float(model(pixels).detach())  # of zeros: between the 12 dullest and brightest patches
    assert truth[:12].mean() <= loss * 1.00001
    assert loss <= truth[4:].mean() * 1.00001


def test_the_steps_program(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(bench.CASES, "cifar", TINY)
    out = tmp_path / "out.json"
    arguments = ["--cases", "cifar", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["bench", *arguments, "--json", str(out)])
    bench.main()
    shown = capsys.readouterr().out
    assert "| MAE-style loop |" in shown
    assert "| bare model, forward and backward |" in shown
    assert out.is_file()


def test_the_reading_program(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(bench_reading.CASES, "cifar", TINY)
    data = draw_folder(tmp_path / "shapes", 4)
    arguments = ["--data", str(data), "--case", "cifar", "--images", "6", "--rounds", "1"]
    arguments += ["--read-batches", "2", "--train-batches", "2", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    bench_reading.main()
    read, train = capsys.readouterr().out.split("train, cifar, batch 4, 6 images")
    for way in ("files", "cache", "memory", "torchvision"):
        assert f"| {way} |" in read
        assert f"| {way} |" in train
    assert "| network alone |" in train


def test_waiting_is_what_comes_before_a_batch(monkeypatch):
    """The first batch counts neither as work nor as waiting."""
    now = [0.0]
    monkeypatch.setattr(bench_reading.time, "perf_counter", lambda: now[0])

    def images():
        for delay in (100.0, 1.0, 2.0):
            now[0] += delay
            yield delay

    def use(batch):
        now[0] += 10.0

    assert bench_reading.one_round(images, 2, use) == (23.0, 3.0)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory by Linux's VmHWM")
def test_the_fit_of_a_large_set_is_predicted_first(monkeypatch, capsys, tmp_path):
    for name, value in (("IMAGENET_IMAGES", 50), ("SIDE", 16), ("PATCH", 4), ("BATCH", 8)):
        monkeypatch.setattr(scale, name, value)
    data = draw_folder(tmp_path / "shapes", 4)
    arguments = ["--data", str(data), "--share", "2", "--clusters", "5", "--iterations", "2"]
    monkeypatch.setattr("sys.argv", ["scale", *arguments, "--threads", "1"])
    scale.main()
    shown = capsys.readouterr().out
    assert shown.startswith(
        "25 images, 400 rows, D = 48, K = 5, 2 iterations, 1 threads\npredicted"
    )
    assert "\n2 iterations\n" in shown
    assert "| CPU seconds |" in shown


def test_crops_of_a_share(tmp_path):
    """The same in every pass, `count` in all, each photograph in turn with another crop."""
    images = scale.open_images(draw_folder(tmp_path / "shapes", 2), size=16, split="all")
    crops = scale.Crops(images, 15)
    first, again = torch.cat(list(crops)), torch.cat(list(crops))
    assert torch.equal(first, again)
    assert len(first) == 15
    assert not torch.equal(first[:6], first[6:12])
    expected = images.crops(0, 2, [0, 1, 2], scale.DataConfig())
    assert torch.equal(first[12:], expected)
