"""Recipes by name: functions that return a TrainConfig."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from clustermim_fast.train import TrainConfig, to_dict

Recipe = Callable[[], TrainConfig]
_RECIPES: dict[str, Recipe] = {}


def register_recipe(recipe: Recipe) -> Recipe:
    """Decorator: make a recipe known under its function's name."""
    _RECIPES[recipe.__name__] = recipe
    return recipe


def list_recipes() -> list[str]:
    """Names of the recipes, sorted."""
    return sorted(_RECIPES)


def describe_recipe(name: str) -> str:
    """The first sentence of a recipe's docstring."""
    text = " ".join((_RECIPES[name].__doc__ or "").replace("`", "").split())
    return text.partition(". ")[0].partition("; ")[0].removesuffix(".")


def get_recipe(name: str) -> TrainConfig:
    """The config of a recipe; ValueError lists the names otherwise."""
    if name not in _RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(list_recipes())}; got {name!r}")
    return _RECIPES[name]()


def recipe_text(name: str) -> str:
    """A recipe's whole docstring."""
    return inspect.getdoc(_RECIPES[name]) or ""


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings, dotted, in which a config differs from the defaults."""
    there, here = to_dict(TrainConfig()), to_dict(config)
    changed: dict[str, Any] = {}
    for group, value in here.items():
        if not isinstance(value, dict):
            value, before, prefix = {group: value}, {group: there[group]}, ""
        else:
            before, prefix = there[group], f"{group}."
        changed |= {f"{prefix}{k}": v for k, v in value.items() if v != before[k]}
    return {key: _as_typed(value) for key, value in changed.items()}


def _as_typed(value: Any) -> str:
    """A value as a command would have it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
