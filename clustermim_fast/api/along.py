"""What is looked at while a run goes on: its features every few epochs, and its report."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from clustermim_fast import evaluate
from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.data import ImageSet, open_images
from clustermim_fast.image_files import has_test
from clustermim_fast.report import LIVE, paint_epoch, write_report
from clustermim_fast.tokenizers import Tokenizer
from clustermim_fast.train import LoadedRun, TrainConfig
from clustermim_fast.train.distributed import choose_device
from clustermim_fast.train.log import read_rows
from clustermim_fast.train.trackers import Notes

from .looking import few_of
from .reporting import view_of
from .sources import class_indices

__all__ = ["Along"]

BANK, QUERIES = 4000, 1000  # images that vote, and that are classified
K = 20
SHARE = 0.1  # of the time, at most, goes into rewriting the report
REFRESH_S = 15
Say = Callable[[str], None]


class Along:
    """Called after each epoch, as `train.run` does; changes nothing that the run depends on.

    Args:
        config: resolved, of a run whose folder is config.out.
        tokenizer: the run's, None for pixel targets.
        images: the run's.
        say: takes a line for each evaluation.
    """

    def __init__(
        self, config: TrainConfig, tokenizer: Tokenizer | None, images: ImageSet, say: Say
    ) -> None:
        self._config, self._tokenizer, self._images, self._say = config, tokenizer, images, say
        self._folder = Path(config.out)
        self._splits: _Splits | None = None
        self._started, self._spent = time.perf_counter(), 0.0

    def __call__(self, epoch: int, model: nn.Module) -> Notes:
        """The numbers and the picture of an epoch, for the trackers."""
        log = self._config.log
        numbers: dict[str, float] = {}
        pictures: dict[str, Image.Image] = {}
        last = epoch == self._config.optim.epochs and not self._config.optim.steps
        if log.eval_every and (epoch % log.eval_every == 0 or last):
            numbers = self._evaluate(epoch, model)
        if log.watch and (epoch % log.watch == 0 or last) and (last or self._affordable()):
            before = time.perf_counter()
            pictures["watch"] = self._watch(epoch, model)
            self._spent += time.perf_counter() - before
        return Notes({f"eval/{name}": value for name, value in numbers.items()}, pictures)

    def close(self) -> None:
        """The page no longer reloads itself: the run has ended, whichever way."""
        page = self._folder / "report.html"
        if self._config.log.watch and page.is_file():
            text = page.read_text(encoding="utf-8")
            write_text_atomically(page, re.sub(LIVE, "", text))

    def _affordable(self) -> bool:
        return self._spent <= SHARE * (time.perf_counter() - self._started)

    def _evaluate(self, epoch: int, model: nn.Module) -> dict[str, float]:
        before = time.perf_counter()
        if self._splits is None:
            self._splits = _Splits(self._config, self._images)
            if self._splits.note:
                self._say(f"eval_every: {self._splits.about}, since {self._splits.note}")
        numbers, text = self._splits.evaluate(model, choose_device(self._config.efficiency.device))
        progress = read_rows(self._folder / "metrics.jsonl")
        if progress and "predicted_used" in progress[-1]:
            used = {key: progress[-1][key] for key in ("predicted_perplexity", "predicted_used")}
            numbers |= used
            text += f", {used['predicted_used']} tokens predicted at all"
        file = self._folder / "eval" / "epochs.jsonl"
        # A run that goes on repeats the epochs after its checkpoint.
        rows = [row for row in read_rows(file) if row.get("epoch", epoch) < epoch]
        row = {"epoch": epoch, **numbers, "images": self._splits.about}
        rows.append(row | ({"note": self._splits.note} if self._splits.note else {}))
        file.parent.mkdir(exist_ok=True)
        write_text_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
        self._say(f"after epoch {epoch}: {text} ({time.perf_counter() - before:.1f} s)")
        return numbers

    def _watch(self, epoch: int, model: nn.Module) -> Image.Image:
        still = copy.deepcopy(model).cpu().eval()
        tokenizer = None if self._tokenizer is None else copy.deepcopy(self._tokenizer).to("cpu")
        rows = read_rows(self._folder / "metrics.jsonl")
        step = int(rows[-1]["step"]) if rows else 0
        loaded = LoadedRun(self._config, still, tokenizer, step, epoch)
        view = view_of(self._folder, loaded, self._images, refresh_s=REFRESH_S)
        strip = paint_epoch(view, epoch)
        write_report(view)
        return strip


class _Splits:
    """Images to classify and images that vote; without labels some images to look at.

    about: how many of which they are; note: why held-out ones are not asked, where there are some.
    """

    def __init__(self, config: TrainConfig, images: ImageSet) -> None:
        assert config.data.mean is not None
        assert config.data.std is not None
        self._norm: dict[str, Any] = {"mean": config.data.mean, "std": config.data.std}
        self._batch = config.optim.batch_size
        self._labels: tuple[torch.Tensor, torch.Tensor] | None = None
        self.note = ""
        if images.labels is None or len(np.unique(images.labels)) < 2:
            self._asked = few_of(images, QUERIES)
            self.about = f"{len(self._asked):,} of the run's images"
            return
        held_out, self.note = _test_images(config, images)
        if held_out is None:  # every fifth of the run's own is asked, the others vote
            self._bank = few_of(images, BANK + QUERIES)
            fifth = torch.arange(len(self._bank)) % 5 == 0
            places = self._bank.positions
            own = torch.from_numpy(images.labels)
            self._asked = type(self._bank)(images, places[fifth])
            self._bank = type(self._bank)(images, places[~fifth])
            self._labels = own[places[~fifth]], own[places[fifth]]
            of = "others of the run's images (it sees all, without labels)"
        else:
            known, truth, _ = class_indices(images, held_out, config.data.path)
            self._bank, self._asked = few_of(images, BANK), few_of(held_out, QUERIES)
            self._labels = (
                torch.from_numpy(known)[self._bank.positions],
                torch.from_numpy(truth)[self._asked.positions],
            )
            of = "held-out images"
        self.about = f"{len(self._asked):,} {of} by {len(self._bank):,}"

    def evaluate(self, model: nn.Module, device: torch.device) -> tuple[dict[str, float], str]:
        """The numbers and the words for them."""
        encoder: Any = model.encoder
        options: dict[str, Any] = {**self._norm, "batch_size": self._batch, "device": device}
        features = evaluate.encoder_features(encoder, self._asked, **options)
        numbers: dict[str, float] = {}
        text = []
        if self._labels is not None:
            bank = evaluate.encoder_features(encoder, self._bank, **options)
            known, truth = self._labels
            found = evaluate.knn_predict(bank, known, features, k=min(K, len(bank)))
            correct = (found.weighted == truth).numpy()
            accuracy, low, high = evaluate.accuracy_interval(correct)
            numbers |= {"knn_percent": accuracy, "knn_low": low, "knn_high": high}
            text.append(f"kNN {accuracy:.1f} % ({low:.1f} to {high:.1f}) of {self.about}")
        finite = bool(features.isfinite().all())
        numbers["rankme"] = evaluate.rankme(features) if finite else float("nan")
        text.append(f"RankMe {numbers['rankme']:.1f} of {min(features.shape)}")
        return numbers, ", ".join(text)


def _test_images(config: TrainConfig, images: ImageSet) -> tuple[ImageSet | None, str]:
    """The held-out images with labels, read as they are needed, or why what is there is none."""
    data = config.data
    if not (data.path == "digits" or data.holdout or has_test(data.path)):
        return None, ""
    try:
        test = open_images(
            data.path,
            size=images.image_size,
            split="test",
            in_memory="no",
            holdout=data.holdout,
            eval_crop=data.eval_crop,
        )
        class_indices(images, test, data.path)  # refuses classes that nothing was learned of
    except (ValueError, OSError) as error:
        return None, str(error)
    return test, ""
