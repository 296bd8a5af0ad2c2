"""FeatureTokenizer.fit: k-means over features that are streamed, and the pictures of centroids."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from torch.utils.data import DataLoader, TensorDataset

from clustermim_fast import KMeans
from clustermim_fast.tokenizers import FeatureTokenizer, feature_fit
from tests.tokenizers.feature_networks import given


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd", "clustermim"])
def test_fit(network, photos, metric, algorithm):
    tokenizer = FeatureTokenizer.fit(
        photos, 6, **network, metric=metric, algorithm=algorithm, max_iter=4, batch_size=16
    )
    x = tokenizer.features(photos).flatten(0, 2).double()
    c = tokenizer.centroids.double()
    report = tokenizer.report
    if metric == "cosine":
        x = F.normalize(x, dim=1)
        cost = 1 - x @ F.normalize(c, dim=1).T
        torch.testing.assert_close(c.norm(dim=1), torch.ones(6).double())
    else:
        cost = torch.cdist(x, c, compute_mode="donot_use_mm_for_euclid_dist").square()
    best, ids = cost.min(1)
    assert report.inertia == pytest.approx(float(best.sum()), rel=1e-4)
    assert report.exact
    assert report.counts == ids.bincount(minlength=6).tolist()
    assert report.num_rows == 60 * 16
    if metric != "dot":
        assert torch.equal(tokenizer(photos).flatten(), ids)
    # As good as k-means on the matrix that was never made.
    free = KMeans(6, n_init=3, random_state=0, metric=report.metric).fit(x.float())
    assert report.inertia < 1.25 * free.inertia_
    # The pictures are the nearest patches.
    patches = photos.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    for k in range(6):
        mine = torch.where(ids == k, best, torch.inf)
        assert torch.equal(tokenizer.pictures[k], patches[mine.argmin()])
    decoded = tokenizer.decode(ids.view(60, 16))
    assert torch.equal((decoded[0, :, :8, :8] * 255).round().byte(), tokenizer.pictures[ids[0]])


def test_loaders_and_floats(network, photos):
    loader = DataLoader(TensorDataset(photos, torch.arange(60)), batch_size=16, shuffle=True)
    options = {"algorithm": "lloyd", "max_iter": 3, **network}
    a = FeatureTokenizer.fit(loader, 5, **options)
    b = FeatureTokenizer.fit([photos[:30].float() / 255, photos[30:].float() / 255], 5, **options)
    assert a.report.inertia == pytest.approx(b.report.inertia, rel=0.2)
    assert b.pictures.dtype == torch.uint8
    assert (b.pictures[:, None] == photos.unfold(2, 8, 8).unfold(3, 8, 8).permute(
        0, 2, 3, 1, 4, 5).flatten(0, 2)[None]).flatten(2).all(2).any(1).all()  # fmt: skip


def test_features_are_not_held(network, photos, monkeypatch, frozen_heap):
    """No more than two batches of rows are alive at any time, and every pass is a new one."""
    alive, most, forwards = [], 0, 0

    class Watched(feature_fit.FeatureRows):
        def __init__(self, *arguments):
            nonlocal most, forwards
            super().__init__(*arguments)
            gc.collect()
            forwards += 1
            alive.append(1)
            most = max(most, len(alive))

        def __del__(self):
            alive.pop()

    monkeypatch.setattr(feature_fit, "FeatureRows", Watched)
    options = {"max_iter": 3, "batch_size": 10, **network}
    streamed = FeatureTokenizer.fit(photos, 5, **options)
    assert most <= 2
    assert forwards == 6 * (1 + 3 + 1)  # sample, passes, look
    forwards = 0
    kept = FeatureTokenizer.fit(photos, 5, **options, keep_features=True)
    assert most >= 6
    assert forwards == 6 * 2
    assert kept.report.inertia == pytest.approx(streamed.report.inertia, rel=0.2)


def test_given_centroids_have_pictures_after_a_look(network, photos):
    tokenizer = given(network)
    with pytest.raises(ValueError, match=r"look_at\(images\)"):
        tokenizer.decode(tokenizer(photos))
    seen = tokenizer.look_at(photos)
    assert int(seen.counts.sum()) == 60 * 16
    unused = (seen.counts == 0).nonzero().flatten()
    assert (tokenizer.pictures[unused] == feature_fit.GREY).all()
    assert tokenizer.decode(tokenizer(photos)).shape == (60, 3, 32, 32)
