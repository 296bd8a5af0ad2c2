"""The command `recipes`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

__all__ = ["add_recipes", "print_recipes"]

HELP = """\
List the recipes with a line each, or explain one: where it is from, every setting that differs from
the defaults, and its command. `clustermim pretrain data=DIR` needs none: it looks at the images.

  clustermim recipes
  clustermim recipes mae_vit_base_imagenet
"""


def add_recipes(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """The command."""
    command = add(commands, "recipes", run_recipes, "list the recipes, or explain one", HELP)
    command.add_argument("name", nargs="?", metavar="NAME", help="a recipe")


def run_recipes(parsed: argparse.Namespace) -> int:
    """clustermim recipes."""
    from clustermim_fast import recipes

    if parsed.name is None:
        print_recipes()
        return 0
    config = recipes.get_recipe(parsed.name)
    print(f"{parsed.name}\n\n{recipes.recipe_text(parsed.name)}\n")
    print("settings that differ from the defaults:")
    for key, value in recipes.changed_settings(config).items():
        print(f"  {key}={value}")
    data = "" if config.data.path else " data=DIR"
    print(f"\n  clustermim pretrain {parsed.name}{data} dry_run=true    (five steps, to see)")
    print(f"  clustermim pretrain {parsed.name}{data}")
    return 0


def print_recipes() -> None:
    """A line each."""
    from clustermim_fast import recipes

    print("recipes:")
    for name in recipes.list_recipes():
        print(f"  {name:<38} {recipes.describe_recipe(name)}")
    print("`clustermim recipes NAME` explains one; `clustermim pretrain data=DIR` needs none")
