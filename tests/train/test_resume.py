"""A run folder that is there already: gone on from bitwise, left alone, refused, loaded."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clustermim_fast import train
from tests.train.runs import QUIET, cut_after, rows, states_equal


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accum_iter": 2, "optim__ema_decay": 0.9, "optim__clip_grad": 1.0},
        {"method": "mae", "steps": 8},
    ],
    ids=["plain", "accumulation-ema-clip", "mae-steps"],
)
@pytest.mark.parametrize("stop_at", [1, 5, 7])
def test_resume_is_bitwise(tiny, tmp_path, options, stop_at):
    """A run that was cut at any step ends with the same bits as one that was not."""
    whole = train.run(tiny(out=tmp_path / "whole", **options), **QUIET)
    stop_at = min(stop_at, whole.step - 1)
    cut = tiny(out=tmp_path / "cut", log__checkpoint_every_steps=1, **options)

    with cut_after(stop_at):
        train.run(cut, **QUIET)
    said = []
    resumed = train.run(cut, say=said.append)
    assert f"going on from step {stop_at}" in "\n".join(said)
    assert resumed.final_loss == whole.final_loss
    assert states_equal(whole.run_dir, resumed.run_dir)
    assert rows(whole.run_dir) == rows(resumed.run_dir)


def test_complete_run_is_left_alone(tiny):
    first = train.run(tiny(), **QUIET)
    before = (first.run_dir / "checkpoints" / "last.pt").stat().st_mtime_ns
    said = []
    again = train.run(tiny(), say=said.append)
    assert "nothing to do" in said[-1]
    assert dataclasses.replace(again, metrics={}) == dataclasses.replace(first, metrics={})
    assert (first.run_dir / "checkpoints" / "last.pt").stat().st_mtime_ns == before


def test_another_config_is_refused(tiny):
    train.run(tiny(), **QUIET)
    with pytest.raises(ValueError, match=r"optim\.lr 0\.001 there, 0\.002 here.*resume=restart"):
        train.run(tiny(lr=2e-3), **QUIET)
    assert train.run(tiny(lr=2e-3, resume="restart"), **QUIET).step == 10
    # what cannot change the result may differ
    assert train.run(tiny(lr=2e-3, log__every_steps=3), **QUIET).step == 10


def test_another_runs_tokenizer_is_not_written_over(tiny):
    result = train.run(tiny(), **QUIET)
    config = tiny(num_clusters=5)
    images = train.open_run_images(config)
    with pytest.raises(ValueError, match=r"tokenizer\.num_clusters 6 there, 5 here"):
        train.prepare_tokenizer(train.resolve(config, images), images)
    assert train.load_run(result.run_dir).tokenizer.num_clusters == 6


def test_another_number_of_images_is_refused(tiny, pictures):
    config = tiny(data__mean="0.5,0.5,0.5", data__std="1,1,1")
    train.run(config, **QUIET)
    (pictures / "00.png").unlink()
    with pytest.raises(ValueError, match="40 images there, 39 here"):
        train.run(config, **QUIET)


def test_restart_keeps_the_old_checkpoints_until_the_new_run_can_start(tiny):
    result = train.run(tiny(), **QUIET)
    with pytest.raises(ValueError, match="decoder_dim"):
        train.run(tiny(resume="restart", model__decoder_dim=30), **QUIET)
    assert (result.run_dir / "checkpoints" / "last.pt").exists()


def test_must_resume(tiny):
    with pytest.raises(ValueError, match="resume=must: there is no checkpoint"):
        train.run(tiny(resume="must"), **QUIET)


def test_what_a_killed_process_was_writing_is_removed(tiny):
    folder = train.run(tiny(), **QUIET).run_dir / "checkpoints"
    (folder / "last.pt").rename(folder / ".last.pt.123.partial")
    train.run(tiny(), **QUIET)
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_0002.pt", "last.pt"]


def test_load_run_names_what_is_there(tiny):
    result = train.run(tiny(), **QUIET)
    with pytest.raises(ValueError, match="there: epoch_0002, last"):
        train.load_run(result.run_dir, "epoch_0009")
    assert train.load_run(result.run_dir, "epoch_0002").step == 10


def test_ema_weights_are_what_is_loaded(tiny):
    result = train.run(tiny(optim__ema_decay=0.5), **QUIET)
    ema = train.load_run(result.run_dir).model.state_dict()
    raw = train.load_run(result.run_dir, use_ema=False).model.state_dict()
    assert not torch.equal(ema["head.weight"], raw["head.weight"])
