"""KMeans with scikit-learn's estimator surface, on the exact assignment ops."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from clustermim_fast import ops
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers import kmeans_fit
from clustermim_fast.tokenizers.kmeans_fit import Settings
from clustermim_fast.tokenizers.kmeans_init import RandomState, as_random_state
from clustermim_fast.tokenizers.kmeans_inputs import as_input_kind, read_rows, read_weights
from clustermim_fast.tokenizers.kmeans_minibatch import STARVED, MiniBatch
from clustermim_fast.tokenizers.rows import MatrixRows, Rows, require_finite, unit_rows
from clustermim_fast.tokenizers.serial import rounded
from clustermim_fast.tokenizers.sharded_rows import spread

ROW_BLOCK = 1 << 15
FIRST_BATCH = (
    " partial_fit draws the first centroids from the rows of its first call: pass more of them to "
    "it (the first batches joined), or give init= as an array [n_clusters, n_features]"
)


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """K-means clustering with exact assignments (:func:`clustermim_fast.ops.nearest_centroid`).

    numpy arrays in, numpy arrays out; torch tensors in (float64/32/16, bfloat16, any device),
    tensors out. Centroids and sums are float64 during the fit, inertia is summed from the distances
    themselves. The same seed gives the same result for any number of threads.

    scikit-learn's ``check_estimator`` passes, but for one check that its own KMeans is excused
    from, too: a row of weight 0 is not the same as no such row, since seeds are drawn by row number
    (``check_sample_weight_equivalence_on_dense_data``). Sparse input is refused.

    Inside ``torch.distributed`` (``torchrun``, gloo or NCCL) each rank holds its part of the rows;
    all call ``fit`` or ``partial_fit`` together, with the same parameters. ``labels_`` are those of
    the rank's own rows, everything else is of all rows and the same on each rank: what one process
    would find in rank 0's rows followed by rank 1's and so on, up to the rounding of float64 sums
    (the same seed gives the same first centroids, the same first centroids the same labels). A
    rank may hold no row; predict, transform and score are each rank's own.

    Args:
        n_clusters: K.
        init: "k-means++" (greedy, as scikit-learn), "random" (distinct rows), an array [K, D], or a
            callable ``(X, n_clusters, random_state) -> array`` (of several ranks, rank 0's counts).
        n_init: runs with different seeds, the best inertia kept; "auto": 1 for "k-means++" and
            arrays, else 10 (3 for mini-batches).
        max_iter: Lloyd iterations, or passes over the data for "minibatch".
        tol: stop when the squared shift of all centroids is at most ``tol`` times the mean variance
            of the features; Lloyd also stops when no row moves.
        algorithm: "lloyd", or "minibatch" (scikit-learn's MiniBatchKMeans: running means,
            re-assignment of starved clusters, stop when the smoothed inertia stops falling).
        batch_size: rows of a mini-batch.
        metric: "euclidean", or "cosine": spherical k-means (unit rows, unit centroids; inertia is
            the sum of 1 - cosine, :meth:`transform` gives 1 - cosine).
        random_state: None, int, numpy Generator or RandomState.
        device: where to fit and predict; None: where the data is.
        verbose: show a progress bar.
        max_no_improvement: "minibatch": batches without gain before the fit stops; None: never.
        reassignment_ratio: "minibatch": share of the largest count below which a cluster is
            re-seeded.

    Attributes:
        cluster_centers_: [K, D], float64 for float64 input, else float32.
        labels_: int64 [N], those of the final centroids.
        inertia_: sum of (weighted) squared distances to the final centroids.
        n_iter_: iterations run.
        report_: :class:`KMeansReport` of the best run.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        algorithm: str = "lloyd",
        batch_size: int = 1024,
        metric: str = "euclidean",
        random_state: Any = None,
        device: Any = None,
        verbose: int = 0,
        max_no_improvement: int | None = 10,
        reassignment_ratio: float = STARVED,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.algorithm = algorithm
        self.batch_size = batch_size
        self.metric = metric
        self.random_state = random_state
        self.device = device
        self.verbose = verbose
        self.max_no_improvement = max_no_improvement
        self.reassignment_ratio = reassignment_ratio

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Cluster the rows of X [N, D]; ``y`` is ignored.

        Raises:
            ValueError: NaN or Inf in X (the first such row is named), N < n_clusters, a bad
                parameter.
            TypeError: a tensor that is not floating or dense.
        """
        settings, x, is_tensor, rows, random = self._read(X, sample_weight, reset=True)
        _require_enough(rows, self.n_clusters)
        fit = kmeans_fit.fit(rows, settings, rows.group.same_draws(random))
        self._keep(fit.centers, rows.dtype, is_tensor, x.device)
        assert fit.step.ids is not None  # those of a matrix are kept
        self.labels_ = as_input_kind(fit.step.ids, is_tensor, x.device)
        self.inertia_ = fit.step.inertia
        self.n_iter_ = fit.num_iterations
        self.report_ = fit.report
        self._minibatch = fit.minibatch
        if fit.report.unused:
            found = self.n_clusters - fit.report.unused
            warnings.warn(
                f"Number of distinct clusters ({found}) found smaller than n_clusters "
                f"({self.n_clusters}). Possibly due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """One mini-batch step on X; the first call draws the initial centroids from it.

        For data that never fit into memory: call it for every batch of a loader, which should
        shuffle, as often as wanted. Nothing of a batch is kept. The first batch must have at least
        n_clusters rows unless ``init`` is an array. The centroids are the means of all rows that
        they were ever given, as in scikit-learn's MiniBatchKMeans.partial_fit. After :meth:`fit` it
        goes on from the fitted centroids and their counts. ``labels_`` and ``inertia_`` are those
        of this batch with the updated centroids.

        In several ranks each one's X is its part of the batch, and all must call equally often: a
        rank whose loader has ended passes X of shape [0, D].
        """
        first = not hasattr(self, "cluster_centers_")
        settings, x, is_tensor, rows, random = self._read(X, sample_weight, reset=first)
        if first:
            if not settings.init_is_array:
                _require_enough(rows, self.n_clusters, FIRST_BATCH)
            rows.mean_variance()  # refuses NaN before it becomes a seed; later the step does
            self._minibatch = kmeans_fit.start(rows, settings, rows.group.same_draws(random))
            self.n_steps_ = 0
        state: MiniBatch = self._minibatch
        state.step(rows)
        self._keep(state.centers, rows.dtype, is_tensor, x.device)
        step = rows.lloyd_step(state.centers)
        assert step.ids is not None
        self.labels_ = as_input_kind(step.ids, is_tensor, x.device)
        self.inertia_ = step.inertia
        self.n_steps_ = getattr(self, "n_steps_", 0) + 1
        return self

    def predict(self, X: Any) -> Any:
        """Id of the nearest centroid of each row: int64 [N], exact, lowest id among equal ones."""
        x, is_tensor = self._read_fitted(X)
        ids = ops.nearest_centroid(self._placed(x), self._centers(x), metric=self.metric)
        return as_input_kind(require_finite(ids), is_tensor, x.device)

    def transform(self, X: Any) -> Any:
        """Distance of each row to each centroid: [N, K] ("cosine": 1 - cosine)."""
        x, is_tensor = self._read_fitted(X)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        centers = self._centers(x).to(dtype)
        self.predict(x)  # refuses NaN
        out = torch.empty(x.shape[0], len(centers), dtype=dtype, device=centers.device)
        for start in range(0, x.shape[0], ROW_BLOCK):
            block = self._placed(x[start : start + ROW_BLOCK]).to(dtype)
            if self.metric == "cosine":
                distance = 1.0 - unit_rows(block) @ unit_rows(centers).T
            else:  # the direct form: no cancellation
                distance = torch.cdist(block, centers, compute_mode="donot_use_mm_for_euclid_dist")
            out[start : start + ROW_BLOCK] = distance
        return as_input_kind(out, is_tensor, x.device)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the inertia of X with the fitted centroids."""
        x, _ = self._read_fitted(X)
        x = self._placed(x)
        rows = MatrixRows(x, read_weights(sample_weight, x), self.metric)
        return -rows.lloyd_step(self._centers(x)).inertia

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _settings(self) -> Settings:
        return Settings(
            num_clusters=self.n_clusters,
            init=self.init,
            n_init=self.n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            algorithm=self.algorithm,
            batch_size=self.batch_size,
            metric=self.metric,
            verbose=bool(self.verbose),
            max_no_improvement=self.max_no_improvement,
            reassignment_ratio=self.reassignment_ratio,
        ).check()

    def _read(
        self, X: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[Settings, torch.Tensor, bool, Rows, RandomState]:
        """The settings, X as a tensor (and whether it was one), as the rows of a fit, the draws.

        With several ranks X is this one's part of the rows.
        """
        group = everyone()

        def read_own() -> tuple[Settings, torch.Tensor, bool, MatrixRows, RandomState]:
            settings = self._settings()
            fewest = 0 if group.count > 1 else 1  # together, ranks have more
            x, is_tensor = read_rows(self, X, reset=reset, fewest=fewest)
            placed = self._placed(x)
            weights = read_weights(sample_weight, placed, some=group.count == 1)
            rows = MatrixRows(placed, weights, self.metric)
            return settings, x, is_tensor, rows, as_random_state(self.random_state)

        settings, x, is_tensor, own, random = group.agree(read_own)
        init = self.init if isinstance(self.init, str) else type(self.init)
        kept = {"init": init, "random_state": None, "device": None, "verbose": None}
        group.require_equal("KMeans: parameters", {**self.get_params(), **kept})
        rows = spread(own, "KMeans: X")
        weights = own.weights
        if weights is not None and not group.each(np.array([float(weights.sum())])).any():
            raise ValueError("sample_weight must have a value > 0, got zeros only")
        return settings, x, is_tensor, rows, random

    def _placed(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.device is None else x.to(self.device)

    def _keep(
        self, centers: torch.Tensor, dtype: torch.dtype, is_tensor: bool, device: torch.device
    ) -> None:
        self.cluster_centers_ = as_input_kind(rounded(centers, dtype), is_tensor, device)

    def _read_fitted(self, X: Any) -> tuple[torch.Tensor, bool]:
        check_is_fitted(self)
        return read_rows(self, X, reset=False)

    def _centers(self, x: torch.Tensor) -> torch.Tensor:
        device = x.device if self.device is None else torch.device(self.device)
        centers = self.cluster_centers_
        if isinstance(centers, torch.Tensor):
            return centers.to(device)
        return torch.from_numpy(np.ascontiguousarray(centers)).to(device)


def _require_enough(rows: Rows, num_clusters: int, remedy: str = "") -> None:
    if rows.num_rows < num_clusters:
        raise ValueError(
            f"n_samples={rows.num_rows} should be >= n_clusters={num_clusters}.{remedy}"
        )
