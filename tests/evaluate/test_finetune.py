"""Fine-tuning: timm's parts in their places, the subject unchanged, the test set last."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast.evaluate import (
    FeatureOptions,
    FinetuneSettings,
    FinetuneTraining,
    Labelled,
    Subject,
    finetune,
    format_table,
)
from clustermim_fast.evaluate.finetune_training import _groups, _with_classifier, fine_tune

QUICK = FinetuneTraining(epochs=1, warmup_epochs=0, batch_size=20)
VIEW = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": 3}


def trained(subject, training, rate=5e-4, **options):
    part = subject.train
    rows = torch.arange(len(part.labels))
    return fine_tune(
        subject.encoders["pretrained"], part.images, part.labels, rows, training,
        base_rate=rate, **VIEW, **options,
    )  # fmt: skip


def test_layers_learn_slower_the_deeper_they_are(subject):
    """The classifier 1; block i of n (from 0) decay^(n - i), timm counts the final norm with the
    last; what is embedded decay^(n + 1)."""
    model = _with_classifier(subject(0).encoders["pretrained"], 3, "mean")
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in _groups(model, FinetuneTraining(layer_decay=0.5)):
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])
    assert found.keys() == set(names.values())
    expected = {"head": 1, "norm": 0.5, "blocks.1": 0.5, "blocks.0": 0.25, "patch_embed": 0.125}
    for name, (scale, decay) in found.items():
        layer = next((key for key in expected if name.startswith(key)), "patch_embed")
        assert scale == expected[layer], name
        vector = model.get_parameter(name).ndim == 1 or name in ("pos_embed", "cls_token")
        assert decay == (0 if vector else 0.05), name


def test_layer_decay_and_rate_reach_the_weights(subject):
    """AdamW's first update moves a weight by its learning rate at most (and weight decay)."""
    start = subject(0)
    base = start.encoders["pretrained"]
    training = FinetuneTraining(
        1, 0, 60, layer_decay=0.1, weight_decay=0.0, mixup=0, cutmix=0, label_smoothing=0
    )
    model = trained(start, training, rate=0.256)  # 60 images: 0.06
    for block, rate in ((1, 0.06 * 0.1), (0, 0.06 * 0.01)):
        before, after = (each.blocks[block].mlp.fc1.weight.detach() for each in (base, model))
        moved = (after - before).abs()
        # Rounding of weights of order 0.1 in float32; most gradients are far above AdamW's 1e-8.
        assert float(moved.max()) <= rate * (1 + 1e-4)
        assert float(moved.median()) > 0.5 * rate
    assert float(model.head.weight.detach().abs().median()) == pytest.approx(0.06, rel=0.01)


def test_it_learns(subject):
    """Twelve images by heart."""
    shapes = subject(0)
    part = shapes.train
    training = FinetuneTraining(
        60, 2, 12, layer_decay=1.0, mixup=0, cutmix=0, label_smoothing=0, weight_decay=0
    )
    model = fine_tune(
        shapes.encoders["pretrained"], part.images, part.labels, torch.arange(12), training,
        base_rate=0.06, **VIEW,
    )  # fmt: skip
    with torch.no_grad():
        found = model((part.images.pixels[:12].float() / 255 - 0.5) / 0.25).argmax(1)
    assert torch.equal(found, part.labels[:12])


def test_repeatable_and_leaves_all_as_it_was(subject):
    shapes = subject(0)
    before = copy.deepcopy(shapes.encoders["pretrained"].state_dict())
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    one = trained(shapes, QUICK)
    assert np.random.random() == expected  # noqa: NPY002
    assert torch.equal(torch.rand(1), drawn)
    two, other = trained(shapes, QUICK), trained(shapes, QUICK, seed=1)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    assert not torch.equal(one.head.weight, other.head.weight)
    after = shapes.encoders["pretrained"].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() == before.keys()
    assert not any(module.training for module in one.modules())


@pytest.mark.parametrize("changed", [{"mixup": 0.0, "cutmix": 0.0}, {"cutmix": 0.0},
                                     {"label_smoothing": 0.0}, {"ema_decay": 0.9}])  # fmt: skip
def test_every_switch_is_connected(subject, changed):
    training = {"epochs": 2, "warmup_epochs": 0, "batch_size": 20}
    plain = trained(subject(0), FinetuneTraining(**training))
    other = trained(subject(0), FinetuneTraining(**training, **changed))
    assert not torch.allclose(plain.head.weight, other.head.weight, rtol=1e-3)


def test_crops_are_those_of_seed_and_epoch(subject):
    shapes = subject(0)
    asked = []

    def crops(seed, epoch, indices, config):
        asked.append((seed, epoch, len(indices), config.crop_scale, config.flip))
        return shapes.train.images.pixels[indices]

    shapes.train.images.crops = crops
    trained(shapes, FinetuneTraining(2, 0, 31, crop_scale=(0.5, 1.0), flip=False), seed=4)
    assert asked == [(4, epoch, 30, (0.5, 1.0), False) for epoch in (0, 0, 1, 1)]  # even batches


class Counting:
    def __init__(self, images, name, log):
        self.inner, self.name, self.log = images, name, log

    def __len__(self):
        return len(self.inner)

    def images(self, indices):
        self.log += [(self.name, int(index)) for index in indices]
        return self.inner.images(indices)

    def crops(self, seed, epoch, indices, config):
        self.log.append(("crops", -1))
        return self.inner.crops(seed, epoch, indices, config)


def test_the_test_set_is_read_once_and_last(subject):
    log, shapes = [], subject(0)
    parts = [
        Labelled(Counting(part.images, name, log), part.labels, name)
        for name, part in (("train", shapes.train), ("test", shapes.test))
    ]
    encoders = {"pretrained": shapes.encoders["pretrained"]}
    counted = Subject(encoders, *parts, shapes.class_names, shapes.mean, shapes.std)
    settings = FinetuneSettings(learning_rates=(1e-4, 1e-3), seeds=2, training=QUICK)
    result = finetune(counted, settings)
    assert log[-30:] == [("test", index) for index in range(30)]
    assert not any(name == "test" for name, _ in log[:-30])
    (row,) = result["rows"]
    for rate, scores in zip(
        row["learning_rate"], row["held_out_train_accuracy_percent"], strict=True
    ):
        assert scores[f"{rate:g}"] == max(scores.values())
        assert scores.keys() == {"0.0001", "0.001"}


def test_rows_and_table(subject):
    settings = FinetuneSettings(training=QUICK, shots="5", seeds=2)
    result = finetune(subject(0), settings, options=FeatureOptions(pool="cls"))
    assert json.loads(json.dumps(result)) == result
    assert [row["name"] for row in result["rows"]] == ["pretrained", "random_init"]
    assert result["train_images"] == 15
    assert result["rows"][0]["dim"] == 32
    table = format_table(result)
    for text in ("fine-tuning ([cls] token); 1 epochs, AdamW", "layer decay 0.65", "low-shot: 5"):
        assert text in table
    alone = finetune(subject(0), FinetuneSettings(training=QUICK, baseline=False))
    assert [row["name"] for row in alone["rows"]] == ["pretrained"]


@pytest.mark.parametrize(
    ("name", "options"), [("resnet10t", {}), ("convnext_atto", {"output_stride": 8})]
)
def test_convolutional_networks(subject, name, options):
    network = timm.create_model(name, num_classes=0, **options)
    network.requires_grad_(False)  # a2mim freezes a ConvNeXt's last norm
    shapes = subject(0)
    tuned = Subject(
        {"pretrained": network},
        shapes.train, shapes.test, shapes.class_names, shapes.mean, shapes.std,
    )  # fmt: skip
    result = finetune(tuned, FinetuneSettings(training=QUICK, shots="4", baseline=False))
    assert result["rows"][0]["dim"] in (320, 512)


def test_hostile_inputs(subject):
    shapes = subject(0)
    one_class = Labelled(shapes.train.images, torch.zeros(60, dtype=torch.int64), "one")
    view = (shapes.class_names, shapes.mean, shapes.std)
    with pytest.raises(ValueError, match="at least two classes"):
        finetune(Subject(shapes.encoders, one_class, shapes.test, *view))
    with pytest.raises(ValueError, match="seeds: expected at most 60"):
        finetune(shapes, FinetuneSettings(seeds=61))
    with pytest.raises(ValueError, match='pool: expected "mean" or "cls"'):
        finetune(shapes, FinetuneSettings(training=QUICK), options=FeatureOptions(pool="max"))
    with pytest.raises(ValueError, match="no longer finite at learning_rates="):
        trained(shapes, FinetuneTraining(3, 0, 20), rate=1e30)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (FinetuneTraining, {"epochs": 0}, "epochs, batch_size"),
        (FinetuneTraining, {"layer_decay": 0.0}, "layer_decay"),
        (FinetuneTraining, {"layer_decay": 1.5}, "layer_decay"),
        (FinetuneTraining, {"mixup": -1.0}, "mixup"),
        (FinetuneTraining, {"ema_decay": 1.0}, "ema_decay"),
        (FinetuneTraining, {"crop_scale": (0.0, 1.0)}, "crop_scale"),
        (FinetuneSettings, {"learning_rates": ()}, "learning_rates"),
        (FinetuneSettings, {"learning_rates": (0.1, 0.1)}, "learning_rates"),
    ],
)
def test_settings_that_do_not_exist(make, options, named):
    with pytest.raises(ValueError, match=named):
        make(**options)
