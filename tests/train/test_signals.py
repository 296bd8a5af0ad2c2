"""A real process that is killed or asked to stop, and the one that goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clustermim_fast import train

# Forward pass number sys.argv[2] waits for a file, so that no signal can come too late.
PROGRAM = """
import itertools, pathlib, sys, time
from clustermim_fast import train
from clustermim_fast.train import step

config = train.load_config(sys.argv[1])
held, go = int(sys.argv[2]), pathlib.Path(sys.argv[3])
real, number = step.forward_step, itertools.count(1)

def forward_step(*arguments, **options):
    if next(number) == held:
        while not go.exists():
            time.sleep(0.01)
    return real(*arguments, **options)

step.forward_step = forward_step
train.run(config)
"""


@pytest.fixture
def start(tmp_path):
    running = []

    def begin(config, held):
        file = tmp_path / f"{Path(config.out).name}.json"
        train.save_config(config, file)
        root = str(Path(train.__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(file), str(held), str(tmp_path / "go")],
            env=environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        if not process.stdout.closed:
            process.communicate()


def wait_for(condition, process):
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it did not come in 300 s"
        time.sleep(0.01)


def last_row(run_dir):
    return json.loads((Path(run_dir) / "metrics.jsonl").read_text().splitlines()[-1])


def test_sigkill_and_sigterm_within_an_epoch(tiny, start, threads, tmp_path):
    """Killed, then stopped, then finished: the loss of the end equals the uninterrupted run's."""
    options = {"epochs": 4, "log__checkpoint_every_steps": 2, "log__every_steps": 3}
    threads(1)
    whole = train.run(tiny(out=tmp_path / "whole", **options), say=lambda line: None)
    cut_config = tiny(out=tmp_path / "cut", **options)
    cut = start(cut_config, held=4)
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    wait_for(last.exists, cut)
    cut.send_signal(signal.SIGKILL)
    cut.communicate()
    killed_at = train.load_run(tmp_path / "cut").step
    assert killed_at == 2  # of 5 in the first epoch

    before = last.stat().st_mtime_ns
    # with a loader process, and the signal for the whole group, as schedulers send it
    stopped = start(tiny(out=tmp_path / "cut", workers=1, **options), held=5)
    wait_for(lambda: last.stat().st_mtime_ns != before, stopped)
    os.killpg(stopped.pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    output = stopped.communicate(timeout=300)[0]
    assert stopped.returncode == 143, output
    assert "stopped by signal 15 at step" in output
    assert f"going on from step {killed_at} of 20" in output
    assert killed_at < train.load_run(tmp_path / "cut").step <= 7

    resumed = start(cut_config, held=0)
    output = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, output
    assert last_row(tmp_path / "cut")["loss"] == whole.final_loss
    assert last_row(tmp_path / "cut")["step"] == 20
    a, b = (train.load_run(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    assert all((a[key] == b[key]).all() for key in a)
