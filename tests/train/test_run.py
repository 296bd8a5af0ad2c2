"""A run from images to checkpoint: what it writes and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from PIL import Image

from clustermim_fast import train
from clustermim_fast.models import list_methods
from clustermim_fast.train import step
from clustermim_fast.train.batches import BatchKey, Plan, TrainingBatches, make_loader
from tests.train.runs import QUIET, rows, states_equal


@pytest.mark.parametrize("method", list_methods())
def test_what_a_run_leaves(tiny, method):
    said = []
    result = train.run(tiny(method=method), say=said.append)
    assert (result.step, result.epoch) == (10, 2)
    assert math.isfinite(result.final_loss)
    stored = rows(result.run_dir)
    assert [row["step"] for row in stored] == [2, 4, 6, 8, 10]
    assert stored[-1]["loss"] == result.final_loss
    text = "\n".join(said)
    assert "effective batch 8 (8 x 1), lr 1.000e-03, 5 steps per epoch, 10 in all" in text
    hidden = "7 of 16 patches, 2 shown as centroids" if method == "ccvit" else "12 of 16 patches"
    assert f"mask: {hidden}" in text
    config = train.load_config(result.run_dir / "config.json")
    assert config.data.mean is not None
    loaded = train.load_run(result.run_dir)
    assert (loaded.config, loaded.step, loaded.epoch) == (config, 10, 2)
    assert not loaded.model.training
    names = sorted(path.name for path in (result.run_dir / "checkpoints").iterdir())
    assert names == ["epoch_0002.pt", "last.pt"]
    if method == "ccvit":
        assert stored[-1]["loss"] == pytest.approx(
            stored[-1]["token_loss"] + stored[-1]["branch_loss"]
        )
        assert "token_loss" in text
    if method in ("ccvit", "clustermim"):
        assert stored[-1]["loss_floor_lnK"] == math.log(6)
        assert 0 <= stored[-1]["masked_accuracy"] <= 1
        assert 1 <= stored[-1]["token_perplexity"] <= 6
        assert 1 <= stored[-1]["predicted_perplexity"] <= stored[-1]["predicted_used"] <= 6
        assert "(ln K 1.792)" in text
        assert "chance 16.7" in text
        assert loaded.tokenizer.num_clusters == 6


@pytest.mark.parametrize(("silence", "steps"), [(0.0, [1, 3, 5, 7, 9]), (1e9, [1])])
def test_a_slow_run_says_that_it_lives(tiny, monkeypatch, silence, steps):
    """Between its lines of progress, at every second step here; metrics.jsonl stays the same."""
    monkeypatch.setattr("clustermim_fast.train.progress.SILENCE_S", silence)
    said = []
    result = train.run(tiny(method="mae"), say=said.append)
    assert [line.split("  ")[0] for line in said if "s a step" in line] == [
        f"step {step}/10" for step in steps
    ]
    assert [row["step"] for row in rows(result.run_dir)] == [2, 4, 6, 8, 10]


def test_the_tokenizer_is_no_part_of_the_model(tiny):
    result = train.run(tiny(), **QUIET)
    loaded = train.load_run(result.run_dir)
    state = torch.load(result.run_dir / "checkpoints" / "last.pt", weights_only=True)
    centroids = loaded.tokenizer.centroids
    for tensor in [*state["model"].values(), *loaded.model.buffers(), *loaded.model.parameters()]:
        assert tensor.shape != centroids.shape
    assert not any("token" in name and "mask_token" not in name and "cls_token" not in name
                   for name in state["model"])  # fmt: skip


def test_workers_and_memory_change_nothing(tiny, tmp_path):
    plain = train.run(tiny(out=tmp_path / "a"), **QUIET)
    workers = train.run(tiny(out=tmp_path / "b", workers=2, data__in_memory="no"), **QUIET)
    assert states_equal(plain.run_dir, workers.run_dir)


def test_images_on_a_device_change_nothing(tiny, tmp_path):
    plain = train.run(tiny(), **QUIET)
    moved = train.run(tiny(out=str(tmp_path / "moved"), data__in_memory="device"), **QUIET)
    assert states_equal(plain.run_dir, moved.run_dir)
    options = {"out": str(tmp_path / "no"), "data__in_memory": "device", "workers": 2}
    with pytest.raises(ValueError, match="workers: expected none with data"):
        train.run(tiny(**options), **QUIET)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"img_size": "12x14"}, "not a multiple of model.patch_size 3.*img_size=12x15"),
        ({"mask_ratio": 0.99}, "at least one must be visible"),
        ({"data": ""}, "data: expected a folder"),
        ({"device": "cuda"}, "without CUDA"),
        ({"device": "gpu"}, "efficiency.device: expected .*, got 'gpu'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_fitted(tiny, overrides, message):
    if "device" in overrides and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        train.run(tiny(**overrides), **QUIET)


def test_a_tokenizer_that_is_not_used_is_said(tiny, tmp_path):
    said = []
    train.run(tiny(method="mae", tokenizer=tmp_path / "absent"), say=said.append)
    assert "mae predicts pixels: the tokenizer is not used" in said


def test_a_tokenizer_for_other_pixels_is_refused(tiny):
    config = tiny()
    images = train.open_run_images(config)
    resolved = train.resolve(config, images)
    tokenizer = train.prepare_tokenizer(resolved, images)
    with pytest.raises(ValueError, match=r"tokenizer: its mean is .*data\.mean is \[0\.5"):
        train.run(tiny(data__mean="0.5,0.5,0.5", data__std="1,1,1"), tokenizer, images, **QUIET)
    with pytest.raises(ValueError, match="its patch_size is 3, the model's is 4"):
        train.run(tiny(patch_size=4), tokenizer, images, **QUIET)


def test_tokenizer_file(tiny, tmp_path):
    first = train.run(tiny(), **QUIET)
    file = first.run_dir / "tokenizer.safetensors"
    second = train.run(tiny(out=tmp_path / "b", tokenizer=file, num_clusters=99), **QUIET)
    assert second.final_loss == first.final_loss
    assert train.load_run(second.run_dir).config.tokenizer.num_clusters == 6


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_nan_stops_the_run_and_is_never_saved(tiny, where):
    real = step.forward_step
    calls = 0

    def poisoned(model, *rest, **options):
        nonlocal calls
        calls += 1
        result = real(model, *rest, **options)
        if calls != 8:
            return result
        if where == "loss":
            return result._replace(loss=result.loss * math.nan)
        model.head.bias.data[0] = math.inf
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "forward_step", poisoned)
        # lines every 1000 steps: the weights must be found by the save, not by a line
        with pytest.raises(train.NonFiniteError, match=r"Last good checkpoint: .*last\.pt") as info:
            train.run(tiny(log__every_steps=1000), **QUIET)
    assert "optim.blr" in str(info.value)
    state = torch.load(f"{tiny().out}/checkpoints/last.pt", weights_only=True)
    assert state["step"] == 5
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_unreadable_files_are_listed_and_skipped(tiny, pictures):
    (pictures / "a.jpg").write_text("text")
    whole = (pictures / "05.png").read_bytes()
    (pictures / "z.png").write_bytes(whole[: len(whole) // 2])
    for in_memory in ("yes", "no"):
        said = []
        result = train.run(tiny(resume="restart", data__in_memory=in_memory), say=said.append)
        listed = (result.run_dir / "skipped_files.txt").read_text().splitlines()
        assert len(listed) == 2
        assert any("2 unreadable files skipped, listed in" in line for line in said)


def test_the_list_of_unreadable_files_outlives_the_run(tiny, pictures):
    """Read from disk, a broken file is met while training: a later call must not lose it."""
    (pictures / "a.jpg").write_text("text")
    config = tiny(data__in_memory="no")
    listed = train.run(config, **QUIET).run_dir / "skipped_files.txt"
    before = listed.read_text()
    assert before.count("\n") == 1
    train.run(config, **QUIET)
    assert listed.read_text() == before


def test_a_handful_of_images(tiny, tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    for index in range(5):
        Image.effect_noise((20, 20), 50).convert("RGB").save(folder / f"{index}.png")
    result = train.run(tiny(data=folder, batch_size=64, accum_iter=4), **QUIET)
    assert (result.step, result.epoch) == (2, 2)


def test_plan_covers_each_epoch_once():
    plan = Plan.of(23, 4, 2, 3, seed=1)
    assert (plan.effective_batch, plan.steps_per_epoch, plan.total_steps) == (8, 2, 6)
    keys = list(plan.keys(0))
    assert len(keys) == 12
    for epoch in range(3):
        seen = [i for key in keys if key.epoch == epoch for i in key.samples]
        assert len(set(seen)) == len(seen) == 16
    later = list(plan.keys(3))
    assert [k.samples.tolist() for k in later] == [k.samples.tolist() for k in keys[6:]]
    # Steps in place of epochs are the same batches, as far as they go.
    for steps in (1, 2, 3, 7):
        part = list(Plan.of(23, 4, 2, 100, seed=1, steps=steps).keys(0))
        assert len(part) == 2 * steps
        assert [k.samples.tolist() for k in part[:12]] == [
            k.samples.tolist() for k in keys[: len(part)]
        ]


def test_steps_in_place_of_epochs(tiny):
    """A run that ends within an epoch of 5 steps, its schedule at the end and a line a step."""
    config = tiny(steps=7, epochs=100, log__every_steps=None)
    said = []
    result = train.run(config, say=said.append)
    assert (result.step, result.epoch) == (7, 1)
    stored = rows(result.run_dir)
    assert [row["step"] for row in stored] == list(range(1, 8))
    # One update of warm-up, then half a cosine over the other six.
    expected = [1e-3, *(5e-4 * (1 + math.cos(math.pi * k / 6)) for k in range(6))]
    assert [row["lr"] for row in stored] == pytest.approx(expected)
    assert "7 in all, 1 of warm-up" in "\n".join(said)
    assert any(line.startswith("step      7/7  eta 0:00:00") for line in said)
    with pytest.raises(ValueError, match=r"optim\.steps 7 there, 8 here"):
        train.run(tiny(steps=8, epochs=100), **QUIET)


def test_any_number_of_workers_gives_the_same_batches(tiny):
    config = tiny()
    images = train.open_run_images(config)
    batches = TrainingBatches(images, config.data, config.mask, 3, seed=0)
    plan = Plan.of(len(images), 8, 1, 2, 0)
    first = [b.images for b in make_loader(batches, plan, 0, workers=0, pin_memory=False)]
    second = [b.images for b in make_loader(batches, plan, 0, workers=2, pin_memory=False)]
    assert len(first) == 10
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_encoder_weights_from_a_file(tiny, tmp_path):
    first = train.run(tiny(), **QUIET)
    encoder = train.load_run(first.run_dir).model.encoder.state_dict()
    torch.save(encoder, tmp_path / "encoder.pth")
    said = []
    train.run(tiny(out=tmp_path / "b", model__weights=tmp_path / "encoder.pth"), say=said.append)
    line = next(line for line in said if line.startswith("encoder weights"))
    assert f"{len(encoder) - 1} tensors loaded" in line
    assert line.endswith("complete")


def test_bf16_on_the_cpu_when_asked(tiny):
    said = []
    result = train.run(tiny(efficiency__amp="bf16"), say=said.append)
    assert math.isfinite(result.final_loss)
    assert any("bfloat16 autocast" in line for line in said)


def test_tensorboard(tiny):
    result = train.run(tiny(log__tensorboard=True), **QUIET)
    assert list((result.run_dir / "tensorboard").iterdir())


def test_repeats_are_the_crops_of_more_epochs(tiny):
    config = tiny()
    images = train.open_run_images(config)
    thrice = dataclasses.replace(config.data, repeats=3)
    once = TrainingBatches(images, config.data, config.mask, 3, seed=4)
    batches = TrainingBatches(images, thrice, config.mask, 3, seed=4)
    plan = Plan.of(len(images), 12, 1, 2, seed=4, repeats=3)
    assert plan.steps_per_epoch == len(images) // 4
    keys = list(plan.keys(0))
    key = keys[-1]
    assert key.epoch == 1
    assert len(key.samples) == 4
    batch = batches[key]
    alone = [once[BatchKey(3 * key.epoch + repeat, key.samples)] for repeat in range(3)]
    assert torch.equal(batch.images, torch.cat([b.images for b in alone]))
    assert torch.equal(batch.masks.mask, torch.cat([b.masks.mask for b in alone]))
    assert torch.equal(batch.samples, torch.cat([b.samples for b in alone]))
    seen = [i for k in keys if k.epoch == 0 for i in k.samples]
    assert len(set(seen)) == len(seen) == plan.steps_per_epoch * 4
    with pytest.raises(ValueError, match=r"a batch of 16 crops cannot hold 3 .* batch_size=15"):
        Plan.of(len(images), 16, 1, 2, seed=4, repeats=3)


def test_a_run_with_repeats(tiny):
    result = train.run(tiny(batch_size=8, **{"data.repeats": 2}), **QUIET)
    assert math.isfinite(result.final_loss)
