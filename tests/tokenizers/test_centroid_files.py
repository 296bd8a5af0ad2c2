"""Centroids made by other programs; needs torch and numpy only, so that the torch floor runs it."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from clustermim_fast.tokenizers import PixelTokenizer

ROWS = np.random.default_rng(0).random((7, 48)).astype(np.float32)
EXPECTED = PixelTokenizer.from_centroids(ROWS, 4).fingerprint()


def test_arrays_and_files(tmp_path):
    np.save(tmp_path / "c.npy", ROWS)
    torch.save(torch.from_numpy(ROWS), tmp_path / "tensor.pth")
    torch.save(ROWS, tmp_path / "array.pth")
    torch.save({"centers": torch.from_numpy(ROWS), "epoch": 3}, tmp_path / "dict.pth")
    for name in ("c.npy", "tensor.pth", "array.pth", "dict.pth"):
        assert PixelTokenizer.from_centroids(tmp_path / name, 4).fingerprint() == EXPECTED
    assert PixelTokenizer.from_centroids(ROWS.astype(np.float64), 4).fingerprint() == EXPECTED


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_pickled_by_the_other_numpy(tmp_path, module):
    """NumPy 1 and 2 write the same function under two addresses."""
    buffer = io.BytesIO()
    torch.save(ROWS, buffer)
    with zipfile.ZipFile(buffer) as saved, zipfile.ZipFile(tmp_path / "c.pth", "w") as changed:
        for name in saved.namelist():
            content = saved.read(name)
            for written in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
                content = content.replace(b"c" + written, b"c" + module.encode())
            changed.writestr(name, content)
    assert PixelTokenizer.from_centroids(tmp_path / "c.pth", 4).fingerprint() == EXPECTED


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_unpickled(tmp_path, capsys):
    allowed = set(torch.serialization.get_safe_globals())  # a list in the order of a set
    torch.save(Evil(), tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="other Python objects are never unpickled"):
        PixelTokenizer.from_centroids(tmp_path / "evil.pth", 4)
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        PixelTokenizer.from_centroids(tmp_path / "evil.npy", 4)
    assert capsys.readouterr().out == ""
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth cannot be read as tensors or arrays"):
        PixelTokenizer.from_centroids(tmp_path / "text.pth", 4)
    torch.save({"a": torch.zeros(2, 48), "b": torch.zeros(2, 48)}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match="holds 2 matrices"):
        PixelTokenizer.from_centroids(tmp_path / "two.pth", 4)
    with pytest.raises(ValueError, match=r"read from \.npy"):
        PixelTokenizer.from_centroids(tmp_path / "c.txt", 4)
