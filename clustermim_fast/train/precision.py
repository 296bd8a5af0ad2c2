"""Which 16-bit type a run computes in, and the loss scale that float16 needs."""

from __future__ import annotations

import torch
from torch.amp import GradScaler


def choose_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast for efficiency.amp; None: float32 throughout."""
    if amp == "auto" and device.type == "cuda":
        # is_bf16_supported() alone says yes to devices of NVIDIA that emulate it.
        has_it = torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
        amp = "bf16" if has_it else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)


def make_scaler(amp: str, device: torch.device) -> GradScaler:
    """Of float16: its gradients would vanish below 6e-8. Of other types it does nothing."""
    enabled = choose_dtype(amp, device) == torch.float16
    return GradScaler(device.type, enabled=enabled)
