"""What a run tells TensorBoard, W&B and MLflow; the last two by a module that writes down calls."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from clustermim_fast import train
from clustermim_fast.train.trackers import Notes, open_trackers
from tests.train.runs import QUIET, rows


class Recorder(types.ModuleType):
    """A library whose calls are kept; `start_run` and `init` give what the real ones give."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            if name == "start_run":
                given = options.get("run_id") or "its-own-id"
                return types.SimpleNamespace(info=types.SimpleNamespace(run_id=given))
            return self if name == "init" else None

        return call

    def named(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def libraries(monkeypatch):
    made = {name: Recorder(name) for name in ("wandb", "mlflow")}
    for name, library in made.items():
        monkeypatch.setitem(sys.modules, name, library)
    return made


def picture_after(epoch, model):
    return Notes({"eval/knn": 40.0 + epoch}, {"watch": Image.new("RGB", (4, 4))})


def test_numbers_and_pictures_reach_both(tiny, libraries, tmp_path):
    config = tiny(log__wandb="birds", log__mlflow="birds-2")
    train.run(config, **QUIET, on_epoch=picture_after)
    written = rows(tmp_path / "run")
    wandb, mlflow = libraries["wandb"], libraries["mlflow"]

    (_, options), *_ = wandb.named("init")
    assert options["project"] == "birds"
    assert options["config"]["optim"]["batch_size"] == 8
    logged = [(rest["step"], values[0]) for values, rest in wandb.named("log")]
    losses = [(step, value["train/loss"]) for step, value in logged if "train/loss" in value]
    assert losses == [(row["step"], row["loss"]) for row in written]
    assert (10, {"eval/knn": 42.0}) in logged
    assert [step for step, value in logged if "watch" in value] == [5, 10]
    assert len(wandb.named("Image")) == 2
    assert len(wandb.named("finish")) == 1

    assert mlflow.named("set_experiment") == [(("birds-2",), {})]
    ((parameters,), _), *_ = mlflow.named("log_params")
    assert parameters["optim.batch_size"] == 8
    assert parameters["seed"] == 0
    losses = [(rest["step"], v[0]["train/loss"]) for v, rest in mlflow.named("log_metrics")
              if "train/loss" in v[0]]  # fmt: skip
    assert losses == [(row["step"], row["loss"]) for row in written]
    files = [rest["artifact_file"] for _, rest in mlflow.named("log_image")]
    assert files == ["watch_00000005.png", "watch_00000010.png"]
    assert len(mlflow.named("end_run")) == 1


def test_a_run_that_goes_on_is_the_same_one_there(tiny, libraries, tmp_path):
    def stop(epoch, model):
        raise KeyboardInterrupt

    options = {"log__wandb": "birds", "log__mlflow": "birds"}
    with pytest.raises(KeyboardInterrupt):
        train.run(tiny(**options), **QUIET, on_epoch=stop)
    train.run(tiny(**options), **QUIET)
    ids = [rest["id"] for _, rest in libraries["wandb"].named("init")]
    assert ids[0] == ids[1]
    assert [r["run_id"] for _, r in libraries["mlflow"].named("start_run")] == [None, "its-own-id"]
    assert len(libraries["mlflow"].named("log_params")) == 1
    train.run(tiny(**options, resume="restart"), **QUIET)  # another run
    assert libraries["wandb"].named("init")[-1][1]["id"] != ids[0]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_file_of_names_is_named(tiny, libraries, text):
    options = {"log__mlflow": "birds", "epochs": 1}
    train.run(tiny(**options), **QUIET)
    file = Path(tiny().out) / "trackers.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"trackers.json is not whole: .*delete it"):
        open_trackers(tiny(**options), 5)


def test_a_missing_library_names_its_command(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what makes `import wandb` fail
    with pytest.raises(ValueError, match=r"log.wandb: .*pip install wandb"):
        train.run(tiny(log__wandb="birds"), **QUIET)


def test_tensorboard_takes_pictures(tiny, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.run(tiny(log__tensorboard=True, epochs=1), **QUIET, on_epoch=picture_after)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["watch"]
    assert [event.value for event in events.Scalars("eval/knn")] == [41.0]
    assert len(events.Scalars("train/loss")) == 3


@pytest.mark.parametrize("stops_after", [1, 3])
def test_steps_that_are_repeated_are_there_once(tiny, tmp_path, stops_after):
    """Before the first checkpoint, and after one: it goes on from the epochs 0 and 2."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def stop(epoch, model):
        if epoch == stops_after:
            raise KeyboardInterrupt
        return picture_after(epoch, model)

    options = {"log__tensorboard": True, "epochs": 4, "log__checkpoint_every_epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        train.run(tiny(**options), **QUIET, on_epoch=stop)
    train.run(tiny(**options), **QUIET, on_epoch=picture_after)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert [event.step for event in events.Scalars("train/loss")] == steps
    assert [event.step for event in events.Scalars("eval/knn")] == [5, 10, 15, 20]
    assert [event.step for event in events.Images("watch")] == [5, 10, 15, 20]
