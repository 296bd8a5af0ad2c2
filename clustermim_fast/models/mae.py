"""MAE (He et al., CVPR 2022): predict the pixels of every masked patch. The baseline."""

from __future__ import annotations

from torch import Tensor

from clustermim_fast.models.config import ModelConfig
from clustermim_fast.models.masked_autoencoder import MaskedAutoencoder
from clustermim_fast.models.registry import register_method


@register_method("mae")
class MAE(MaskedAutoencoder):
    """Masked autoencoder with a regression head of 3 p^2 values per patch, in (row, column,
    channel) order.
    """

    objective = "pixels"

    def __init__(
        self, config: ModelConfig, image_size: tuple[int, int], num_clusters: int | None = None
    ) -> None:
        super().__init__(config, image_size, None)

    def patches(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted patches of every position, float [B, L, 3 p^2]; for pictures."""
        return self.head(self(images, mask)[:, self.num_prefix_tokens :])
