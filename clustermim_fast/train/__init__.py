"""Pretraining: config, one step, the loop, checkpoints that resume bit for bit."""

from clustermim_fast.train.config import (
    EfficiencyConfig,
    LogConfig,
    TokenizerConfig,
    TrainConfig,
    to_dict,
)
from clustermim_fast.train.distributed import process_group
from clustermim_fast.train.load import LoadedRun, load_run, random_model
from clustermim_fast.train.loop import RunResult, run
from clustermim_fast.train.overrides import (
    config_from_overrides,
    from_dict,
    list_keys,
    load_config,
    save_config,
)
from clustermim_fast.train.prepare import (
    needs_tokenizer,
    open_run_images,
    prepare_tokenizer,
    require_matching_tokenizer,
    resolve,
)
from clustermim_fast.train.stop import Interrupted, NonFiniteError

__all__ = [
    "EfficiencyConfig",
    "Interrupted",
    "LoadedRun",
    "LogConfig",
    "NonFiniteError",
    "RunResult",
    "TokenizerConfig",
    "TrainConfig",
    "config_from_overrides",
    "from_dict",
    "list_keys",
    "load_config",
    "load_run",
    "needs_tokenizer",
    "open_run_images",
    "prepare_tokenizer",
    "process_group",
    "random_model",
    "require_matching_tokenizer",
    "resolve",
    "run",
    "save_config",
    "to_dict",
]
