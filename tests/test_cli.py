"""The console script: one command from images to report, and errors that fit on a line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jinja2", reason="the extra [train] is not installed")

from clustermim_fast import __version__, cli, recipes, train
from tests.shapes import TINY, draw_folder

SETTINGS = [f"{key}={value}" for key, value in TINY.items()]


def clustermim(*arguments, cwd, **environment):
    """A real process, as a user's shell starts it."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, "-m", "clustermim_fast", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def test_end_to_end(tmp_path, capsys, monkeypatch):
    """Only data= and sizes that make it quick: pretrain, evaluate, report, export, tokenizer."""
    draw_folder(tmp_path / "shapes", 12)
    done = clustermim("pretrain", "data=shapes", "out=run", *SETTINGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "chosen:" in printed
    assert "run/report.html" in printed
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()

    monkeypatch.chdir(tmp_path)

    def succeed(*arguments):
        assert cli.main(arguments) == 0
        return capsys.readouterr().out

    printed = succeed("evaluate", "knn", "run", "k=5")
    for row in ("pretrained", "random initialisation", "raw pixels"):
        assert row in printed
    assert (tmp_path / "run" / "eval" / "knn.json").is_file()
    assert "k nearest neighbours" in (tmp_path / "run" / "report.html").read_text()

    printed = succeed(
        "evaluate", "attentive", "run", "pool=abmilp,cls", "epochs=1", "warmup_epochs=0", "seeds=2",
        "learning_rates=0.1,1", "probe_batch_size=8", "content=all", "norm=yes",
    )  # fmt: skip
    assert "random initialisation, [cls] token" in printed
    assert "mean of 2 seeds" in printed
    assert (tmp_path / "run" / "eval" / "attentive.json").is_file()

    printed = succeed(
        "evaluate", "finetune", "run", "epochs=1", "warmup_epochs=0", "train_batch_size=8",
        "crop_scale=0.5,1", "mixup=0", "flip=no", "ema_decay=0.5", "shots=50%",
    )  # fmt: skip
    assert "fine-tuning (mean of patch tokens); 1 epochs, AdamW, batch 8" in printed
    assert (tmp_path / "run" / "eval" / "finetune_50pct.json").is_file()

    printed = succeed("export", "run", "out=vit")
    assert "local-dir:vit" in printed
    printed = succeed("tokenizer", "show", "run/tokenizer.safetensors")
    assert "K = 8" in printed
    assert (tmp_path / "run" / "tokenizer.png").is_file()


def test_the_same_command_finds_the_run_complete(tmp_path, capsys, monkeypatch):
    draw_folder(tmp_path / "shapes", 8)
    monkeypatch.chdir(tmp_path)
    command = ["pretrain", "data=shapes", "report=no", "export=no", *SETTINGS, "epochs=1"]
    command.remove("epochs=2")
    assert cli.main(command) == 0
    assert "epoch" in capsys.readouterr().out
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "is complete" in printed
    assert "fitted on these images" in printed
    assert not (tmp_path / "runs" / "clustermim_shapes" / "report.html").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pretrain data=nowhere", "not an existing folder"),
        ("pretrain data={empty}", "no images below empty"),
        ("pretrain {empty}", "give a folder that holds some"),
        ("tokenizer fit data={empty}", "no images below empty"),
        ("pretrain", "give data=DIR"),
        ("pretrain digits_dmo", "digits_demo"),
        ("pretrain data=digits maskratio=0.5", "did you mean mask_ratio"),
        ("pretrain data=digits epochs=ten", "optim.epochs: expected int, got 'ten'"),
        ("pretrain data=digits epochs", "expected key=value, got 'epochs'"),
        ("pretrain data=digits seed=1 seed=2", "seed is given twice"),
        ("evaluate knn nowhere", "no such run folder"),
        ("evaluate knn {empty}", "neither a run folder"),
        ("evaluate knn {empty} kk=3", "unknown setting 'kk' of evaluate knn; did you mean k?"),
        ("evaluate knn {empty} k=few", "k: cannot read 'few'"),
        ("evaluate linear {empty} k=3", "unknown setting 'k' of evaluate linear"),
        ("evaluate attentive {empty} learning_rates=0.1,x", "learning_rates: cannot read '0.1,x'"),
        ("evaluate finetune {empty} layer_dcay=1", "did you mean layer_decay"),
        ("evaluate attentive {empty} epoch=3", "did you mean epochs"),
        ("report {empty}", "no checkpoint 'last'"),
        ("report {empty} chekpoint=x", "did you mean checkpoint?"),
        ("export nowhere", "no checkpoint 'last'"),
        ("tokenizer show nowhere.safetensors", "nowhere.safetensors"),
        ("tokenizer fit data=digits out=t.pt", "ending in .safetensors"),
    ],
)
def test_errors_are_one_line(command, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    (tmp_path / "empty").mkdir()
    assert cli.main(command.format(empty="empty").split()) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("clustermim: error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("CLUSTERMIM_DEBUG", "1")
    with pytest.raises(ValueError, match="no checkpoint"):
        cli.main(["report", str(tmp_path)])


def test_errors_of_a_process(tmp_path):
    done = clustermim("pretrain", "datta=x", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "unknown setting 'datta'" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_may_have_dashes(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pretrain", "data=nowhere", "--mask_ratio=0.6", "--epochs=3"]) == 1
    assert "not an existing folder" in capsys.readouterr().err
    for command in (["pretrain", "data=nowhere", "--epochs"], ["info", "--all=yes"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        assert stop.value.code == 2
        assert "settings are key=value" in capsys.readouterr().err


def test_evaluate_without_the_training_images(tmp_path, capsys, monkeypatch):
    """A run from another machine is evaluated on what is here; its report stays as it was."""
    draw_folder(tmp_path / "shapes", 8)
    monkeypatch.chdir(tmp_path)
    settings = [text for text in SETTINGS if not text.startswith("epochs")]
    assert cli.main(["pretrain", "data=shapes", "out=run", "epochs=1", "export=no", *settings]) == 0
    (tmp_path / "shapes").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert cli.main(["evaluate", "knn", "run", "data=elsewhere", "k=3"]) == 0
    printed = capsys.readouterr()
    assert "raw pixels" in printed.out
    assert "report.html is as it was" in printed.err


@pytest.mark.parametrize(
    "command",
    ["", "pretrain", "tokenizer", "tokenizer fit", "tokenizer show",
     "tokenizer tcas", "tokenizer rank", "evaluate", "evaluate knn",
     "evaluate linear", "evaluate attentive", "evaluate finetune", "evaluate attention",
     "evaluate unlabeled", "evaluate segment",
     "compare", "report", "export", "bench", "info", "recipes"],
)  # fmt: skip
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: clustermim" in printed
    assert len(printed.splitlines()) > 4


def test_lists_recipes_and_settings(capsys):
    assert cli.main(["pretrain", "--list"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split(maxsplit=1) for line in printed.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == recipes.list_recipes()
    assert all(about[0].isalpha() and len(about) < 120 for _, about in lines)
    assert "optim.blr" in printed


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_recipe_explained(name, capsys):
    """The settings it prints, put on the defaults, give the recipe back."""
    assert cli.main(["recipes", name]) == 0
    printed = capsys.readouterr().out
    told = dict(line.strip().split("=", 1) for line in printed.splitlines() if _is_setting(line))
    assert train.config_from_overrides(train.TrainConfig(), told) == recipes.get_recipe(name)
    assert f"clustermim pretrain {name}" in printed


def _is_setting(line):
    return line.startswith("  ") and "=" in line and "clustermim" not in line.split("=")[0]


def test_recipes_are_listed(capsys):
    assert cli.main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in recipes.list_recipes())
    assert cli.main(["recipes", "digits_dmo"]) == 1
    assert "recipe must be one of" in capsys.readouterr().err


def test_version_bench_and_info(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert __version__ in capsys.readouterr().out
    assert cli.main(["bench"]) == 0
    assert "benchmarks" in capsys.readouterr().out
    assert cli.main(["info"]) == 0
    assert __version__ in capsys.readouterr().out


def test_info_needs_torch_and_numpy_only(tmp_path):
    """No scikit-learn, timm, matplotlib, ...: `info` is what tells that they are missing."""
    program = (
        "import sys\n"
        "from clustermim_fast.cli import main\n"
        "main(['info'])\n"
        "heavy = {'timm', 'torchvision', 'sklearn', 'matplotlib', 'jinja2', 'safetensors', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip().endswith("[]")


def test_a_missing_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("CLUSTERMIM_DEBUG", raising=False)

    def missing(parsed):
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr(cli, "run_report", missing)
    assert cli.main(["report", str(tmp_path)]) == 1
    assert 'pip install "clustermim_fast[train]"' in capsys.readouterr().err
