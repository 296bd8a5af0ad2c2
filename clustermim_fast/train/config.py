"""`TrainConfig`: the configs of the parts, composed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from clustermim_fast.data import DataConfig
from clustermim_fast.losses import LossConfig
from clustermim_fast.masking import MaskConfig
from clustermim_fast.models import ModelConfig, list_methods, method_class
from clustermim_fast.optim import OptimConfig
from clustermim_fast.tokenizers.kmeans_minibatch import STARVED


def _require_at_least(group: str, config: object, **lowest: int) -> None:
    """Refuse a number that no run can use, before anything is fitted; None is left to later."""
    for name, low in lowest.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ValueError(f"{group}.{name} must be at least {low}, got {value}")


@dataclass(frozen=True)
class TokenizerConfig:
    """The frozen tokenizer: a file, or what to fit when there is none.

    Attributes:
        path: a tokenizer written by `tokenizer.save`; "" fits one on the run's images.
        kind: "pixel", or "feature" for tokens of a frozen network's patch features.
        num_clusters: K.
        metric: "euclidean", "cosine", or for features "dot", see ``FeatureTokenizer.fit``.
        algorithm: "minibatch", "lloyd" or "clustermim", see ``PixelTokenizer.fit``.
        max_iter: passes over the images at most; None: 10, 50 or 100.
        max_images: fit on at most this many images, evenly spaced, and never on more than 1 GiB.
        images_per_class: of labelled images, fit on so many of each class; None: on all.
        batch_size: images of a mini-batch of the fit; None: about 50,000 patches, of features 128.
        reassignment_ratio: see ``PixelTokenizer.fit``.
        per_patch_norm: normalise each patch of pixels before clustering.
        model: timm name or folder of the network that gives features.
        weights: a checkpoint file for it; "": those of the name's tag, or in the folder.
        layer, apply_norm, precision, keep_features: see ``FeatureTokenizer.fit``.
        normalize: cluster pixels after the run's mean and std; False: in [0, 1]; None: as the
            method does (ccvit in [0, 1], the others after).
        init, tol: see ``PixelTokenizer.fit``.
    """

    path: str = ""
    kind: str = "pixel"
    num_clusters: int = 50
    metric: str = "euclidean"
    algorithm: str = "minibatch"
    max_iter: int | None = None
    max_images: int = 100_000
    images_per_class: int | None = None
    batch_size: int | None = None
    reassignment_ratio: float = STARVED
    per_patch_norm: bool = False
    model: str = "vit_small_patch16_224.dino"
    weights: str = ""
    layer: int = -1
    apply_norm: bool = True
    precision: str = "float32"
    keep_features: bool = False
    normalize: bool | None = None
    init: str = "k-means++"
    tol: float = 1e-4

    def __post_init__(self) -> None:
        _require_at_least("tokenizer", self, num_clusters=1, max_images=1, max_iter=1)
        _require_at_least("tokenizer", self, images_per_class=1, batch_size=1)
        dot = ("dot",) if self.kind == "feature" else ()
        for name, known in (
            ("kind", ("pixel", "feature")),
            ("algorithm", ("minibatch", "lloyd", "clustermim")),
            ("metric", ("euclidean", "cosine", *dot)),
            ("precision", ("float32", "bfloat16")),
        ):
            value = getattr(self, name)
            if value not in known:
                expected = ", ".join(map(repr, known))
                raise ValueError(f"tokenizer.{name} must be one of {expected}, got {value!r}")
        if self.kind == "feature" and self.per_patch_norm:
            raise ValueError(
                'tokenizer.per_patch_norm normalises pixels; it means nothing with kind="feature"'
            )


@dataclass(frozen=True)
class LogConfig:
    """What is written while a run goes on. Cannot change its result.

    Attributes:
        every_steps: updates between lines of progress; None: 50, a tenth of a run below 500.
        checkpoint_every_epochs: epochs between checkpoints; the last one is always written.
        checkpoint_every_steps: updates between checkpoints besides; 0: none within an epoch.
        keep: epoch_*.pt files kept beside last.pt; 0: last.pt only.
        tensorboard: also write TensorBoard events to RUN/tensorboard.
        wandb, mlflow: also log to this project of Weights & Biases, this experiment of MLflow; ""
            to none.
        eval_every: epochs between evaluations of the encoder while it trains; 0: none.
        watch: epochs between rewritings of RUN/report.html while it trains; 0: at the end only.
    """

    every_steps: int | None = None
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int = 0
    keep: int = 1
    tensorboard: bool = False
    wandb: str = ""
    mlflow: str = ""
    eval_every: int = 0
    watch: int = 0

    def __post_init__(self) -> None:
        _require_at_least("log", self, every_steps=1, checkpoint_every_epochs=1)
        _require_at_least("log", self, checkpoint_every_steps=0, keep=0, eval_every=0, watch=0)

    def interval(self, total_steps: int) -> int:
        """Updates between lines of progress of a run of ``total_steps``."""
        return self.every_steps or min(50, max(1, total_steps // 10))


COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class EfficiencyConfig:
    """Speed and place. May move a loss by rounding, never by more.

    Attributes:
        device: "auto" (CUDA where there is a device), "cpu", "cuda" or "cuda:N".
        amp: "auto" (autocast on CUDA, to bfloat16 where the device has it, else float16; none on
            the CPU), "bf16", "fp16" (with a loss scale) or "off".
        workers: DataLoader processes; None: none for a set in memory below 96 pixels, else one per
            core (per two cores where the network runs on the CPU), eight at most.
        compile: "off", or the mode in which torch.compile takes model and loss: "default" (also
            "true"), "reduce-overhead" (on CUDA its graphs are replayed) or "max-autotune".
        channels_last: memory format of convolutional weights and feature maps; None: on CUDA, for
            convolutional encoders.
        sharding: of several ranks each has all weights ("ddp"), or a part of weights, gradients and
            the optimizer's state ("fsdp", torch's FSDP2).
    """

    device: str = "auto"
    amp: str = "auto"
    workers: int | None = None
    compile: str = "off"
    channels_last: bool | None = None
    sharding: str = "ddp"

    def __post_init__(self) -> None:
        if self.sharding not in ("ddp", "fsdp"):
            raise ValueError(f'efficiency.sharding must be "ddp" or "fsdp", got {self.sharding!r}')
        if self.compile not in COMPILE_MODES:
            names = ", ".join(f'"{mode}"' for mode in COMPILE_MODES)
            raise ValueError(f"efficiency.compile must be one of {names}, got {self.compile!r}")
        # CUDA graphs read weights where they were, and FSDP2 puts them together anew.
        for name, value, allowed in (
            ("compile", self.compile, ("off", "default")),
            ("channels_last", self.channels_last or False, (False,)),
        ):
            if self.sharding == "fsdp" and value not in allowed:
                raise ValueError(
                    f"efficiency.sharding=fsdp goes with efficiency.{name}="
                    f"{' or '.join(map(str, allowed))}, got {value}; leave out one of them"
                )
        if self.amp not in ("auto", "bf16", "fp16", "off"):
            raise ValueError(
                f'efficiency.amp must be "auto", "bf16", "fp16" or "off", got {self.amp!r}'
            )
        _require_at_least("efficiency", self, workers=0)


@dataclass(frozen=True)
class TrainConfig:
    """Everything a pretraining run depends on.

    Attributes:
        method: a registered method: "a2mim", "ccvit", "clustermim" or "mae".
        seed: of weights, crops, masks, order and k-means.
        out: the run folder.
        resume: "auto" goes on from a checkpoint of the same config where there is one; "must" is an
            error where there is none; "restart" deletes what is there and begins anew.
    """

    method: str = "clustermim"
    seed: int = 0
    out: str = ""
    resume: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    efficiency: EfficiencyConfig = field(default_factory=EfficiencyConfig)

    def __post_init__(self) -> None:
        if self.method not in list_methods():
            raise ValueError(
                f"method must be one of {', '.join(list_methods())}; got {self.method!r}"
            )
        if not 0 <= self.seed < 2**32:  # what numpy's generators take
            raise ValueError(f"seed must be at least 0 and below 2**32, got {self.seed}")
        if self.resume not in ("auto", "must", "restart"):
            raise ValueError(f'resume must be "auto", "must" or "restart", got {self.resume!r}')
        self._require_pixels_where_centroids_are_shown()

    def _require_pixels_where_centroids_are_shown(self) -> None:
        """A tokenizer to fit is known by its settings; one of a file when it is loaded."""
        wanted = self.tokenizer
        method = method_class(self.method)
        kind = self.mask.kind or method.defaults(self.model.encoder)["mask.kind"]
        if kind != "replaced" or kind not in method.mask_kinds or wanted.path:
            return
        for name, value, pixels in (
            ("kind", wanted.kind, "pixel"),
            ("metric", wanted.metric, "euclidean"),
            ("per_patch_norm", wanted.per_patch_norm, False),
        ):
            if value != pixels:
                raise ValueError(
                    f"tokenizer.{name} = {value!r} gives centroids that are no pixels, and method "
                    f"{self.method} shows patches as their centroids; take tokenizer.{name}="
                    f"{pixels}, or mask.kind=block, which replaces none"
                )

    def identity(self) -> dict[str, Any]:
        """What must be equal for one run to go on from another's checkpoint."""
        values = to_dict(self)
        for name in ("out", "resume", "log", "efficiency"):
            values.pop(name)
        values["data"].pop("in_memory")
        values["optim"].pop("skip_nonfinite")  # may be given after a loss that was not finite
        return values


ALIASES = {
    "data": "data.path",
    "model": "model.encoder",
    "backbone": "model.encoder",
    "img_size": "data.image_size",
    "patch_size": "model.patch_size",
    "num_clusters": "tokenizer.num_clusters",
    "tokenizer": "tokenizer.path",
    "epochs": "optim.epochs",
    "steps": "optim.steps",
    "batch_size": "optim.batch_size",
    "accum_iter": "optim.accumulate",
    "blr": "optim.blr",
    "lr": "optim.lr",
    "warmup_epochs": "optim.warmup_epochs",
    "weight_decay": "optim.weight_decay",
    "mask_ratio": "mask.ratio",
    "norm_pix_loss": "loss.norm_pix_loss",
    "label_smoothing": "loss.label_smoothing",
    "eval_every": "log.eval_every",
    "watch": "log.watch",
    "device": "efficiency.device",
    "workers": "efficiency.workers",
}


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as nested plain dicts."""
    return dataclasses.asdict(config)
