"""Weight files: what matched is said, what would run code is refused."""

from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import save_file

from clustermim_fast.encoders import create_vit
from clustermim_fast.weights import load_weights, read_state


@pytest.fixture
def encoder():
    return create_vit("vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2)


def test_complete(encoder, tmp_path):
    state = {name: torch.randn_like(value) for name, value in encoder.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    verdict = load_weights(encoder, tmp_path / "w.safetensors")
    assert verdict.line() == f"{len(state)} tensors loaded; complete"
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("key", ["model", "state_dict", "teacher"])
@pytest.mark.parametrize("prefix", ["module.", "encoder.", "backbone.", "module.backbone."])
def test_usual_places_and_prefixes(encoder, tmp_path, key, prefix):
    state = {prefix + name: value for name, value in encoder.state_dict().items()}
    torch.save({key: state, "epoch": 3}, tmp_path / "w.pth")
    assert load_weights(encoder, tmp_path / "w.pth").missing == []


def test_missing_and_unexpected_are_named(encoder, tmp_path):
    state = dict(encoder.state_dict())
    del state["norm.weight"]
    state["decoder.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "w.pth")
    line = load_weights(encoder, tmp_path / "w.pth").line()
    assert "1 missing (norm.weight)" in line
    assert "1 unexpected (decoder.bias)" in line
    assert "complete" not in line


def test_refusals(encoder, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_state(tmp_path / "absent.pth")
    torch.save({"model": {"a": torch.zeros(2)}, "args": argparse.Namespace()}, tmp_path / "n.pth")
    with pytest.raises(ValueError, match="never unpickled"):
        read_state(tmp_path / "n.pth")
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "s.pth")
    with pytest.raises(ValueError, match=r"does not fit.*cls_token: file \[1, 1, 8\], model"):
        load_weights(encoder, tmp_path / "s.pth")
    torch.save({"other": torch.zeros(1)}, tmp_path / "o.pth")
    with pytest.raises(ValueError, match="no tensor name in common"):
        load_weights(encoder, tmp_path / "o.pth")
    torch.save(torch.zeros(3), tmp_path / "t.pth")
    with pytest.raises(ValueError, match="expected a dict"):
        read_state(tmp_path / "t.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.pth"):
        read_state(tmp_path / "junk.pth")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.safetensors"):
        read_state(tmp_path / "junk.safetensors")
