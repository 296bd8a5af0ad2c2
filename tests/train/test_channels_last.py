"""efficiency.channels_last: another order in memory, the same numbers, the same files."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn

from clustermim_fast import train
from clustermim_fast.models import create_model
from clustermim_fast.optim import create_optimizer
from clustermim_fast.train.sharding import load_optimizer
from clustermim_fast.train.step import ModelWithLoss, is_channels_last
from tests.train.runs import QUIET, cut_after, states_equal
from tests.train.test_methods import CONVNEXT, RESNET, convolutional

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAST = torch.channels_last
NETWORKS = pytest.mark.parametrize("name", [RESNET, CONVNEXT])


def make_model(tiny, name, channels_last):
    config = tiny(**convolutional(name), efficiency__channels_last=channels_last)
    images = train.open_run_images(config)
    config = train.resolve(config, images)
    model = create_model(config.method, config.model, images.image_size, None, seed=0)
    return ModelWithLoss.of_run(config, model, None, CPU).model


@NETWORKS
def test_feature_maps_and_values(tiny, name):
    """In float64, where another order of summation is 1e-16: 1e-10 is no rounding of float32."""
    plain, model = (make_model(tiny, name, asked).double() for asked in ("no", "yes"))
    maps = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            wide = module.weight.shape[1] > 1 and module.kernel_size != (1, 1)
            assert module.weight.is_contiguous(memory_format=LAST)
            assert not wide or not module.weight.is_contiguous()
            module.register_forward_hook(lambda _m, _a, out: maps.append(out))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 16, 16, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 4, generator=draw) < 0.5
    found = []
    for one in (plain, model):
        out = one.head(one(images, mask))
        out.square().mean().backward()
        found.append([out, *(p.grad for p in one.parameters() if p.grad is not None)])
    assert maps
    assert all(out.is_contiguous(memory_format=LAST) for out in maps)
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= 1e-10 * expected.abs().max().clamp_min(1.0)


@NETWORKS
def test_a_run_resumes_and_its_files_do_not_tell(tiny, tmp_path, threads, name):
    threads(1)
    options = {**convolutional(name), "efficiency__channels_last": "yes", "optim__ema_decay": 0.9}
    whole = train.run(tiny(out=tmp_path / "whole", **options), **QUIET)
    options |= {"out": tmp_path / "cut", "log__checkpoint_every_steps": 3}
    with cut_after(3):
        train.run(tiny(**options), **QUIET)
    assert states_equal(whole.run_dir, train.run(tiny(**options), **QUIET).run_dir)
    saved = torch.load(whole.run_dir / "checkpoints" / "last.pt", weights_only=True)
    moments = [m for entry in saved["optimizer"]["state"].values() for m in entry.values()]
    for tensor in [*saved["model"].values(), *saved["ema"].values(), *moments]:
        assert tensor.is_contiguous()
    assert all(p.is_contiguous() for p in train.load_run(whole.run_dir).model.parameters())
    options |= {"out": tmp_path / "other"}
    with cut_after(3):
        train.run(tiny(**options), **QUIET)
    assert train.run(tiny(**options | {"efficiency__channels_last": "no"}), **QUIET).step == 10


def test_moments_lie_as_their_weights_do(tiny):
    """The fused optimizer pairs elements by their place in memory and does not look at strides."""
    plain, other = (make_model(tiny, RESNET, asked) for asked in ("no", "yes"))
    first, second = (create_optimizer(model, tiny().optim) for model in (plain, other))
    for parameter in plain.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    load_optimizer(other, second, copy.deepcopy(first.state_dict()))
    wide = 0
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            mine, theirs = second.state[b][name], first.state[a][name]
            assert torch.equal(mine, theirs)
            assert mine.stride() == b.stride()
            wide += not mine.is_contiguous()
    assert wide > 10


@pytest.mark.parametrize(
    ("asked", "convolutional_model", "device", "expected"),
    [
        (None, True, CUDA, True),
        (None, False, CUDA, False),
        (None, True, CPU, False),
        ("yes", True, CPU, True),
        ("no", True, CUDA, False),
    ],
)
def test_who_gets_it(tiny, asked, convolutional_model, device, expected):
    model = types.SimpleNamespace(convolutional=convolutional_model)
    assert is_channels_last(tiny(efficiency__channels_last=asked), model, device) is expected


def test_not_with_fsdp(tiny):
    model = types.SimpleNamespace(convolutional=True)
    assert not is_channels_last(tiny(efficiency__sharding="fsdp"), model, CUDA)
    with pytest.raises(ValueError, match="channels_last=False, got True"):
        tiny(efficiency__sharding="fsdp", efficiency__channels_last="yes")
