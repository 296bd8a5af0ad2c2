"""`clustermim bench`: the page, the counts of wrong ids, and errors that name the remedy."""

from __future__ import annotations

import json
import logging
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from clustermim_fast import bench, cli, ops
from clustermim_fast.bench import assigners, kmeans, nearest_centroid, paths, timing
from clustermim_fast.bench.inputs import make_centroids, make_rows, read_or_make
from clustermim_fast.ops import _backend

# Timing collects before every call.
pytestmark = pytest.mark.usefixtures("frozen_heap")

SMALL = ["n=300", "d=5", "k=7", "rounds=1", "threads=1"]


def test_one_page(tmp_path, capsys):
    out = tmp_path / "result.json"
    command = ["bench", "nearest_centroid", *SMALL, "peers=torch,cdist,sklearn", f"json={out}"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    for text in ("N = 300, D = 5, K = 7", "ours: ops.nearest_centroid", "wrong ids", "machine:"):
        assert text in printed
    written = json.loads(out.read_text())
    assert set(written["methods"]) == {
        nearest_centroid.OURS,
        "torch eager formula",
        "torch.cdist + argmin",
        "sklearn KMeans.predict",
    }
    assert written["methods"][nearest_centroid.OURS]["wrong_ids"] == 0
    assert written["tiers"]["rows"] == 300


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(dtype):
    lines = []
    result = bench.run_nearest_centroid(
        n=100, d=4, k=5, dtype=dtype, peers="torch", rounds=1, say=lines.append
    )
    assert result["dtype"] == dtype
    assert result["methods"][nearest_centroid.OURS]["wrong_ids"] == 0
    assert len(lines) == 1


def test_own_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 3)))
    np.save("c.npy", np.eye(3, dtype=np.float32))
    settings = ["file=x.npy", "centroids=c.npy", "peers=none", "rounds=1"]
    assert cli.main(["bench", "nearest_centroid", *settings]) == 0
    printed = capsys.readouterr().out
    assert "N = 50, D = 3, K = 3, float64" in printed
    assert "rows of x.npy, centroids of c.npy" in printed


def test_wrong_ids_are_counted():
    """Rows 0 and 1 are given wrong by one method, row 2 by another on fewer rows."""
    x, c = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[0.0], [3.0]])
    ids = {
        nearest_centroid.OURS: torch.tensor([0, 0, 1, 1]),
        "two wrong": torch.tensor([1, 1, 1, 1]),
        "one wrong": torch.tensor([0, 0, 0]),
    }
    wrong, words = nearest_centroid.count_wrong(x, c, ids)
    assert wrong == {nearest_centroid.OURS: 0, "two wrong": 2, "one wrong": 1}
    assert words == ("3 of the 3 rows on which the methods disagree, 1 of the 1 on which all agree")


def test_our_wrong_ids_are_counted_too():
    x, c = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    wrong, _ = nearest_centroid.count_wrong(x, c, {nearest_centroid.OURS: torch.tensor([1, 0])})
    assert wrong == {nearest_centroid.OURS: 1}


@pytest.mark.parametrize(
    "peer",
    [
        # torch.compile takes half a minute for it
        pytest.param(peer, marks=[pytest.mark.slow] * (peer.key == "compile"), id=peer.key)
        for peer in assigners.PEERS
    ],
)
def test_each_peer_finds_clear_winners(peer):
    if peer.missing():
        pytest.skip(f"{peer.missing()} is not installed (extra [bench])")
    centroids = 10.0 * torch.eye(6)
    expected = torch.tensor([3, 0, 5, 5, 1, 2, 4, 0])
    ids = peer.make(centroids)(centroids[expected] + 0.1)
    assert torch.as_tensor(ids).long().tolist() == expected.tolist()


def test_a_missing_peer_is_named_with_its_remedy(monkeypatch):
    absent = assigners.Peer("somebody's index", "absent", ("no_such_module",), lambda c: None)
    monkeypatch.setattr(nearest_centroid, "PEERS", (absent,))
    lines = []
    bench.run_nearest_centroid(n=40, d=2, k=3, rounds=1, say=lines.append)
    assert "somebody's index needs no_such_module: pip install" in lines[0]
    assert "clustermim_fast[bench]" in lines[0]


def test_a_peer_that_fails_is_left_out_with_its_reason(monkeypatch):
    def broken(centroids):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(
        nearest_centroid, "PEERS", (assigners.Peer("broken", "broken", (), broken),)
    )
    lines = []
    result = bench.run_nearest_centroid(n=40, d=2, k=3, rounds=1, say=lines.append)
    assert list(result["methods"]) == [nearest_centroid.OURS]
    assert "left out: broken: out of luck" in lines[0]


def test_kmeans_page(tmp_path, capsys):
    out = tmp_path / "result.json"
    command = ["bench", "kmeans", *SMALL, "peers=sklearn,minibatch", f"json={out}"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    for text in ("ours: KMeans", "ours: ops.lloyd_step alone", "sklearn KMeans, lloyd"):
        assert text in printed
    for size in ("4,096", "10,000"):
        assert f"left out: mini-batches of {size}, more than the 300 rows" in printed
    lloyd = [m for m in json.loads(out.read_text())["methods"].values() if m["kind"] == "lloyd"]
    assert len(lloyd) == 2
    for method in lloyd:
        assert method["ns_per_point"] is None or method["ns_per_point"] > 0
        assert ("reason" in method) == (method["ns_per_point"] is None)
    assert sum("n/a: " in line for line in printed.splitlines()) == sum(
        "reason" in method for method in lloyd
    )


@pytest.mark.parametrize(
    ("short", "long", "more", "expected"),
    [
        ([2.0, 2.0], [6.0, 6.0], 4, 1.0),
        ([2.0, 2.0], [6.0, 6.0], 2, 2.0),  # converged after three
        ([2.0, 2.0], [2.5, 2.5], 0, "stood still after one iteration"),
        ([2.0, 2.5], [1.9, 2.6], 4, "lost in the noise"),
        ([2.0, 2.0], [1.9, 1.9], 4, "lost in the noise"),
        ([2.0, 2.0], [2.1, 2.9], 4, "lost in the noise"),
    ],
)
def test_an_iteration_is_positive_or_not_said(short, long, more, expected):
    found = kmeans._iteration(timing.Timing(short), timing.Timing(long), more, rows=10**9)
    if isinstance(expected, float):
        assert found["ns_per_point"] == expected
    else:
        assert expected in found["reason"]
        assert found["ns_per_point"] is None


def test_minibatches_that_fit():
    x, c = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32), np.eye(3, dtype="f4")
    found = kmeans.measure(x, c, [], rounds=1, minibatch=True, batch_sizes=[30])
    assert found["sklearn MiniBatchKMeans.partial_fit, batches of 30"]["ns_per_point"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("n=0", "n: expected an int >= 1, got 0"),
        ("k=900 n=300", "or give centroids="),
        ("n=many", "n: cannot read 'many'"),
        ("dtype=float23", "dtype: unknown 'float23'; did you mean float32"),
        ("peers=fais", "peers: unknown 'fais'; did you mean faiss"),
        ("peers=torch,all", "peers: unknown 'all'"),
        ("rounds=0", "rounds: expected an int >= 1"),
        ("threads=0", "threads: expected an int >= 1"),
        ("json=nowhere/x.json", "json: no folder"),
        ("file=nowhere.npy", "file: no such file 'nowhere.npy'; expected a .npy array [N, D]"),
        ("file=text.npy", "save plain numbers with numpy.save"),
        ("file=objects.npy", "save plain numbers with numpy.save"),
        ("file=several.npz", "save the one array with numpy.save"),
        ("file=strings.npy", "convert it to float32"),
        ("file=cube.npy", "array.reshape(-1, D)"),
        ("file=nan.npy", "row 1 holds NaN or infinity; leave those rows out"),
        ("file=x.npy n=99", "leave n= out for all"),
        ("file=x.npy d=4", "d: 'x.npy' has D = 3, got d=4; leave d= out"),
        ("file=x.npy centroids=wide.npy", "centroids: 'wide.npy' has D = 5, the rows have D = 3"),
        ("file=x.npy centroids=x.npy k=2", "k: 'x.npy' holds 9 centroids, got k=2"),
        ("size=3", "unknown setting 'size' of bench nearest_centroid"),
    ],
)
def test_errors_name_the_remedy(settings, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    np.save("x.npy", np.ones((9, 3)))
    np.save("wide.npy", np.ones((2, 5)))
    np.save("cube.npy", np.ones((2, 5, 3)))
    np.save("nan.npy", np.array([[1.0], [np.nan]]))
    np.save("strings.npy", np.array([["a"]]))
    np.save("objects.npy", np.array([[None]]), allow_pickle=True)
    np.savez("several.npz", a=np.ones((2, 2)))
    (tmp_path / "text.npy").write_text("1 2 3")
    assert cli.main(["bench", "nearest_centroid", *settings.split()]) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_an_unknown_kind(capsys):
    assert cli.main(["bench", "nearest", "n=3"]) == 1
    assert "expected nearest_centroid or kmeans, got 'nearest'" in capsys.readouterr().err


def test_made_up_data_is_the_same_for_a_seed():
    a, b = make_rows(20, 3, 4, seed=1), make_rows(20, 3, 4, seed=1)
    assert torch.equal(a, b)
    assert not torch.equal(a, make_rows(20, 3, 4, seed=2))
    assert torch.equal(make_centroids(a, 4, seed=0), make_centroids(b, 4, seed=0))
    x, c, _ = read_or_make(30, None, None, "", "", "", seed=0)
    assert x.shape == (30, 768)
    assert c.shape == (30, 768)


def test_progress_goes_to_stderr_and_the_page_to_stdout(capsys):
    assert cli.main(["bench", "nearest_centroid", *SMALL, "peers=torch"]) == 0
    printed = capsys.readouterr()
    assert "first call, 2 of 2: torch eager formula" in printed.err
    assert printed.out.startswith("nearest_centroid: N = 300")


def test_only_the_warning_about_cuda_home_is_kept_quiet(caplog):
    assigners.torch_compiled(torch.eye(2))
    logger = logging.getLogger("torch.utils.cpp_extension")
    with caplog.at_level("WARNING", logger=logger.name):
        logger.addHandler(caplog.handler)
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
        logger.warning("something else")
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"something else"}


def test_switches_are_given_back():
    """And the ids are the same on every path and without the projection."""
    x, c = make_rows(200, 9, 6, seed=0), make_rows(6, 9, 3, seed=1)
    expected = ops.nearest_centroid(x, c, backend="reference")
    before = _backend.core().build_info()["isa"]
    blocks = [
        partial(paths.running, name) for name, s in paths.isa_paths().items() if s == "usable"
    ]
    if paths.projection_switchable():
        blocks.append(paths.without_projection)
    for block in blocks:
        with block():
            assert torch.equal(ops.nearest_centroid(x, c), expected)
    assert paths.certificate_switchable()
    with paths.uncertified():
        assert ops.nearest_centroid(x, c).shape == (200,)
    assert torch.equal(ops.nearest_centroid(x, c), expected)
    assert _backend.core().build_info()["isa"] == before
