"""What importing a part of the package may load, seen in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "timm",
    "torchvision",
    "triton",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "PIL",
)


def loaded_by(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` after ``statement`` in a new interpreter."""
    code = (
        f"import json, sys\n{statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import clustermim_fast",
        "import clustermim_fast._core",
        "import clustermim_fast.info",
        "import clustermim_fast.counter_rng",
        "from clustermim_fast import cli; assert cli.main(['pretrain', 'data=.no_such_folder'])",
        "import clustermim_fast; dir(clustermim_fast); clustermim_fast.__version__",
    ],
)
def test_loads_no_torch(statement: str) -> None:
    assert loaded_by(statement).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "statement",
    [
        "from clustermim_fast import ops",
        "import clustermim_fast; clustermim_fast.ops.nearest_centroid",
        "from clustermim_fast import nn",
    ],
)
def test_loads_torch_and_nothing_else_heavy(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "torch" in loaded
    assert loaded.isdisjoint(set(HEAVY) - {"torch"})


def test_unknown_name_is_an_attribute_error() -> None:
    import clustermim_fast

    with pytest.raises(AttributeError, match="no attribute 'kmeans'"):
        clustermim_fast.kmeans


def test_every_public_name_resolves() -> None:
    import clustermim_fast

    missing = [name for name in clustermim_fast.__all__ if not hasattr(clustermim_fast, name)]
    assert not missing
