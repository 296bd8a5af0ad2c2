"""Runs of two and three gloo ranks beside the same run of one process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.fsdp
from torch import nn

from clustermim_fast import train
from clustermim_fast.train import distributed
from clustermim_fast.train.batches import Plan
from clustermim_fast.train.sharding import shard
from tests.train import rank_runs
from tests.train.runs import rows

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
NEEDS_FSDP = pytest.mark.skipif(not rank_runs.FSDP, reason="this torch has no fully_shard")


def with_fsdp(case):
    """A case of ranks that hold all weights, and of those that hold parts."""
    return [case, pytest.param(f"fsdp_{case}", marks=NEEDS_FSDP)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base_config):
    """Where all phases of ``rank_runs`` left their runs."""
    return run_phases(tmp_path_factory.mktemp("ranks"), base_config)


def run_phases(place, base_config, *more):
    train.save_config(base_config, place / "base.json")
    files = [str(place), str(place / "base.json")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.rank_runs", *files, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def ends(folder, world, last):
    files = [folder / f"{world}_{rank}_{last}.json" for rank in range(world)]
    return [json.loads(file.read_text()) for file in files]


def assert_close(found, expected, tolerance):
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert math.isclose(a[key], b[key], rel_tol=tolerance, abs_tol=tolerance), (key, a, b)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", sorted(rank_runs.CASES))
def test_loss_curves_are_those_of_one_process(folder, case, world):
    compare_curves(folder / f"{case}_1", folder / f"{case}_{world}")


def compare_curves(first, second, tolerance=1e-5):
    """Every number of every line: float32 sums in another order, through seven updates of AdamW."""
    alone, shared = rows(first), rows(second)
    assert len(alone) == rank_runs.STEPS
    discrete = ("predicted_perplexity", "predicted_used", "masked_accuracy")
    for row in [*alone, *shared]:  # an argmax may turn over where two logits are nearly equal
        for key in discrete:
            row.pop(key, None)
    assert_close(shared, alone, tolerance)


@NEEDS_FSDP
@pytest.mark.parametrize("case", rank_runs.SHARDED)
def test_sharded_curves_are_those_of_one_process(folder, case):
    """As above; and rank 0's file holds whole tensors, as that of one process."""
    folders = folder / f"{case}_1", folder / f"fsdp_{case}_2"
    compare_curves(*folders)
    said = ends(folder, 2, rank_runs.PHASES[1][1][-1])[0][f"fsdp_{case}"]["said"]
    assert "4, 4; each holds a part of the weights (FSDP2)" in "\n".join(said)
    a, b = (torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in folders)
    assert shapes(a["model"]) == shapes(b["model"])
    assert shapes(a["optimizer"]) == shapes(b["optimizer"])
    assert shapes(a["ema"]) == shapes(b["ema"])


@pytest.mark.parametrize("case", with_fsdp("float16"))
def test_ranks_leave_out_one_update_together_in_float16(folder, case):
    """The gradient of one rank alone overflows, once. Of a rank's smaller batch each gradient is
    greater, by two here, so that float16 rounds it elsewhere: by half of 2^-10 at most.
    """
    compare_curves(folder / "float16_1", folder / f"{case}_2", 2**-11)
    last = rank_runs.PHASES[1][1][-1]
    for end in ends(folder, 2, last):
        assert end[case]["metrics"]["overflows"] == 1
        assert end[case]["metrics"]["loss_scale"] == 512
    found = [row["overflows"] for row in rows(folder / f"{case}_2")]
    assert found == [0] * (rank_runs.CUT_AT - 1) + [1] * (rank_runs.STEPS - rank_runs.CUT_AT + 1)
    state = torch.load(folder / f"{case}_2" / "checkpoints" / "last.pt", weights_only=True)
    steps = {int(entry["step"]) for entry in state["optimizer"]["state"].values()}
    assert steps == {rank_runs.STEPS - 1}


@pytest.mark.slow
def test_compiled_curves_are_those_of_one_process_without(tmp_path, base_config):
    place = run_phases(tmp_path, base_config, "compiled")
    for world, cases in rank_runs.COMPILED_PHASES[1:]:
        for case in cases:
            compare_curves(place / "compiled_1", place / f"{case}_{world}")


@pytest.mark.parametrize("case", with_fsdp("looks"))
def test_what_is_seen_while_several_ranks_train(folder, case):
    """eval_every and watch: the numbers of one process, and its pictures."""
    alone, shared = folder / "looks_1", folder / f"{case}_2"
    compare_curves(alone, shared)
    (expected,), (found,) = (
        [json.loads(line) for line in (f / "eval" / "epochs.jsonl").read_text().splitlines()]
        for f in (alone, shared)
    )
    assert found.pop("images") == expected.pop("images")
    assert found["epoch"] == expected["epoch"] == 1
    assert math.isclose(found["rankme"], expected["rankme"], rel_tol=1e-5)
    names = [sorted(file.name for file in (f / "figures").iterdir()) for f in (alone, shared)]
    assert names[0] == names[1]
    assert "painting" in names[0]


@pytest.mark.parametrize("case", with_fsdp("resnet"))
def test_batch_norms_of_several_ranks(folder, case):
    """On the CPU each has its own batch's, and rank 0 says so; on CUDA they have one."""
    said, *others = (end[case] for end in ends(folder, 2, rank_runs.PHASES[1][1][-1]))
    assert [end["end"] for end in (said, *others)] == [rank_runs.STEPS] * 2
    assert any("batch norm sees the batch of one rank on the CPU" in line for line in said["said"])


def test_batch_norms_become_synchronised_on_cuda(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert distributed.share_batch_norm(model, torch.device("cuda")) is model
    monkeypatch.setattr(distributed, "everyone", lambda: SimpleNamespace(count=2))
    assert distributed.share_batch_norm(model, torch.device("cpu")) is model
    shared = distributed.share_batch_norm(model, torch.device("cuda"))
    assert isinstance(shared[1], nn.SyncBatchNorm)
    assert shared.state_dict().keys() == model.state_dict().keys()


def test_the_codebook_of_features_is_that_of_one_process(folder):
    """But for the network's own rounding, which depends on the size of its batch."""
    first = train.load_run(folder / "features_1").tokenizer
    other = train.load_run(folder / "features_2").tokenizer
    scale = float(first.centroids.abs().max())
    torch.testing.assert_close(other.centroids, first.centroids, rtol=0, atol=1e-5 * scale)
    compare_curves(folder / "features_1", folder / "features_2")


def shapes(value):
    """A state with the type, the dtype and the shape of each tensor in its place."""
    if isinstance(value, dict):
        return {key: shapes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shapes(item) for item in value]
    return (type(value), value.dtype, value.shape) if isinstance(value, torch.Tensor) else None


def test_the_codebook_is_that_of_one_process(folder):
    first = train.load_run(folder / "clustermim_1").tokenizer
    for world in (2, 3):
        other = train.load_run(folder / f"clustermim_{world}").tokenizer
        assert torch.equal(other.centroids, first.centroids)
        assert other.fingerprint() == first.fingerprint()


def test_ranks_take_parts_of_the_batch_and_one_speaks(folder):
    for world, sizes in ((2, [4, 4]), (3, [3, 3, 2])):
        found = ends(folder, world, rank_runs.PHASES[world - 1][1][-1])
        assert [set(end["clustermim"]["samples"]) for end in found] == [{size} for size in sizes]
        text = "\n".join(found[0]["clustermim"]["said"])
        assert f"{world} ranks share each batch of 8: {', '.join(map(str, sizes))}" in text
        assert all(not end["clustermim"]["said"] for end in found[1:])


def test_a_signal_to_one_rank_stops_all_at_one_step(folder):
    last = rank_runs.PHASES[1][1][-1]
    for end in ends(folder, 2, last):
        assert f"stopped by signal 10 at step {rank_runs.CUT_AT}; " in end[last]["end"]

    if rank_runs.FSDP:
        for end in ends(folder, 2, last):
            assert f"stopped by signal 10 at step {rank_runs.CUT_AT}; " in end["f>1"]["end"]


@pytest.mark.parametrize("case", with_fsdp("broken"))
def test_a_loss_of_one_rank_that_is_not_finite_ends_all_with_its_samples(folder, case):
    first, second = (end[case] for end in ends(folder, 2, rank_runs.PHASES[1][1][-1]))
    assert first["end"] == second["end"]
    # rank 1 ran its batch once more, and saw the four samples that rank 0 did not have
    assert f"at step {rank_runs.CUT_AT}; nothing was written for it" in first["end"]
    assert "the loss is not finite first, of samples [" in first["end"]
    assert first["end"].partition("]")[0].count(",") == 4
    assert train.load_run(folder / f"{case}_2").step == 2


@pytest.mark.parametrize(
    "cut", ["21", "13", pytest.param("f1", marks=NEEDS_FSDP), pytest.param("1f", marks=NEEDS_FSDP)]
)
def test_resume_at_another_number_of_ranks(folder, cut):
    whole, resumed = folder / "whole_1", folder / f"cut_{cut}"
    assert_close(rows(resumed), rows(whole), 1e-5)
    a, b = (torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in (whole, resumed))
    assert a["step"] == b["step"] == rank_runs.STEPS
    for part in ("model", "ema"):
        for name, value in a[part].items():
            values = [(b[part][name], value)]
            if name.endswith("qkv.bias"):  # of keys, rounding alone: AdamW scales it
                (query, _, own), (other, _, others) = b[part][name].chunk(3), value.chunk(3)
                values = [(query, other), (own, others)]
            for found, expected in values:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_killed_rank_ends_the_others_and_the_checkpoint_is_whole(folder):
    """``rank_runs`` fails where a rank hangs, or ends with another status than 1."""
    assert train.load_run(folder / "killed_2").step < rank_runs.CUT_AT


def test_a_killed_rank_is_no_reason_that_anyone_knows(folder):
    end = json.loads((folder / "2_0_killed.json").read_text())["killed"]["end"]
    assert end.startswith("no answer of another rank, killed or out of reach: ")
    assert ".cc" not in end


def test_the_others_name_what_ended_one_rank(folder):
    other, failed = (end["refused"]["end"] for end in ends(folder, 2, "refused"))
    assert failed == "one rank alone has no memory left"
    assert other == f"rank 1 of 2 failed: {failed}. This rank ends with it"


def test_parts_of_a_batch():
    plan = Plan.of(1000, 64, 1, 1, 0)
    assert plan.parts(3) == [22, 21, 21]
    for ranks in (1, 2, 3, 5, 64):
        keys = [list(plan.keys(3, rank, ranks)) for rank in range(ranks)]
        for parts, whole in zip(zip(*keys, strict=True), plan.keys(3), strict=True):
            assert [i for part in parts for i in part.samples] == whole.samples.tolist()
    with pytest.raises(ValueError, match="64 images of a batch cannot be shared by 65 ranks"):
        plan.part(0, 65)


def test_a_torch_without_fully_shard_is_told(monkeypatch):
    monkeypatch.delattr(torch.distributed.fsdp, "fully_shard", raising=False)
    with pytest.raises(ValueError, match=r"fsdp needs torch 2.6 or newer .*sharding=ddp"):
        shard(nn.Linear(2, 2), torch.device("cpu"))
