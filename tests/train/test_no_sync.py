"""Between lines of progress a GPU is never waited for: nothing in an update reads a value."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clustermim_fast import ops, train
from clustermim_fast.export import export_timm
from clustermim_fast.models import list_methods
from clustermim_fast.train.update import Update
from tests.train.runs import QUIET
from tests.train.test_methods import CONVNEXT, RESNET, convolutional

# Their shapes or results depend on values, or their values come from the host: on CUDA both wait.
WAITING = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2",
           "lift_fresh", "equal"}  # fmt: skip


class Reads(TorchDispatchMode):
    """Notes operations that a GPU would be waited for. Inside the project's ops it does not look:
    those have their own kernels there."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in WAITING or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_what_is_noted():
    x, mask = torch.arange(3.0), torch.tensor([True, False, True])
    reads = {
        "_local_scalar_dense": lambda: float(x.sum()),
        "is_nonzero": lambda: bool(mask.any()),
        "index": lambda: x[mask],
        "lift_fresh": lambda: x.new_tensor([1.0, 2.0]),
    }
    for name, read in reads.items():
        with Reads() as reading:
            read()
        assert {name, "_local_scalar_dense"} & set(reading.found), name


@pytest.fixture
def reads_of_updates(monkeypatch):
    """What the updates of a run read, as on CUDA without optim.skip_nonfinite."""
    init, call, reads = Update.__init__, Update.__call__, []

    def without_waiting(self, *arguments):
        init(self, *arguments)
        self._waits = False

    def watched(self, passes, *rest):
        batches = [next(passes) for _ in range(self.plan.accumulate)]  # made on the host
        with Reads() as reading:
            lr = call(self, iter(batches), *rest)
        reads.append(reading.found)
        return lr

    monkeypatch.setattr(Update, "__init__", without_waiting)
    monkeypatch.setattr(Update, "__call__", watched)
    return reads


@pytest.mark.parametrize(
    "settings",
    [*({"method": method} for method in list_methods()), {"tokenizer__kind": "feature"},
     convolutional(RESNET), convolutional(CONVNEXT)],
    ids=lambda settings: settings.get("model__encoder", next(iter(settings.values()))),
)  # fmt: skip
def test_no_update_reads_a_value(tiny, reads_of_updates, settings):
    options = {"batch_size": 4, "accum_iter": 2, "workers": 0, "steps": 3}
    options |= {"optim__clip_grad": 1.0, "optim__ema_decay": 0.9}
    if "tokenizer__kind" in settings:
        teacher = train.run(tiny(out=f"{tiny().out}_teacher", steps=1), **QUIET)
        loaded = train.load_run(teacher.run_dir)
        folder = export_timm(
            loaded.model.encoder, teacher.run_dir / "export", mean=(0.5,) * 3, std=(0.5,) * 3
        )
        options["tokenizer__model"] = str(folder)
        reads_of_updates.clear()
    with ops.use_backend("reference"):  # the CPU's backward of the loss looks at its scale
        train.run(tiny(**settings, **options), **QUIET)
    assert reads_of_updates == [[], [], []]
