"""Recipes: functions that return a TrainConfig."""

from clustermim_fast.recipes.a2mim import (
    a2mim_resnet50_imagenet,
    a2mim_vit_base_imagenet,
    cifar10_a2mim_resnet10,
    cifar10_a2mim_vit_tiny,
)
from clustermim_fast.recipes.auto import auto_recipe
from clustermim_fast.recipes.ccvit import ccvit_vit_base_imagenet, cifar10_ccvit_tiny
from clustermim_fast.recipes.imagenet100 import (
    clustermim_features_imagenet100,
    clustermim_features_k1000_imagenet100,
    clustermim_vit_small_imagenet100,
)
from clustermim_fast.recipes.mae import cifar10_mae_vit_tiny, mae_vit_base_imagenet
from clustermim_fast.recipes.registry import (
    changed_settings,
    describe_recipe,
    get_recipe,
    list_recipes,
    recipe_text,
    register_recipe,
)
from clustermim_fast.recipes.small import (
    cifar10_features_vit_tiny,
    cifar10_vit_tiny,
    digits_demo,
)

__all__ = [
    "a2mim_resnet50_imagenet",
    "a2mim_vit_base_imagenet",
    "auto_recipe",
    "ccvit_vit_base_imagenet",
    "changed_settings",
    "cifar10_a2mim_resnet10",
    "cifar10_a2mim_vit_tiny",
    "cifar10_ccvit_tiny",
    "cifar10_features_vit_tiny",
    "cifar10_mae_vit_tiny",
    "cifar10_vit_tiny",
    "clustermim_features_imagenet100",
    "clustermim_features_k1000_imagenet100",
    "clustermim_vit_small_imagenet100",
    "describe_recipe",
    "digits_demo",
    "get_recipe",
    "list_recipes",
    "mae_vit_base_imagenet",
    "recipe_text",
    "register_recipe",
]
