"""The console script ``clustermim``: subcommands with key=value settings, one-line errors.

Everything heavy is imported by the command that needs it: ``clustermim info`` runs with numpy and
torch alone.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clustermim_fast import __version__
from clustermim_fast.image_files import require_images

__all__ = ["main"]

PRETRAIN_HELP = """\
Pretrain a masked image model. With data=DIR alone, sizes are chosen by looking at the images, a
tokenizer is fitted and cached, and the run folder gets metrics, checkpoints, report.html and
export/ (which timm.create_model("local-dir:RUN/export", pretrained=True) opens).
The same command goes on from the last checkpoint where there is one.

  clustermim pretrain data=photos/
  clustermim pretrain digits_demo out=runs/digits
  clustermim pretrain cifar10_vit_tiny data=cifar10/ method=mae epochs=20 optim.blr=1e-3
  clustermim pretrain data=photos/ method=ccvit backbone=beit_base_patch16_224
"""
FIT_HELP = """\
Fit the k-means tokenizer that `pretrain` with the same settings would fit, and save it.

  clustermim tokenizer fit data=photos/ num_clusters=100 patch_size=16 out=tok.safetensors
  clustermim pretrain data=photos/ tokenizer=tok.safetensors

With kind=feature the features of a frozen network are clustered instead of pixels. model= is a
timm name (vit_small_patch16_224.dino where none is given), a run folder or a folder in timm's
format; weights=FILE a checkpoint for it (.safetensors, or .pth of tensors in the names of timm,
DINO, DeiT, MAE, BEiT).

  clustermim tokenizer fit data=photos/ kind=feature num_clusters=100
  clustermim tokenizer fit data=photos/ kind=feature model=runs/clustermim_photos layer=8

Its settings: metric=euclidean|cosine|dot algorithm=minibatch|lloyd|clustermim max_iter=
max_images=, per_patch_norm=yes (pixels), layer=-1 apply_norm=yes precision=float32|bfloat16
keep_features=no (features). Images are resized for a network whose patches are not of patch_size.
"""
SHOW_HELP = """\
Print a tokenizer's settings and draw its codebook: centroids of pixels, and for features the patch
nearest to each centroid. With data=DIR also how often the tokens occur there, and token maps.

  clustermim tokenizer show tok.safetensors data=photos/ out=tok.png
"""
CHOICE_HELP = {
    "tcas": """\
Score tokenizers against class labels in one pass over the images (TCAS, lower is better): its
variants, normalised mutual information, purity, perplexity and dead tokens, as a ranked table,
OUT.json and OUT.png. Fit some tokenizers, look here, and pretrain with the best.

  clustermim tokenizer tcas data=photos/ tokenizers=pixel50.safetensors,pixel200.safetensors
  clustermim tokenizer tcas data=photos/ tokenizers=codebooks/ images=0 variant=A

Settings: data= tokenizers=FILE,FILE or a folder; out=tcas variant=default|A|B|C images=10000 (0:
all) """,
    "rank": """\
Rank tokenizers without labels: how many patches keep their token under noise, blur, jitter and a
shift by one pixel (beyond chance), how clear the nearest centroid is, how many tokens are used.

  clustermim tokenizer rank data=photos/ tokenizers=codebooks/

Settings: data= tokenizers=FILE,FILE or a folder; out=rank images=1000 (0: all) seed=0 """,
}
CHOICE_TEXT = """\
img_size=HxW split=train|test|all batch_size= device=auto
"""
BENCH_HELP = """\
Exact assignment (or one Lloyd iteration) beside torch, faiss, scikit-learn and its Intel build:
time and wrong ids, on made-up rows of your shape or on your own .npy. Missing peers are named with
the way to install them.

  clustermim bench nearest_centroid n=20000 d=768 k=1000 dtype=float32
  clustermim bench nearest_centroid file=x.npy centroids=c.npy peers=all json=result.json
  clustermim bench kmeans file=x.npy k=512

Settings: n= d= k= file= centroids= peers=all|none|KEY,KEY rounds= threads= seed= json=; and dtype=
of nearest_centroid.
"""
EVALUATE_HELP = {
    "knn": "k nearest neighbours on frozen features (cosine, k=20, temperature=0.07)",
    "linear": "logistic regression on frozen features, its penalty chosen on training images",
}
EVALUATE_TEXT = """\
Random initialisation and raw pixels are always evaluated beside the pretrained encoder. Labels
come from class sub-folders: data=DIR with DIR/train/<class>/ and DIR/test/<class>/, or DIR/<class>/
(a fifth of each class is then the test set). Without data=, the run's own images are used.
RUN is a run folder, a folder written by `clustermim export`, or a timm model name.

Settings: data= checkpoint=last pool=mean|cls batch_size=256 device=auto cache=yes"""


def to_bool(text: str) -> bool:
    """yes/no, true/false, on/off, 1/0."""
    if text.lower() not in ("yes", "true", "on", "1", "no", "false", "off", "0"):
        raise ValueError("expected yes or no")
    return text.lower() in ("yes", "true", "on", "1")


def to_size(text: str) -> tuple[int, int]:
    """Pixels: one side of a square, or height x width."""
    sides = [int(part) for part in text.lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError("expected 224 or 224x224")
    return sides[0], sides[-1]


CHOICE_KEYS: dict[str, Callable[[str], Any]] = {
    "data": str,
    "tokenizers": str,
    "out": str,
    "images": int,
    "img_size": to_size,
    "split": str,
    "batch_size": int,
    "device": str,
}
# What each setting of `evaluate` is read as.
EVALUATE_KEYS: dict[str, Callable[[str], Any]] = {
    "data": str,
    "checkpoint": str,
    "pool": str,
    "batch_size": int,
    "device": str,
    "cache": to_bool,
}
KIND_KEYS: dict[str, dict[str, Callable[[str], Any]]] = {
    "knn": {"k": int, "temperature": float},
    "linear": {
        "penalties": lambda text: tuple(float(part) for part in text.split(",")),
        "max_iter": int,
        "seed": int,
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; an error is one line on stderr."""
    parser = build_parser()
    parsed, more = parser.parse_known_args(arguments)
    debugging = os.environ.get("CLUSTERMIM_DEBUG", "") not in ("", "0")
    if more and (not hasattr(parsed, "settings") or any("=" not in text for text in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)} (settings are key=value)")
    if more:  # --mask_ratio=0.6, as recipes elsewhere write it
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

    evaluate = commands.add_parser("evaluate", help="measure frozen features with labels")
    kinds = evaluate.add_subparsers(title="kinds", metavar="KIND", required=True)
    for kind, title in EVALUATE_HELP.items():
        text = f"{title}.\n\n{EVALUATE_TEXT} {' '.join(f'{key}=' for key in KIND_KEYS[kind])}\n"
        command = add(kinds, kind, run_evaluate, title, text)
        command.set_defaults(kind=kind)
        command.add_argument("run", metavar="RUN", help="run folder, exported encoder or timm name")
        command.add_argument("settings", nargs="*", metavar="key=value")

    text = "Write RUN/report.html and RUN/figures/ from what the run folder holds."
    report = add(commands, "report", run_report, "write RUN/report.html again", text)
    report.add_argument("run", metavar="RUN")
    report.add_argument("settings", nargs="*", metavar="checkpoint=last")

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


def read_settings(texts: Sequence[str]) -> dict[str, str]:
    """["a=1", "b.c=x"] -> {"a": "1", "b.c": "x"}; ValueError for anything else, or a key twice."""
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.removeprefix("--")
        if not equals or not key:
            raise ValueError(f"expected key=value, got {text!r}")
        if key in settings:
            raise ValueError(f"{key} is given twice: {settings[key]!r} and {value!r}")
        settings[key] = value
    return settings


def convert(
    settings: dict[str, str], known: dict[str, Callable[[str], Any]], command: str
) -> dict[str, Any]:
    """Settings of a small command by the types it knows; an unknown key names near misses."""
    values = {}
    for key, text in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"unknown setting {key!r} of {command}; {hint}")
        try:
            values[key] = known[key](text)
        except ValueError as error:
            raise ValueError(f"{key}: cannot read {text!r} ({error})") from error
    return values


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
    settings = read_settings(texts)
    look_at_data(settings, recipe)
    from clustermim_fast import api, recipes, train

    if parsed.list:
        print("recipes:  " + ", ".join(recipes.list_recipes()))
        print("settings: " + ", ".join(train.list_keys()))
        return 0
    options: dict[str, Any] = dict(settings)
    for key in {"report", "export"} & settings.keys():
        options[key] = to_bool(settings[key])
    api.pretrain(recipe, **options)
    return 0


def run_tokenizer_fit(parsed: argparse.Namespace) -> int:
    """clustermim tokenizer fit."""
    settings: dict[str, Any] = dict(read_settings(parsed.settings))
    look_at_data(settings)
    from clustermim_fast import api

    out = Path(settings.pop("out", "tokenizer.safetensors"))
    if out.suffix != ".safetensors":
        raise ValueError(f"out: expected a file name ending in .safetensors, got {str(out)!r}")
    api.fit_tokenizer(out, **settings)
    api.show_tokenizer(out)
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
        "tcas": {"variant": str},
        "rank": {"seed": int},
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
    """clustermim evaluate knn | linear."""
    from clustermim_fast import api

    known = EVALUATE_KEYS | KIND_KEYS[parsed.kind]
    settings = convert(read_settings(parsed.settings), known, f"evaluate {parsed.kind}")
    api.evaluate_run(parsed.kind, parsed.run, progress=sys.stderr.isatty(), **settings)
    if (Path(parsed.run) / "report.html").is_file():
        try:
            print(f"report: {api.report_run(parsed.run)}")
        except ValueError as error:  # the images it was trained on need not be on this machine
            print(f"report.html is as it was: {error}", file=sys.stderr)
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
