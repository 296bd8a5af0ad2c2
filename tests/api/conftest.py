"""Drawn images, and a run on them that these tests share."""

from __future__ import annotations

import shutil

import pytest

from tests.shapes import TINY, draw_folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("data") / "shapes", 16)


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """A finished run; tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("runs") / "run"
    from clustermim_fast import pretrain

    result = pretrain(data=shapes, out=out, say=lambda line: None, **TINY)
    assert result.run_dir == out
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")
