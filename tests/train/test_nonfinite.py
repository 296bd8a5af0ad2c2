"""A batch whose loss is not finite: named, left out where that is asked for, never learned from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clustermim_fast import train
from clustermim_fast.models.masked_autoencoder import MaskedAutoencoder
from clustermim_fast.train import loop
from clustermim_fast.train.diagnose import where_not_finite
from clustermim_fast.train.update import Update
from tests.train.runs import QUIET, rows

BAD = 7  # the sample that breaks the encoder, once in each of two epochs


@pytest.fixture
def poisoned(monkeypatch):
    place = []
    take, encode = Update._take, MaskedAutoencoder.encode

    def noting(self, *arguments):
        inputs = take(self, *arguments)
        place[:] = (inputs.samples == BAD).nonzero().flatten().tolist()
        return inputs

    def breaking(self, images, visible):
        features = encode(self, images, visible).clone()
        features[place] = torch.nan
        return features

    monkeypatch.setattr(Update, "_take", noting)
    monkeypatch.setattr(MaskedAutoencoder, "encode", breaking)


@pytest.mark.parametrize("skip", [0, 1])
def test_the_run_ends_with_the_samples_and_the_module(tiny, poisoned, skip):
    config = tiny(optim__skip_nonfinite=skip, log__checkpoint_every_steps=1)
    wanted = rf"output of decoder_embed is not finite first, of samples \[{BAD}\]"
    with pytest.raises(train.NonFiniteError, match=wanted):
        train.run(config, **QUIET)
    kept = train.load_run(config.out)
    assert (kept.step > 5) == (skip == 1)  # the second epoch
    assert all(p.isfinite().all() for p in kept.model.parameters())


def test_updates_are_left_out_and_counted(tiny, poisoned):
    config = tiny(optim__skip_nonfinite=2, log__every_steps=1, method="mae")
    result = train.run(config, **QUIET)
    assert result.step == 10
    assert result.metrics["skipped_updates"] == 2
    assert len(rows(result.run_dir)) == 8  # an update that was left out has no loss
    assert all(p.isfinite().all() for p in train.load_run(result.run_dir).model.parameters())


def test_batch_norms_forget_an_update_that_was_left_out(tiny, monkeypatch):
    """A forward pass moves their running statistics before the loss is known."""
    from clustermim_fast.train import step

    real, passes, noted = step.forward_step, [], []

    def breaking(model, tokenizer, images, masks, mean, *rest, **more):
        passes.append(len(images))
        norm = model.encoder.bn1
        noted.append((norm.running_mean.clone(), norm.num_batches_tracked.clone()))
        mean = mean * torch.nan if len(passes) == 2 else mean
        return real(model, tokenizer, images, masks, mean, *rest, **more)

    monkeypatch.setattr(step, "forward_step", breaking)
    network = dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads"))
    sizes = {"data__image_size": 64, "mask__unit": 32, "optim__batch_size": 4, "steps": 3}
    options = {f"model__{name}": value for name, value in network.items()} | sizes
    options |= {"method": "a2mim", "model__encoder": "resnet10t", "optim__skip_nonfinite": 1}
    result = train.run(tiny(**options), **QUIET)
    assert result.metrics["skipped_updates"] == 1
    assert all(torch.equal(a, b) for a, b in zip(noted[1], noted[2], strict=True))
    saved = train.load_run(result.run_dir).model.state_dict()
    assert all(value.isfinite().all() for value in saved.values())


def test_a_run_that_ended_goes_on_with_skipping(tiny, poisoned):
    options = {"log__checkpoint_every_steps": 1, "log__every_steps": 1}
    with pytest.raises(train.NonFiniteError):
        train.run(tiny(**options), **QUIET)
    result = train.run(tiny(**options, optim__skip_nonfinite=2), **QUIET)
    assert (result.step, result.metrics["skipped_updates"]) == (10, 2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_without_waiting_weights_stay_as_they_were(
    tiny, tmp_path, poisoned, monkeypatch, accumulate
):
    """As on CUDA: the host hears of it at a line of progress; nothing has been learned since."""
    init, begin, states, messages = Update.__init__, loop.begin, [], []

    def beginning(*arguments):
        states.append(begin(*arguments))
        return states[-1]

    def without_waiting(self, *arguments):
        init(self, *arguments)
        self._waits = False

    monkeypatch.setattr(loop, "begin", beginning)
    for waits in (True, False):
        if not waits:
            monkeypatch.setattr(Update, "__init__", without_waiting)
        options = {"batch_size": 8 // accumulate, "accum_iter": accumulate, "optim__clip_grad": 1.0}
        config = tiny(out=tmp_path / f"{waits}", log__every_steps=5, **options)
        with pytest.raises(train.NonFiniteError) as error:
            train.run(config, **QUIET)
        messages.append(str(error.value).replace(config.out, "RUN"))
    assert messages[0] == messages[1]
    assert "output of decoder_embed is not finite first, of samples [" in messages[1]
    waited, found = states
    assert found.step == waited.step
    assert found.step % 5  # no line of progress was due
    for a, b in zip(waited.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.requires_grad and a in waited.optimizer.state:
            for name, value in waited.optimizer.state[a].items():
                assert torch.equal(value, found.optimizer.state[b][name])


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[1] = torch.inf
        return grad


class Net(nn.Module):
    def __init__(self, breaks):
        super().__init__()
        self.first, self.second, self.breaks = nn.Linear(3, 4), nn.Linear(4, 2), breaks

    def forward(self, x):
        hidden = self.first(x)
        hidden = InfiniteGradient.apply(hidden) if self.breaks == "gradient" else hidden
        loss = self.second(hidden).square().mean()
        return type("Result", (), {"loss": loss * torch.inf if self.breaks == "loss" else loss})


@pytest.mark.parametrize(
    ("breaks", "expected"),
    [
        ("", ""),
        (
            "gradient",
            "the gradient at the output of first is not finite first, of samples [11]",
        ),
        ("loss", "the loss is not finite first, of samples [10, 11, 12]"),
        ("weight", "the weight second.bias is not finite"),
    ],
)
def test_where_not_finite(breaks, expected):
    net = Net(breaks)
    if breaks == "weight":
        net.second.bias.data[0] = torch.nan
    net._compiled_call_impl = None if breaks else pytest.fail  # compiled, it would not call hooks
    found = where_not_finite(net, (torch.ones(3, 3),), torch.tensor([10, 11, 12]))
    assert found == expected
    assert all(p.grad is None for p in net.parameters())
