"""Settings as other codebases write them: --name value, and MAE's names."""

from __future__ import annotations

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from clustermim_fast import api, cli
from clustermim_fast.cli.flags import from_mae, join_flags


@pytest.fixture
def settings_of(monkeypatch):
    """What `clustermim ...` hands to `api.pretrain`: (recipe, settings)."""
    calls = []
    monkeypatch.setattr(api, "pretrain", lambda recipe, **options: calls.append((recipe, options)))

    def call(text):
        assert cli.main(["pretrain", *text.split()]) == 0
        return calls.pop()

    return call


def test_flags_and_values():
    given = "pretrain digits --epochs 5 --mask-ratio=0.6 --norm_pix_loss data=x --layer -1 --help"
    assert join_flags(given.split()) == [
        "pretrain", "digits", "--epochs=5", "--mask_ratio=0.6", "--norm_pix_loss=true", "data=x",
        "--layer=-1", "--help",
    ]  # fmt: skip
    # A flag's value may stand as a word of its own; a word that is none is what it was.
    given = "--norm_pix_loss true digits --pin_mem False --watch 5 --dry_run digits --eval_every 2"
    assert join_flags(given.split()) == [
        "--norm_pix_loss=true", "digits", "--pin_mem=False", "--watch=5", "--dry_run=true",
        "digits", "--eval_every=2",
    ]  # fmt: skip
    assert join_flags(["--eval_every"]) == ["--eval_every=true"]
    # Without a value, and not one that means yes: left to be refused.
    assert join_flags(["--epochs", "--lr=1"]) == ["--epochs", "--lr=1"]


# MAE's README has this command but for the launcher and the paths.
MAE = (
    "--batch_size 64 --model mae_vit_base_patch16 --norm_pix_loss --mask_ratio 0.75 --epochs 800 "
    "--warmup_epochs 40 --blr 1.5e-4 --weight_decay 0.05 --accum_iter 4 --data_path digits "
    "--output_dir runs/mae --log_dir runs/mae --input_size 32 --num_workers 2 --min_lr 0 "
    "--world_size 8 --dist_on_itp --pin_mem --local_rank 0 --start_epoch 0 --seed 1 --device cpu"
)


def test_maes_command(settings_of, capsys):
    recipe, settings = settings_of(MAE)
    assert recipe is None
    assert settings == {
        "batch_size": "64", "model": "vit_base_patch16_224", "method": "mae",
        "norm_pix_loss": "true", "mask_ratio": "0.75", "epochs": "800", "warmup_epochs": "40",
        "blr": "1.5e-4", "weight_decay": "0.05", "accum_iter": "4", "data": "digits",
        "out": "runs/mae", "log.tensorboard": "true", "img_size": "32", "workers": "2",
        "optim.min_lr": "0", "seed": "1", "device": "cpu",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "batch_size is that of one forward pass of all processes; MAE's is that of" in printed
    assert "input_size is img_size here" in printed
    assert "world_size is left out: torchrun says it" in printed


def test_flags_of_its_launcher_are_answered(settings_of, capsys):
    given = "--job_dir runs/mae --nodes 2 --ngpus 8 --timeout 60 --partition x --use_volta32"
    _, settings = settings_of(f"data=digits {given}")
    assert settings == {"data": "digits", "out": "runs/mae"}
    printed = capsys.readouterr().out
    assert "job_dir is out here" in printed
    assert "ngpus is left out: torchrun" in printed


def test_every_translated_name_is_a_setting():
    from clustermim_fast.train import list_keys

    given = [part.split() for part in MAE.removeprefix("--").split(" --")]
    settings, _ = from_mae([(part[0], part[1] if part[1:] else "true", True) for part in given])
    assert {text.partition("=")[0] for text in settings} <= {*list_keys()}


def test_a_method_that_was_given_stays(settings_of):
    _, settings = settings_of("data=digits method=clustermim --model mae_vit_large_patch16")
    assert settings["method"] == "clustermim"
    assert settings["model"] == "vit_large_patch16_224"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--resume x/checkpoint-3.pth", "a run goes on from its own folder"),
        ("--start_epoch 3", "a run goes on from its own folder"),
        ("data=digits --data_path photos", "data is given twice: 'digits' and 'photos'"),
    ],
)
def test_what_means_nothing_here(flags, message, capsys):
    assert cli.main(["pretrain", *flags.split()]) == 1
    assert message in capsys.readouterr().err


def test_own_values_of_resume(settings_of):
    assert settings_of("data=digits --resume must")[1]["resume"] == "must"
    assert "resume" not in settings_of("data=digits --resume=")[1]


@pytest.mark.parametrize(
    "command", ["evaluate linear nowhere", "evaluate segment nowhere", "tokenizer rank"]
)
@pytest.mark.parametrize("seed", ["-1", str(2**70)])
def test_a_seed_that_no_generator_takes(command, seed, capsys):
    given = f"{command} data=digits seed={seed}"
    assert cli.main(given.split()) == 1
    assert f"seed: cannot read '{seed}' (expected 0 to 2**32 - 1)" in capsys.readouterr().err


def test_dashes_of_other_commands(capsys):
    assert cli.main(["evaluate", "knn", "nowhere", "--kk", "3"]) == 1
    assert "unknown setting 'kk'" in capsys.readouterr().err
