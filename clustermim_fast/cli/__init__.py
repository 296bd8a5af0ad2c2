"""The console script ``clustermim``: subcommands with key=value settings, one-line errors.

Everything heavy is imported by the command that needs it: ``clustermim info`` runs with numpy and
torch alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clustermim_fast import __version__
from clustermim_fast.cli import caching, explaining, looking
from clustermim_fast.cli.flags import from_mae, join_flags
from clustermim_fast.cli.settings import (
    CHOICE_KEYS,
    EVALUATE_KEYS,
    KIND_KEYS,
    TCAS_KEYS,
    convert,
    read_settings,
    subject_of,
    to_bool,
    to_seed,
    to_size,
)
from clustermim_fast.cli.texts import (
    BENCH_HELP,
    CHOICE_HELP,
    CHOICE_TEXT,
    EVALUATE_HELP,
    EVALUATE_NOTES,
    EVALUATE_TEXT,
    FIT_HELP,
    PRETRAIN_HELP,
    SHOW_HELP,
)
from clustermim_fast.image_files import require_images

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; an error is one line on stderr."""
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else arguments
    parsed, more = parser.parse_known_args(join_flags(given))
    debugging = os.environ.get("CLUSTERMIM_DEBUG", "") not in ("", "0")
    if more and (not hasattr(parsed, "settings") or any("=" not in text for text in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)} (settings are key=value)")
    if more:
        parsed.settings = [*parsed.settings, *more]
    try:
        return int(parsed.command(parsed))
    except ModuleNotFoundError as error:
        if debugging or str(error.name).startswith("clustermim_fast"):
            raise
        return fail(f'{error}; this command needs pip install "clustermim_fast[train]"')
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    # What the package raises for bad input, a full disk or a lost file, and torch for memory.
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        if debugging:
            raise
        return fail(f"{error or type(error).__name__}")


def fail(message: str, status: int = 1) -> int:
    """Print one line on stderr, however many the message had."""
    if "Original Traceback" in message:  # of a loader process: its last line is the error
        message = message.strip().splitlines()[-1]
    line = " ".join(message.split())
    hint = "" if status == 130 else " (CLUSTERMIM_DEBUG=1 shows the traceback)"
    print(f"clustermim: error: {line}{hint}", file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="clustermim",
        description="Masked image modelling with k-means tokens: pretrain, look, evaluate, export.",
        epilog="Settings are key=value. `clustermim COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"clustermim_fast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    title = "pretrain a model on a folder of images"
    pretrain = add(commands, "pretrain", run_pretrain, title, PRETRAIN_HELP)
    pretrain.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | key=value",
        help="at most one recipe, config.json or folder; then settings",
    )
    pretrain.add_argument("--list", action="store_true", help="list recipes and settings, and stop")

    explaining.add_recipes(commands, add)
    caching.add_cache(commands, add)

    tokenizer = commands.add_parser("tokenizer", help="fit, show or compare tokenizers")
    actions = tokenizer.add_subparsers(title="actions", metavar="ACTION", required=True)
    title = "cluster the patches of images"
    fit = add(actions, "fit", run_tokenizer_fit, title, FIT_HELP)
    fit.add_argument("settings", nargs="*", metavar="key=value")
    title = "print its settings, draw its codebook"
    show = add(actions, "show", run_tokenizer_show, title, SHOW_HELP)
    show.add_argument("path", help="a tokenizer.safetensors")
    show.add_argument("settings", nargs="*", metavar="out=PNG data=DIR img_size=HxW")
    for kind, title in (("tcas", "score many by class labels"), ("rank", "rank many without")):
        command = add(actions, kind, run_tokenizer_choice, title, CHOICE_HELP[kind] + CHOICE_TEXT)
        command.set_defaults(kind=kind)
        command.add_argument("settings", nargs="*", metavar="key=value")

    evaluate = commands.add_parser("evaluate", help="measure an encoder, with labels and without")
    kinds = evaluate.add_subparsers(title="kinds", metavar="KIND", required=True)
    for kind, title in EVALUATE_HELP.items():
        keys = " ".join(f"{key}=" for key in KIND_KEYS[kind])
        text = f"{title}.\n\n{EVALUATE_NOTES.get(kind, '')}{EVALUATE_TEXT} {keys}\n"
        command = add(kinds, kind, run_evaluate, title, text)
        command.set_defaults(kind=kind)
        command.add_argument("run", metavar="RUN", help="run folder, exported encoder or timm name")
        command.add_argument("settings", nargs="*", metavar="key=value")

    looking.add_kinds(kinds, add)

    text = "Write RUN/report.html and RUN/figures/ from what the run folder holds."
    report = add(commands, "report", run_report, "write RUN/report.html again", text)
    report.add_argument("run", metavar="RUN")
    report.add_argument("settings", nargs="*", metavar="checkpoint=last")

    looking.add_compare(commands, add)

    text = 'Then: timm.create_model("local-dir:DIR", pretrained=True).'
    export = add(commands, "export", run_export, "write the encoder in timm's format", text)
    export.add_argument("run", metavar="RUN")
    export.add_argument("settings", nargs="*", metavar="out=DIR checkpoint=last")

    title = "time the ops on your shapes or data, beside what else is installed"
    bench = add(commands, "bench", run_bench, title, BENCH_HELP)
    bench.add_argument("kind", nargs="?", metavar="KIND", help="nearest_centroid or kmeans")
    bench.add_argument("settings", nargs="*", metavar="key=value")

    add(commands, "info", run_info, "version, build, back-ends, and why others are missing")
    return parser


def add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], title: str, text: str = ""
) -> argparse.ArgumentParser:
    """Add one command with its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=title,
        description=text or f"{title[0].upper()}{title[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def look_at_data(settings: dict[str, str], recipe: str | None = None) -> None:
    """Refuse a folder without images before the seconds that importing torch and timm takes."""
    path = settings.get("data", settings.get("data.path"))
    if path is None and recipe and os.sep in recipe and Path(recipe).expanduser().is_dir():
        path = recipe  # without a separator it may be a recipe's name
    if path:
        require_images(path)


def run_pretrain(parsed: argparse.Namespace) -> int:
    """clustermim pretrain."""
    texts = list(parsed.settings)
    recipe = texts.pop(0) if texts and "=" not in texts[0] else None
    dashed = {text.partition("=")[0][2:] for text in texts if text.startswith("--")}
    given = read_settings(texts)
    translated, notes = from_mae([(key, text, key in dashed) for key, text in given.items()])
    settings = read_settings(translated)
    look_at_data(settings, recipe)
    from clustermim_fast import api, train

    if parsed.list:
        explaining.print_recipes()
        print("settings: " + ", ".join(train.list_keys()))
        return 0
    for note in notes:
        print(note)
    options: dict[str, Any] = dict(settings)
    for key in {"report", "export", "dry_run"} & settings.keys():
        options[key] = to_bool(settings[key])
    api.pretrain(recipe, **options)
    return 0


def run_tokenizer_fit(parsed: argparse.Namespace) -> int:
    """clustermim tokenizer fit."""
    settings: dict[str, Any] = dict(read_settings(parsed.settings))
    look_at_data(settings)
    from clustermim_fast import api

    counts = settings.pop("num_clusters", "").split(",")
    out = settings.pop("out", "tokenizer{}.safetensors" if counts[1:] else "tokenizer.safetensors")
    if not out.endswith(".safetensors") or (counts[1:] and "{}" not in out):
        several = "with {} in it, where K goes, and " if counts[1:] else ""
        raise ValueError(f"out: expected a file name {several}ending in .safetensors, got {out!r}")
    for count in counts:
        file = Path(out.replace("{}", count))
        api.fit_tokenizer(file, **settings, **({"num_clusters": count} if count else {}))
        api.show_tokenizer(file)
    return 0


def run_tokenizer_show(parsed: argparse.Namespace) -> int:
    """clustermim tokenizer show."""
    known: dict[str, Callable[[str], Any]] = {"out": str, "data": str, "img_size": to_size}
    settings = convert(read_settings(parsed.settings), known, "tokenizer show")
    look_at_data(settings)
    from clustermim_fast import api

    api.show_tokenizer(parsed.path, **settings)
    return 0


def run_tokenizer_choice(parsed: argparse.Namespace) -> int:
    """clustermim tokenizer tcas | rank."""
    texts = read_settings(parsed.settings)
    own: dict[str, dict[str, Callable[[str], Any]]] = {
        "tcas": TCAS_KEYS,
        "rank": {"seed": to_seed},
    }
    settings = convert(texts, CHOICE_KEYS | own[parsed.kind], f"tokenizer {parsed.kind}")
    for key in ("data", "tokenizers"):
        if not settings.get(key):
            raise ValueError(f"{key}: expected a value, got none; give {key}=")
    look_at_data(texts)
    from clustermim_fast import api

    function = api.tcas_of_tokenizers if parsed.kind == "tcas" else api.rank_tokenizers
    function(**settings)
    return 0


def run_evaluate(parsed: argparse.Namespace) -> int:
    """clustermim evaluate knn | linear | attentive | finetune."""
    from clustermim_fast import api

    known = EVALUATE_KEYS | KIND_KEYS[parsed.kind]
    run, texts = subject_of(parsed.run, parsed.settings)
    settings = convert(read_settings(texts), known, f"evaluate {parsed.kind}")
    api.evaluate_run(parsed.kind, run, progress=sys.stderr.isatty(), **settings)
    looking.report_again(run)
    return 0


def run_report(parsed: argparse.Namespace) -> int:
    """clustermim report."""
    from clustermim_fast import api

    settings = convert(read_settings(parsed.settings), {"checkpoint": str}, "report")
    print(api.report_run(parsed.run, **settings))
    return 0


def run_export(parsed: argparse.Namespace) -> int:
    """clustermim export."""
    from clustermim_fast import api

    known: dict[str, Callable[[str], Any]] = {"out": str, "checkpoint": str}
    folder = api.export_run(parsed.run, **convert(read_settings(parsed.settings), known, "export"))
    print(f'{folder}: timm.create_model("local-dir:{folder}", pretrained=True)')
    return 0


def run_bench(parsed: argparse.Namespace) -> int:
    """clustermim bench nearest_centroid | kmeans; without a kind, where the whole suite is."""
    if parsed.kind is None:
        print(BENCH_HELP + "\nThe whole suite, with tables: benchmarks/ of the source repository.")
        return 0
    from clustermim_fast import bench

    if parsed.kind not in bench.KEYS:
        raise ValueError(f"bench: expected {' or '.join(bench.KEYS)}, got {parsed.kind!r}")
    command = f"bench {parsed.kind}"
    settings = convert(read_settings(parsed.settings), bench.KEYS[parsed.kind], command)
    bench.RUNNERS[parsed.kind](**settings)
    return 0


def run_info(_parsed: argparse.Namespace) -> int:
    """clustermim info."""
    from clustermim_fast import info

    return info.main()


if __name__ == "__main__":
    sys.exit(main())
