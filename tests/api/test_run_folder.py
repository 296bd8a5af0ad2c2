"""What a finished run leaves: its files, the export and the report."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast import api
from clustermim_fast.train import load_run
from tests.shapes import TINY


def test_run_folder_is_complete(finished):
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoints/last.pt",
        "tokenizer.safetensors",
        "report.html",
        "figures/loss.png",
        "export/model.safetensors",
        "export/config.json",
        "export/tokenizer/tokenizer.safetensors",
    ):
        assert (finished / name).is_file(), name


def test_export_has_the_encoders_features(finished):
    loaded = load_run(finished)
    again = timm.create_model(f"local-dir:{finished / 'export'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(
        loaded.model.encoder.forward_features(images), again.forward_features(images)
    )
    assert tuple(again.pretrained_cfg["mean"]) == pytest.approx(loaded.config.data.mean)


def test_the_report_of_an_unfinished_run(run):
    """A killed process may leave half a line; the files it could not read are counted in a list."""
    (run / "skipped_files.txt").write_text("a.jpg\tOSError: truncated\nb.jpg\tnot an image\n")
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 99, "ep')
    text = api.report_run(run).read_text()
    assert "2, in skipped_files.txt" in text


def test_restart_forgets_the_old_evaluations(run, shapes):
    api.evaluate_run("knn", run, k=5, cache=False, say=lambda _: None)
    options = {"data": shapes, "out": run, "export": False, "say": lambda _: None}
    api.pretrain(**options, **TINY)  # complete: nothing to do, nothing to forget
    assert "Not evaluated yet" not in (run / "report.html").read_text()
    shutil.copy(run / "figures" / "loss.png", run / "figures" / "attention.png")  # of a look
    assert 'alt="attention"' in api.report_run(run).read_text()
    api.pretrain(**options, **TINY, resume="restart")
    assert "Not evaluated yet" in (run / "report.html").read_text()
    assert 'alt="attention"' not in (run / "report.html").read_text()
