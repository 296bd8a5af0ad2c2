"""The only file that touches ``torch.library``: registers ops in the namespace ``clustermim::``.

``Library.define`` + ``impl`` + ``register_fake`` costs a quarter of ``torch.library.custom_op`` per
call; what ``custom_op`` would check at run time is checked by opcheck in the tests instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "clustermim"
# Lives as long as the process: dropping it unregisters the ops.
_library = torch.library.Library(NAMESPACE, "DEF")


def define_op(schema: str, *, impl: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register ``clustermim::<schema>`` and return its ``.default`` overload.

    ``impl`` runs for CPU and CUDA tensors and dispatches on the op's ``backend`` argument itself;
    ``fake`` computes output shapes and dtypes only. Schemas are functional with a fixed number of
    outputs.
    """
    name = schema.split("(", 1)[0].strip()
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, impl, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default
