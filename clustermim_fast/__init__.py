"""K-means tokenizers, masked losses and masked image modelling with cluster tokens.

Names are loaded when they are first used (PEP 562), so that ``import clustermim_fast`` costs
nothing, ``import clustermim_fast._core`` needs no torch, and ``from clustermim_fast import ops``
loads torch but none of timm, torchvision, triton and scikit-learn.

    from clustermim_fast import KMeans, ops, pretrain
"""

import importlib
from typing import TYPE_CHECKING, Any

from clustermim_fast._version import __version__

if TYPE_CHECKING:
    from clustermim_fast import (
        data,
        evaluate,
        export,
        info,
        models,
        nn,
        ops,
        recipes,
        report,
        testing,
        tokenizers,
        train,
    )
    from clustermim_fast.api import pretrain
    from clustermim_fast.tokenizers import KMeans

_SUBMODULES = (
    "data",
    "evaluate",
    "export",
    "info",
    "models",
    "nn",
    "ops",
    "recipes",
    "report",
    "testing",
    "tokenizers",
    "train",
)
_ATTRIBUTES = {"KMeans": "clustermim_fast.tokenizers", "pretrain": "clustermim_fast.api"}

__all__ = [
    "KMeans",
    "__version__",
    "data",
    "evaluate",
    "export",
    "info",
    "models",
    "nn",
    "ops",
    "pretrain",
    "recipes",
    "report",
    "testing",
    "tokenizers",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"clustermim_fast.{name}")
    if name in _ATTRIBUTES:
        value = getattr(importlib.import_module(_ATTRIBUTES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'clustermim_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
