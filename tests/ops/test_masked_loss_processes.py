"""The masked losses from several threads, in forked children, under DDP and FSDP2."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import run_python


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_python_threads(threads: Any, dtype: torch.dtype) -> None:
    threads(2)
    problems = [
        (
            torch.randn(8, 50, 16).to(dtype),
            torch.randn(30, 16).to(dtype),
            torch.randint(0, 30, (8, 50)),
        )
        for _ in range(4)
    ]

    def gradients(i: int) -> list[torch.Tensor]:
        x, w, t = problems[i]
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        loss = ops.masked_linear_cross_entropy(x, w, t, t % 2 == 0, label_smoothing=0.1)
        z = torch.randn(8, 50, 30, generator=torch.Generator().manual_seed(i)).requires_grad_()
        (loss + ops.masked_cross_entropy(z, t, t % 3 == 0)).backward()
        return [loss.detach(), x.grad, w.grad, z.grad]

    expected = [gradients(i) for i in range(4)]
    right: list[bool] = []

    def work(i: int) -> None:
        for _ in range(10):
            found = gradients(i)
            right.append(all(map(torch.equal, found, expected[i])))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert right == [True] * 40


FORK = """
import os, signal, sys, torch
from clustermim_fast import _core as core, ops
torch.set_num_threads(2)
torch.manual_seed(0)
z, t = torch.randn(4000, 200), torch.randint(0, 200, (4000,))
x, w = z.bfloat16(), torch.randn(300, 200).bfloat16()
def run():  # torch's autograd engine itself refuses to run after a fork
    found = [ops.masked_cross_entropy(z, t, t % 2 == 0, reduction="none")]
    # In float32 its products are torch's, whose OpenMP does not survive a fork (nor do other
    # functions of torch's, once their tensors are large enough for it).
    if core.linear_rows_usable():
        found.append(ops.masked_linear_cross_entropy(x, w, t, t % 2 == 0, reduction="none"))
    return torch.stack(found)
expected = run()  # the parent's pool has run
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hung child dies
        os._exit(0 if torch.equal(run(), expected) else 1)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children) or not torch.equal(run(), expected))
"""

WRAPPED = """
import tempfile, torch, torch.distributed as dist
from torch import nn
from clustermim_fast import ops
from clustermim_fast.nn import MaskedLinearCrossEntropyLoss
with tempfile.TemporaryDirectory() as folder:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
torch.manual_seed(0)
x, t, m = torch.randn(2, 10, 8), torch.randint(0, 5, (2, 10)), torch.rand(2, 10) < 0.6

class Model(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.body, self.head, self.module = nn.Linear(8, 8), nn.Linear(8, 5), module
        self.loss = MaskedLinearCrossEntropyLoss.from_linear(self.head) if module else None
        if module:
            del self.head
    def forward(self, x, t, m):
        hidden = self.body(x)
        if self.module:
            return self.loss(hidden, t, m)
        return ops.masked_linear_cross_entropy(hidden, self.head.weight, t, m,
                                               linear_bias=self.head.bias)

def grads(model, plain):
    model(x, t, m).backward()
    found = []
    for p in plain.parameters():
        g = p.grad
        found.append(g.full_tensor() if hasattr(g, "full_tensor") else g)
    return found

torch.manual_seed(1)
expected = grads(*[Model(False)] * 2)
for module in (False, True):
    torch.manual_seed(1)
    plain = Model(module)
    wrapped = nn.parallel.DistributedDataParallel(plain)
    assert all(map(torch.equal, grads(wrapped, plain), expected))
print("ddp ok")
try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    print("no fsdp2")
else:
    from torch.distributed.device_mesh import init_device_mesh
    torch.manual_seed(1)
    plain = Model(True)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(plain.loss, mesh=mesh)
    fully_shard(plain, mesh=mesh)
    for a, b in zip(grads(plain, plain), expected):
        torch.testing.assert_close(a, b)
    try:
        ops.masked_linear_cross_entropy(x, plain.loss.weight, t, m)
    except TypeError as error:
        assert "linear_weight must be a plain tensor, got a DTensor" in str(error), error
        print("fsdp ok")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_children() -> None:
    done = run_python(FORK)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ddp_and_fsdp2_in_one_process() -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    done = run_python(WRAPPED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ddp ok" in done.stdout
    if "no fsdp2" not in done.stdout:
        assert "fsdp ok" in done.stdout
