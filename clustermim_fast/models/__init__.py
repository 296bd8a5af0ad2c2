"""Methods: what is predicted at masked patches, on timm encoders."""

from clustermim_fast.models.a2mim import A2MIM
from clustermim_fast.models.ccvit import CCViT, CCViTHidden
from clustermim_fast.models.clustermim import ClusterMIM
from clustermim_fast.models.config import ModelConfig
from clustermim_fast.models.create import create_model, load_encoder_weights
from clustermim_fast.models.mae import MAE
from clustermim_fast.models.masked_autoencoder import MaskedAutoencoder
from clustermim_fast.models.positions import sincos_positions
from clustermim_fast.models.registry import list_methods, method_class, register_method

__all__ = [
    "A2MIM",
    "MAE",
    "CCViT",
    "CCViTHidden",
    "ClusterMIM",
    "MaskedAutoencoder",
    "ModelConfig",
    "create_model",
    "list_methods",
    "load_encoder_weights",
    "method_class",
    "register_method",
    "sincos_positions",
]
