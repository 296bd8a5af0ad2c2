"""Checkpoints appear whole or not at all, and hold nothing that would have to be unpickled."""

from __future__ import annotations

import argparse
import pickle

import pytest
import torch

from clustermim_fast import checkpoint


def test_round_trip(tmp_path):
    state = {"a": torch.arange(5.0), "b": [1, (2.5, None)], "c": {"d": "text", 3: True}}
    checkpoint.save_checkpoint(tmp_path / "x" / "c.pt", state)
    loaded = checkpoint.load_checkpoint(tmp_path / "x" / "c.pt")
    assert torch.equal(loaded["a"], state["a"])
    assert loaded["b"] == [1, (2.5, None)]
    assert loaded["c"] == state["c"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    checkpoint.save_checkpoint(path, {"step": 1})

    def fail(state, file):
        file.write(b"half a checkpoint")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save_checkpoint(path, {"step": 2})
    assert checkpoint.load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_objects_are_refused_when_written(tmp_path):
    with pytest.raises(TypeError, match=r"state\['args'\] is a Namespace"):
        checkpoint.save_checkpoint(tmp_path / "c.pt", {"args": argparse.Namespace(lr=1)})
    assert list(tmp_path.iterdir()) == []


def test_objects_are_refused_when_read(tmp_path):
    path = tmp_path / "c.pt"
    torch.save({"format": 1, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"not a checkpoint", "cannot be read"),
        (b"", "cannot be read"),
        ({"weights": torch.zeros(1)}, "was not written by clustermim_fast"),
        ({"format": 99}, "has format 99"),
    ],
)
def test_what_is_not_ours(tmp_path, content, message):
    path = tmp_path / "c.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        checkpoint.load_checkpoint(path)


def test_truncated(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save_checkpoint(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load_checkpoint(path)


def test_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("this must never run",))

    path = tmp_path / "c.pt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load_checkpoint(path)


def test_keep_newest(tmp_path):
    for number in range(5):
        (tmp_path / f"epoch_{number:04d}.pt").touch()
    (tmp_path / "last.pt").touch()
    checkpoint.keep_newest(tmp_path, "epoch_*.pt", 2)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["epoch_0003.pt", "epoch_0004.pt", "last.pt"]


def test_keep_newest_counts_past_the_padding(tmp_path):
    for epoch in (9998, 9999, 10000):
        (tmp_path / f"epoch_{epoch:04d}.pt").touch()
    checkpoint.keep_newest(tmp_path, "epoch_*.pt", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_10000.pt"]
