"""ClusterMIM (Du, Wang, Wang; ICLR 2024): predict the cluster of every masked patch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from clustermim_fast.models.config import ModelConfig
from clustermim_fast.models.masked_autoencoder import MaskedAutoencoder
from clustermim_fast.models.registry import register_method


@register_method("clustermim")
class ClusterMIM(MaskedAutoencoder):
    """Masked autoencoder with a K-way classifier per patch.

    `head` is a Linear [K, d] that `losses.token_loss` uses through the fused op; logits for all
    patches are never made in training. The tokenizer is not part of the model.
    """

    objective = "tokens"

    def __init__(self, config: ModelConfig, image_size: tuple[int, int], num_clusters: int) -> None:
        super().__init__(config, image_size, num_clusters)

    def logits(self, images: Tensor, mask: Tensor) -> Tensor:
        """Cluster logits of every patch, float [B, L, K]; for pictures, not for training."""
        hidden = self(images, mask)[:, self.num_prefix_tokens :]
        return F.linear(hidden, self.head.weight, self.head.bias)
