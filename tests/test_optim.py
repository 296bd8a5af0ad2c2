"""The learning rate as a function of the step, and which weights decay."""

from __future__ import annotations

import itertools
import math

import pytest

from clustermim_fast.models import ModelConfig, create_model
from clustermim_fast.optim import OptimConfig, create_optimizer, learning_rate


def test_schedule():
    values = [learning_rate(step, peak=2.0, floor=0.1, warmup=4, total=12) for step in range(13)]
    assert values[:4] == [0.5, 1.0, 1.5, 2.0]
    assert values[4] == 2.0
    assert math.isclose(values[8], 0.1 + 1.9 * 0.5)
    assert math.isclose(values[12], 0.1)
    assert all(a >= b for a, b in itertools.pairwise(values[3:]))
    assert learning_rate(0, peak=2.0, floor=0.0, warmup=0, total=5) == 2.0


def test_scaling():
    config = OptimConfig(epochs=20, blr=1.5e-3)
    assert math.isclose(config.absolute_lr(4096), 1.5e-3 * 16)
    assert OptimConfig(lr=3e-4).absolute_lr(4096) == 3e-4
    assert config.warmup_steps(100) == 200  # a tenth
    assert OptimConfig(warmup_epochs=2.5).warmup_steps(100) == 250
    assert OptimConfig(steps=30).warmup_steps(100) == 3
    assert OptimConfig(steps=30, warmup_epochs=0.2).warmup_steps(100) == 20
    with pytest.raises(ValueError, match="are 40 updates, and the run has 30; give more steps"):
        OptimConfig(steps=30, warmup_epochs=0.4).warmup_steps(100)


def test_one_dimensional_parameters_do_not_decay():
    model = create_model(
        "clustermim", ModelConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2), (16, 16), 5
    )
    optimizer = create_optimizer(model, OptimConfig(weight_decay=0.05))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(decay) == len(trainable)
    for name, parameter in trainable.items():
        assert decay[id(parameter)] == (0.0 if parameter.ndim <= 1 else 0.05), name
    assert id(model.encoder.pos_embed) not in decay


@pytest.mark.parametrize("name", ["epochs", "batch_size", "accumulate"])
def test_refuses(name):
    with pytest.raises(ValueError, match=rf"optim\.{name} must be at least 1"):
        OptimConfig(**{name: 0})
