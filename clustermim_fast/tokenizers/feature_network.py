"""The frozen network of a feature tokenizer: any timm model, one layer's map of features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.config import resolve_model_data_config
from torch import Tensor

from clustermim_fast.encoders import create_backbone, timm_filter
from clustermim_fast.tokenizers.pixel_settings import channel_tuple, require_choice
from clustermim_fast.weights import load_weights

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class NetworkSettings:
    """Everything but the weights that features depend on.

    Attributes:
        architecture: timm's name.
        options: timm's keyword arguments.
        layer: which of timm's intermediates, from 0: a block of a ViT, a stage of a CNN.
        apply_norm: pass them through the model's final norm, where it has one.
        mean, std: of the network's input, in [0, 1] pixel units.
        precision: "float32", or "bfloat16" for the network under autocast. Ids are exact for the
            features that come out.
    """

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    layer: int = 0
    apply_norm: bool = True
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    precision: str = "float32"

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, tuple(PRECISIONS))


class FeatureNetwork:
    """A timm model cut off after ``settings.layer``, in eval mode and without gradients.

    Attributes:
        dim: width of a feature.
        stride: pixels of the network's input that a feature stands for, on each side.
        about: one line on where the weights came from.
    """

    def __init__(self, module: Any, settings: NetworkSettings, about: str = "") -> None:
        layers = module.feature_info
        self.dim = int(layers[settings.layer]["num_chs"])
        self.stride = int(layers[settings.layer]["reduction"])
        self.settings, self.about = settings, about
        self._fingerprint: str | None = None  # the weights are frozen
        self.module: Any = module.eval().requires_grad_(False)
        # Kept on the device: to make them of numbers for each batch would wait for it.
        values = torch.tensor([settings.mean, settings.std], dtype=torch.float32)
        self._mean, self._std = values.to(self.device)[:, :, None, None]

    @classmethod
    def open(
        cls,
        model: str,
        *,
        weights: str | Path | None = None,
        model_options: dict[str, Any] | None = None,
        layer: int = -1,
        apply_norm: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        precision: str = "float32",
    ) -> FeatureNetwork:
        """The network of a timm name or folder; meanings as in ``FeatureTokenizer.fit``."""
        folder = _exported(model)
        arguments = dict(model_options or {})
        view: dict[str, Any] = {}
        if folder is not None:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if "architecture" not in config:
                raise ValueError(
                    f"model: {folder / 'config.json'} names no architecture, as timm's do"
                )
            arguments = {**config.get("model_args", {}), **arguments}
            view = config.get("pretrained_cfg", {})
            model, weights = config["architecture"], weights or folder / "model.safetensors"
        arguments.pop("num_classes", None)  # timm writes it; there is no classifier here
        module: Any = create_backbone(model, pretrained=weights is None, **arguments)
        view = {**resolve_model_data_config(module), **view}
        count = len(module.feature_info)
        if not -count <= layer < count:
            raise ValueError(
                f"layer must lie in {-count} .. {count - 1}, the layers of {model}, got {layer}"
            )
        settings = NetworkSettings(
            model,
            arguments,
            layer % count,
            bool(apply_norm),
            channel_tuple("mean", view["mean"] if mean is None else mean) or (),
            channel_tuple("std", view["std"] if std is None else std) or (),
            precision,
        )
        _cut(module, settings)
        about = f"{model}: timm's weights"
        if weights is not None:
            adapt = timm_filter(model, module)
            verdict = load_weights(module, weights, adapt=adapt, complete=True)
            about = f"{weights} into {model}: {verdict.line()}"
        return cls(module, settings, about)

    @classmethod
    def from_state(cls, settings: NetworkSettings, state: dict[str, Tensor]) -> FeatureNetwork:
        """What :meth:`state` and ``settings`` of another describe."""
        module = create_backbone(settings.architecture, **settings.options)
        _cut(module, settings)
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"the network's weights do not fit {settings.architecture} as this timm makes it: "
                f"{error}"
            ) from error
        return cls(module, settings)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        place: torch.device = next(self.module.parameters()).device
        return place

    def to(self, device: torch.device | str) -> FeatureNetwork:
        """In place, as a Module's."""
        self.module.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def state(self) -> dict[str, Tensor]:
        """The weights up to the layer."""
        return dict(self.module.state_dict())

    def fingerprint(self) -> str:
        """SHA-256 of the weights and of every setting that changes features."""
        if self._fingerprint is None:
            digest = hashlib.sha256(json.dumps(asdict(self.settings), sort_keys=True).encode())
            for name, tensor in sorted(self.state().items()):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @torch.no_grad()
    def features(self, images: Tensor, grid: tuple[int, int], *, normalized: bool) -> Tensor:
        """[B, rows, columns, D] of images [B, C, H, W], uint8 0..255 or floating 0..1.

        They are resized where ``grid`` asks for another number of features than they have.
        """
        if normalized and images.dtype == torch.uint8:
            raise ValueError("normalized=True with uint8 images; uint8 pixels are never normalised")
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        size = [side * self.stride for side in grid]
        if list(x.shape[-2:]) != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
            x = x if normalized else x.clamp_(0, 1)
        s = self.settings
        if not normalized:
            x = (x - self._mean) / self._std
        # Its own precision, whatever autocast the caller is in: the same ids everywhere.
        narrow = s.precision != "float32"
        try:
            with torch.autocast(x.device.type, PRECISIONS["bfloat16"], enabled=narrow):
                (found,) = self.module.forward_intermediates(
                    x,
                    indices=[s.layer],
                    norm=s.apply_norm,
                    stop_early=True,
                    output_fmt="NCHW",
                    intermediates_only=True,
                )
        except AssertionError as error:  # how timm refuses a size, or a norm between its layers
            raise ValueError(
                f"{s.architecture} refuses images of {size[0]} x {size[1]} pixels at layer "
                f"{s.layer} with apply_norm={s.apply_norm}: {error}"
            ) from error
        if tuple(found.shape[1:]) != (self.dim, *grid):
            raise ValueError(
                f"{s.architecture}: layer {s.layer} with apply_norm={s.apply_norm} makes "
                f"{list(found.shape[1:])} features of {size[0]} x {size[1]} pixels, expected "
                f"{[self.dim, *grid]}; choose another layer, apply_norm or image size"
            )
        features: Tensor = found.permute(0, 2, 3, 1)
        return features


def _cut(module: Any, settings: NetworkSettings) -> None:
    """Drop what the layer's features do not depend on."""
    module.prune_intermediate_layers([settings.layer], prune_norm=not settings.apply_norm)


def _exported(model: str) -> Path | None:
    """The folder of config.json and model.safetensors that ``model`` names, if it names one."""
    path = Path(model.removeprefix("local-dir:")).expanduser()
    for folder in (path, path / "export"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    if model.startswith("local-dir:") or path.is_dir():
        raise ValueError(
            f"model: expected a timm name, a run folder with export/ or a folder with config.json "
            f"and model.safetensors, got {model!r}"
        )
    return None
