"""Pretraining methods by name; registering one puts it under the tests that run over all of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

_METHODS: dict[str, type[nn.Module]] = {}
Method = TypeVar("Method", bound=type[nn.Module])


def register_method(name: str) -> Callable[[Method], Method]:
    """Class decorator: make a method known under `name`.

    The class has attributes `objective`, the name of its loss in `clustermim_fast.losses`,
    `mask_kinds`, those of `clustermim_fast.masking` that it is defined for, and `encoder`, and
    takes (ModelConfig, image_size, num_clusters) when made. Its static method `defaults` takes the
    encoder's name and gives a value to each setting ("mask.kind", ...) that depends on the method,
    for configs that have None there.
    """

    def register(method: Method) -> Method:
        if name in _METHODS:
            raise ValueError(f"a method named {name!r} is registered already")
        _METHODS[name] = method
        return method

    return register


def list_methods() -> list[str]:
    """Names of the registered methods, sorted."""
    return sorted(_METHODS)


def method_class(name: str) -> Any:
    """The class registered under `name`; ValueError lists the names otherwise."""
    if name not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(list_methods())}; got {name!r}")
    return _METHODS[name]
