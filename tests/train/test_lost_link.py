"""Two ranks in two network namespaces, as two machines with a cable, which is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clustermim_fast import train
from tests.train.runs import QUIET

STEPS, CUT_AT = 6, 4
# In forward pass CUT_AT rank 1 takes its own network card down, when its checkpoint is written.
PROGRAM = """
import datetime, itertools, subprocess, sys
from clustermim_fast import train
from clustermim_fast.train import distributed, loop, step

distributed.STEP_PATIENCE = loop.STEP_PATIENCE = datetime.timedelta(seconds=20)
card, cut_at = sys.argv[2], int(sys.argv[3])
real, number = step.forward_step, itertools.count(1)

def forward_step(*arguments, **options):
    if next(number) == cut_at:
        subprocess.run(["ip", "link", "set", card, "down"], check=True)
    return real(*arguments, **options)

step.forward_step = forward_step
train.run(train.load_config(sys.argv[1]))
"""


def ip(*words):
    return subprocess.run(["ip", *words], check=False, capture_output=True, text=True)


@pytest.fixture
def two_machines():
    """Names of two namespaces and their cards, joined; skips where this user may not make them."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip (iproute2)")
    ends = [(f"clustermim{os.getpid()}{side}", f"c{os.getpid()}{side}") for side in "ab"]
    (first, one), (second, other) = ends
    try:
        made = [ip("netns", "add", name) for name in (first, second)]
        pair = ("type", "veth", "peer", "name", other, "netns", second)
        made.append(ip("link", "add", one, "netns", first, *pair))
        if any(done.returncode for done in made):
            pytest.skip("this user may not make network namespaces: " + made[0].stderr.strip())
        for number, (name, card) in enumerate(ends, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", card)
            for device in ("lo", card):
                ip("-n", name, "link", "set", device, "up")
        yield ends
    finally:
        for name, _ in ends:
            ip("netns", "delete", name)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no ranks")
def test_a_cable_that_is_cut_ends_both_ranks(tiny, tmp_path, two_machines):
    """No packet says that it is: the ranks wait STEP_PATIENCE and end; the checkpoint is whole."""
    config = tiny(steps=STEPS, log__checkpoint_every_steps=2)
    train.save_config(config, tmp_path / "config.json")
    ranks = []
    for rank, (name, card) in enumerate(two_machines):
        where = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": card}
        who = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        here = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        cut = [card, str(CUT_AT if rank == 1 else 0)]
        program = [sys.executable, "-c", PROGRAM, str(tmp_path / "config.json"), *cut]
        ranks.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *program],
                env=os.environ | where | who | here,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, text in zip(ranks, said, strict=True):
        assert process.returncode == 1, text
        assert "RuntimeError: no answer of another rank" in text.splitlines()[-1]
    assert train.load_run(config.out).step == 2
    assert train.run(config, **QUIET).step == STEPS
