"""efficiency.compile: model and loss are one graph, compiled once, with the values of eager."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clustermim_fast import ops, train
from clustermim_fast.models import list_methods
from clustermim_fast.train import compiling, update
from clustermim_fast.train.step import ModelWithLoss
from tests.train.runs import QUIET, rows, states_equal
from tests.train.test_methods import CONVNEXT, RESNET, convolutional

METHODS = pytest.mark.parametrize(
    "settings",
    [*({"method": method} for method in list_methods()), convolutional(RESNET),
     convolutional(CONVNEXT)],
    ids=lambda settings: settings.get("model__encoder", settings["method"]),
)  # fmt: skip


@pytest.fixture
def traced(monkeypatch):
    """Graphs are traced, not compiled to code; a graph break or a second graph is an error."""
    modes = []

    def compile_module(self, *, mode, dynamic):
        modes.append(mode)
        self._compiled_call_impl = torch.compile(
            self._call_impl, backend="aot_eager", fullgraph=True, dynamic=dynamic
        )

    monkeypatch.setattr(nn.Module, "compile", compile_module)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield modes
    torch._dynamo.reset()


@METHODS
def test_one_graph_for_all_updates(tiny, tmp_path, threads, traced, settings):
    """Two epochs, masks and tokens of each batch its own; the same kernels give the same bits."""
    threads(1)
    options = {**settings, "accum_iter": 2, "batch_size": 4, "optim__clip_grad": 1.0}
    plain = train.run(tiny(out=tmp_path / "plain", **options), **QUIET)
    assert not traced
    torch._dynamo.utils.counters.clear()
    found = train.run(
        tiny(out=tmp_path / "traced", **options, efficiency__compile="reduce-overhead"), **QUIET
    )
    assert traced == ["reduce-overhead"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert rows(found.run_dir) == rows(plain.run_dir)
    assert states_equal(found.run_dir, plain.run_dir)


@pytest.mark.slow
def test_the_real_compiler(tiny, tmp_path):
    """Its float32 sums have another order: after one update losses agree to 1e-5."""
    losses = [
        train.run(
            tiny(out=tmp_path / mode, efficiency__compile=mode, steps=2, log__every_steps=1),
            **QUIET,
        ).final_loss
        for mode in ("off", "reduce-overhead")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_on_cuda_kernels_are_checked_before(monkeypatch):
    calls = []
    monkeypatch.setattr(ops, "warmup", lambda device: calls.append(("warmup", device)))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: calls.append(how["mode"]))
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    wanted = {"off": False, "default": False, "reduce-overhead": True, "max-autotune": True}
    for mode, replays in wanted.items():
        calls.clear()
        assert compiling.compile_step(nn.Identity(), mode, cuda) is replays
        assert calls == ([] if mode == "off" else [("warmup", cuda), mode])
        assert compiling.compile_step(nn.Identity(), mode, cpu) is False


def test_graphs_may_overwrite_what_an_update_ago_was_theirs(tiny, monkeypatch):
    """Once an update, not once a pass: gradients of its first passes are in a graph's memory."""
    calls, forward = [], ModelWithLoss.forward

    def noting(self, *arguments):
        calls.append("forward")
        return forward(self, *arguments)

    monkeypatch.setattr(ModelWithLoss, "forward", noting)
    monkeypatch.setattr(update, "compile_step", lambda *a: True)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append("mark"))
    train.run(tiny(method="mae", batch_size=4, accum_iter=2, steps=3), **QUIET)
    assert calls == ["mark", "forward", "forward"] * 3


@pytest.mark.parametrize(
    ("text", "mode"),
    [("true", "default"), (True, "default"), ("no", "off"), (False, "off"), ("off", "off"),
     ("max-autotune", "max-autotune")],
)  # fmt: skip
def test_words(tiny, text, mode):
    assert tiny(efficiency__compile=text).efficiency.compile == mode


def test_unknown_mode(tiny):
    with pytest.raises(ValueError, match='compile must be one of "off", "default"'):
        tiny(efficiency__compile="fast")
