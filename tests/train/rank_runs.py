"""Runs that one, two and three processes share, for ``test_distributed.py``.

``python -m tests.train.rank_runs FOLDER CONFIG.json``: all phases, one after another; with a third
word, "compiled", those of compiled models. The ranks of
each are forks of a process that has imported everything and run nothing, so that eight seconds of
imports are paid once. A phase is a number of ranks and the cases that they run; each rank writes
how a case ended to FOLDER/<world>_<rank>.json.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import torch
import torch.distributed.fsdp
from torch import nn

from clustermim_fast import api, train
from clustermim_fast.tokenizers import PixelTokenizer
from clustermim_fast.train import precision, step
from tests.train.test_methods import RESNET, convolutional

CUT_AT = 4  # updates
STEPS = 7
PATIENCE_S = 400  # a hang fails; a machine with much else to do does not

CASES = {
    "clustermim": {},
    "mae": {"method": "mae"},
    "ccvit": {"method": "ccvit", "model__encoder": "beit_base_patch16_224"},
    "a2mim": {"method": "a2mim", "mask__unit": 6},
    "shared": {"accum_iter": 2, "optim__clip_grad": 0.5, "optim__ema_decay": 0.9, "workers": 1},
    "nan": {"accum_iter": 2, "data__repeats": 2},
    "nan_ccvit": {"method": "ccvit", "model__encoder": "beit_base_patch16_224", "accum_iter": 2},
}
# Compared by what they leave, not by their curves alone.
OTHERS = {
    "float16": {"method": "mae", "efficiency__amp": "fp16", "optim__clip_grad": 1.0},
    "looks": {"log__eval_every": 1, "log__watch": 1},
    "features": {"tokenizer__kind": "feature", "log__keep": 0},
    "resnet": convolutional(RESNET),
}
CUT = {"log__checkpoint_every_steps": 2, "log__every_steps": 3, "optim__ema_decay": 0.9}
FSDP = hasattr(torch.distributed.fsdp, "fully_shard")
SHARDED = ["ccvit", "shared"]
SHARDED_RUNS = [f"fsdp_{case}" for case in [*SHARDED, "float16", "looks", "resnet", "broken"]]
SHARDED_RUNS = [*SHARDED_RUNS, "1<f", "f>1"] if FSDP else []
ENDS = {"killed": [1, -signal.SIGKILL], "refused": [1, 1]}  # of runs that end as one rank does
# Ranks, and cases; "1>3" stops at CUT_AT, and "1<3" goes on from there; f: two ranks with fsdp.
PHASES = [
    (1, [*CASES, *OTHERS, "whole", "1>f", "1>3"]),
    (2, [*CASES, *OTHERS, *SHARDED_RUNS, "broken", "2>1"]),
    (3, [*CASES, "1<3"]),
    (1, ["f<1", "2<1"] if FSDP else ["2<1"]),
    *((2, [case]) for case in ENDS),
]
# Alone, since importing torch's compiler takes each rank as long as all else.
COMPILED = {"compiled": {"method": "mae", "accum_iter": 2, "efficiency__compile": "default"}}
COMPILED_PHASES = [(1, ["compiled"]), (2, ["compiled", *(["fsdp_compiled"] if FSDP else [])])]


def main() -> None:
    folder, base = Path(sys.argv[1]), train.load_config(sys.argv[2])
    for world, names in COMPILED_PHASES if "compiled" in sys.argv else PHASES:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=rank_main, args=(rank, world, port, names, folder, base))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(PATIENCE_S)
        hanging = [process for process in ranks if process.is_alive()]
        for process in hanging:
            process.kill()
        if hanging:
            sys.exit(f"phase {world} {names}: a rank hangs")
        codes = [process.exitcode for process in ranks]
        if codes != ENDS.get(names[-1], [0] * world):
            sys.exit(f"phase {world} {names}: ranks ended with {codes}")


def rank_main(rank, world, port, names, folder, base) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ends = {}
    try:
        with train.process_group("cpu"):
            for name in names:
                ends[name] = one(name, rank, world, folder, base)
    except Exception as error:
        ends[name] = {"end": str(error)}
        raise
    finally:
        (folder / f"{world}_{rank}_{names[-1]}.json").write_text(json.dumps(ends))


def trace(self, *, mode, dynamic):
    """torch.compile without its compiler, which takes minutes."""
    self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager", dynamic=dynamic)


def one(name, rank, world, folder, base):
    """Run a case; what it said, how it ended, and which samples this rank saw."""
    halves = name[:1] + name[2:] if name[1:2] in "<>" else ""
    out = folder / (f"cut_{halves}" if halves else f"{name}_{world}")
    case = name.removeprefix("fsdp_")
    settings = {**CASES, **OTHERS, **COMPILED}.get(case, CUT)
    options = {"out": out, "log__every_steps": 1, "steps": STEPS, **settings}
    if world > 1 and ("f" in halves or name.startswith("fsdp_")):
        options["efficiency__sharding"] = "fsdp"
    if world == 1:
        options.pop("efficiency__compile", None)
    if case == "features":
        options["tokenizer__model"] = folder / "looks_1"
    config = train.config_from_overrides(
        base, {key.replace("__", "."): value for key, value in options.items()}
    )
    said, samples, passes = [], [], itertools.count(1)
    real, tokens = step.forward_step, PixelTokenizer.__call__
    stops = ">" in name and rank == world - 1  # a signal that one rank alone gets

    def forward_step(model, tokenizer, images, *rest, **more):
        samples.append(len(images))
        number = next(passes)
        if stops and number == CUT_AT:
            os.kill(os.getpid(), signal.SIGUSR1)
        if name == "killed" and rank == 1 and number == CUT_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "refused" and rank == 1 and number == CUT_AT:
            raise ValueError("one rank alone has no memory left")
        result = real(model, tokenizer, images, *rest, **more)
        if case == "float16" and rank == world - 1 and number == CUT_AT:
            loss = result.loss  # the same number, whose gradient is beyond float32 when scaled
            return result._replace(loss=loss + 1e38 * (loss - loss.detach()))
        if case == "broken" and rank == 1 and number >= CUT_AT:
            return result._replace(loss=result.loss * math.nan)
        return result

    def without_the_first(self, *arguments, **more):
        ids = tokens(self, *arguments, **more)
        return torch.where(ids == 0, -1, ids)

    step.forward_step = forward_step
    if name.startswith("nan"):
        PixelTokenizer.__call__ = without_the_first
    nn.Module.compile = trace
    precision.GradScaler = functools.partial(torch.amp.GradScaler, init_scale=1024.0)
    metrics = {}
    try:
        if case == "looks":
            result = api.pretrain(config, say=said.append, report=False, export=world == 1)
        else:
            result = train.run(config, say=said.append)
        end, metrics = result.step, result.metrics
    except (train.Interrupted, train.NonFiniteError) as stop:
        end = str(stop)
    finally:
        step.forward_step, PixelTokenizer.__call__ = real, tokens
    return {"said": said, "end": end, "samples": samples, "metrics": metrics}


if __name__ == "__main__":
    main()
