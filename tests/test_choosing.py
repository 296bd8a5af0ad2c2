"""`clustermim tokenizer tcas` and `rank`: many tokenizers on one folder."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

import numpy as np
import torch
from PIL import Image

from clustermim_fast import api, cli
from clustermim_fast.data import open_images
from clustermim_fast.report import Scored, ranking_table
from clustermim_fast.tokenizers import PixelTokenizer, load_tokenizer, tcas, token_class_counts
from tests.shapes import draw_folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("data") / "shapes", 20)


@pytest.fixture(scope="module")
def codebooks(shapes, tmp_path_factory):
    """K = 4, 12 of pixels and 12 of normalised patches."""
    folder = tmp_path_factory.mktemp("codebooks")
    images = open_images(shapes, size=16).images(np.arange(60))
    for k, norm in ((4, False), (12, False), (12, True)):
        name = f"{'norm' if norm else 'pixel'}{k}.safetensors"
        PixelTokenizer.fit(images, k, 4, per_patch_norm=norm, max_iter=3).save(folder / name)
    return folder


def test_tcas(shapes, codebooks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["tokenizer", "tcas", f"data={shapes}", f"tokenizers={codebooks}", "img_size=16"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "60 of 60 images" in printed.out
    assert "lower is better" in printed.out
    result = json.loads((tmp_path / "tcas.json").read_text())
    rows = result["rows"]
    assert [row["tcas"]["default"] for row in rows] == sorted(r["tcas"]["default"] for r in rows)
    assert {row["name"] for row in rows} == {"pixel4", "pixel12", "norm12"}
    images = open_images(shapes, size=16)
    views, labels = images.images(np.arange(60)), torch.from_numpy(images.labels)
    for row in rows:
        tokenizer = load_tokenizer(codebooks / f"{row['name']}.safetensors")
        counts = token_class_counts(tokenizer, [(views, labels)])
        for variant, value in row["tcas"].items():
            assert value == pytest.approx(tcas(counts, variant))
        assert row["tokenizer"] == tokenizer.fingerprint()
    assert result["images"] == 60
    assert result["fingerprint"]
    assert "reconstructed" in result["formulas"]["A"]
    with Image.open(tmp_path / "tcas.png") as picture:
        assert min(picture.size) > 300
    order = [line.split()[1] for line in printed.out.splitlines() if line[:1].isdigit()][1:]
    assert order == [row["name"] for row in rows]
    # Another order for another variant, from the same table.
    assert cli.main([*command, "variant=B", "out=other/b.json"]) == 0
    assert "variant B" in capsys.readouterr().out
    again = json.loads((tmp_path / "other" / "b.json").read_text())["rows"]
    assert [r["tcas"]["B"] for r in again] == sorted(r["tcas"]["B"] for r in again)


def test_switches_of_tcas(shapes, codebooks, tmp_path, capsys):
    out = tmp_path / "t"
    command = ["tokenizer", "tcas", f"data={shapes}", f"tokenizers={codebooks}", "img_size=16"]
    switched = [*command, f"out={out}", "rows=l1", "pairs=all", "eval_crop=0.75"]
    assert cli.main(switched) == 0
    assert "not re-read in print), rows=l1 pairs=all; lower" in capsys.readouterr().out
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["switches"] == {"rows": "l1", "pairs": "all"}
    assert result["eval_crop"] == 0.75
    images = open_images(shapes, size=16, eval_crop=0.75)
    views, labels = images.images(np.arange(60)), torch.from_numpy(images.labels)
    for row in result["rows"]:
        tokenizer = load_tokenizer(codebooks / f"{row['name']}.safetensors")
        counts = token_class_counts(tokenizer, [(views, labels)])
        assert row["tcas"]["default"] == pytest.approx(tcas(counts, rows="l1", pairs="all"))
        assert row["tcas"]["A"] == pytest.approx(tcas(counts, "A"))
    out.with_suffix(".json").unlink()
    for wrong, message in (("rows=l3", "rows must be one of"), ("eval_crop=2", "in (0, 1]")):
        assert cli.main([*command, f"out={out}", wrong]) == 1
        assert message in capsys.readouterr().err
    assert not out.with_suffix(".json").exists()


def test_a_warning_where_k_nears_the_patches(shapes, codebooks, tmp_path):
    said = []
    files = [codebooks / "pixel4.safetensors", codebooks / "pixel12.safetensors"]
    options = {"out": tmp_path / "t", "img_size": (16, 16), "say": said.append}
    api.tcas_of_tokenizers(shapes, files, images=9, **options)  # 3 a class, of 16 patches
    warned = [line for line in said if "nears the number of patches" in line]
    assert len(warned) == 1  # 48 patches are 4 for each of 12 tokens, and 12 for each of 4
    assert "pixel12: K = 12" in warned[0]
    said.clear()
    api.tcas_of_tokenizers(shapes, files, **options)
    assert not any("nears the number" in line for line in said)


def test_rank(shapes, codebooks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["tokenizer", "rank", f"data={shapes}", f"tokenizers={codebooks}", "img_size=16x16"]
    assert cli.main([*command, "images=30"]) == 0
    printed = capsys.readouterr().out
    assert "30 of 60 images" in printed
    rows = json.loads((tmp_path / "rank.json").read_text())["rows"]
    assert [row["score"] for row in rows] == sorted((r["score"] for r in rows), reverse=True)
    assert set(rows[0]["kappa"]) == {"noise", "blur", "jitter", "shift"}
    assert (tmp_path / "rank.png").is_file()


def test_labels_are_needed_for_tcas_only(codebooks, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(flat / f"{number}.png")
    options = {"img_size": (16, 16), "out": tmp_path / "out", "say": lambda line: None}
    with pytest.raises(ValueError, match=r"needs labels.*clustermim tokenizer rank"):
        api.tcas_of_tokenizers(flat, [codebooks], **options)
    assert len(api.rank_tokenizers(flat, [codebooks], **options)) == 3


def test_errors(shapes, codebooks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    (tmp_path / "empty").mkdir()
    good = {"data": shapes, "tokenizers": codebooks}
    for changes, message in [
        ({"data": ""}, "data: expected a value, got none"),
        ({"tokenizers": ""}, "tokenizers: expected a value"),
        ({"tokenizers": "empty"}, "no .safetensors file in 'empty'"),
        ({"tokenizers": "no.safetensors"}, "no such file: no.safetensors"),
        ({"variant": "D"}, "variant must be one of default, A, B, C"),
        ({"img_size": "30"}, "30x30 is not a multiple of the patch_size 4 of"),
        ({"img_size": "a"}, "img_size: cannot read 'a'"),
        ({"imags": "3"}, "did you mean images"),
    ]:
        settings = [f"{key}={value}" for key, value in {**good, **changes}.items()]
        assert cli.main(["tokenizer", "tcas", *settings]) == 1
        assert message in capsys.readouterr().err


def test_several_are_fitted_at_once(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = ["tokenizer", "fit", f"data={shapes}", "img_size=16", "patch_size=4", "max_iter=2"]
    assert cli.main([*fit, "num_clusters=3,5", "out=books/p{}.safetensors"]) == 0
    assert [load_tokenizer(f"books/p{k}.safetensors").num_clusters for k in (3, 5)] == [3, 5]
    assert cli.main(["tokenizer", "rank", f"data={shapes}", "tokenizers=books", "img_size=16"]) == 0
    capsys.readouterr()
    for out in ("p.safetensors", "p{}.pt"):
        assert cli.main([*fit, "num_clusters=3,5", f"out={out}"]) == 1
        assert "expected a file name with {} in it" in capsys.readouterr().err
    assert cli.main([*fit, "num_clusters=3,x"]) == 1
    assert "expected int, got 'x'" in capsys.readouterr().err


def test_equal_names_get_their_folder(shapes, codebooks, tmp_path):
    twin = tmp_path / "more"
    twin.mkdir()
    load_tokenizer(codebooks / "pixel4.safetensors").save(twin / "pixel4.safetensors")
    rows = api.rank_tokenizers(
        shapes, [codebooks, twin], out=tmp_path / "r", img_size=(16, 16), say=lambda line: None
    )
    names = {row["name"] for row in rows}
    assert {f"{codebooks.name}/pixel4", "more/pixel4", "pixel12"} <= names


def test_table_lines_up():
    rows = [
        Scored("a", "pixel", 5, 0.25, {"nmi": 1 / 3}),
        Scored("bbb", "x", 500, 1e-5, {"nmi": 1}),
    ]
    assert ranking_table(rows, "TCAS").splitlines() == [
        "   tokenizer  kind     K   TCAS     nmi",
        "1  a          pixel    5   0.25  0.3333",
        "2  bbb        x      500  1e-05       1",
    ]
