"""Recipes by name: functions that return a TrainConfig."""

from __future__ import annotations

from collections.abc import Callable

from clustermim_fast.train import TrainConfig

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
