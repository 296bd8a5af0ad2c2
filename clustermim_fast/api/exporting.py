"""Export of a run's encoder."""

from __future__ import annotations

from pathlib import Path

from clustermim_fast.export import export_timm
from clustermim_fast.train import load_run

__all__ = ["export_run"]


def export_run(
    run_dir: str | Path, out: str | Path | None = None, *, checkpoint: str = "last"
) -> Path:
    """Write the encoder of a run to ``out`` (RUN/export) for timm, its tokenizer beside it."""
    loaded = load_run(run_dir, checkpoint)
    data = loaded.config.data
    assert data.mean is not None
    assert data.std is not None
    assert data.image_size is not None
    tokenizer = Path(run_dir) / "tokenizer.safetensors"
    crop = data.eval_crop or (0.875 if min(data.image_size) >= 160 else 1.0)
    return export_timm(
        loaded.model.encoder,  # type: ignore[arg-type]
        Path(run_dir) / "export" if out is None else out,
        mean=data.mean,
        std=data.std,
        crop_pct=crop,
        image_size=data.image_size,
        tokenizer_file=tokenizer if loaded.tokenizer is not None else None,
        about={"method": loaded.config.method, "step": loaded.step, "epoch": loaded.epoch},
    )
