"""Settings given as key=value, and config.json: text to `TrainConfig` and back."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.train.config import ALIASES, TrainConfig, to_dict


def config_from_overrides(recipe: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """`recipe` with fields replaced: {"optim.lr": "3e-4", "epochs": 10, "data": "digits"}.

    Values given as text are read by the field's type ("none" for None, "32x48" or "32,48" for
    pairs); others must have that type.

    Raises:
        ValueError: an unknown key, naming near misses, or a value that does not fit, naming the
        type.
    """
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        path = ALIASES.get(key, key)
        group, _, name = path.rpartition(".")
        owner = getattr(recipe, group, None) if group else recipe
        if not dataclasses.is_dataclass(owner) or name not in _types(owner):
            raise ValueError(_unknown(key))
        if dataclasses.is_dataclass(getattr(owner, name)):
            raise ValueError(
                f"{key} is a group of settings: {_names_of(getattr(owner, name), key)}"
            )
        parsed = _parse(path, value, _types(owner)[name])
        (nested.setdefault(group, {}) if group else nested)[name] = parsed
    changes = {
        name: dataclasses.replace(getattr(recipe, name), **value)
        if isinstance(value, dict) and dataclasses.is_dataclass(getattr(recipe, name))
        else value
        for name, value in nested.items()
    }
    return dataclasses.replace(recipe, **changes)


def list_keys() -> list[str]:
    """Every key an override may have, short ones first."""
    default = TrainConfig()
    keys = list(ALIASES)
    for entry in dataclasses.fields(default):
        value = getattr(default, entry.name)
        if dataclasses.is_dataclass(value):
            keys += [f"{entry.name}.{sub.name}" for sub in dataclasses.fields(value)]
        else:
            keys.append(entry.name)
    return keys


def _unknown(key: str) -> str:
    keys = list_keys()
    last = key.rpartition(".")[2]
    near = difflib.get_close_matches(key, keys, n=4, cutoff=0.6)
    near += [
        k for k in keys if difflib.SequenceMatcher(None, k.rpartition(".")[2], last).ratio() > 0.7
    ]
    names = ", ".join(dict.fromkeys(near)) or ", ".join(keys)
    return f"unknown setting {key!r}; {'did you mean' if near else 'the settings are'} {names}"


def _names_of(group: Any, key: str) -> str:
    return ", ".join(f"{key}.{entry.name}" for entry in dataclasses.fields(group))


def _types(owner: Any) -> dict[str, Any]:
    return get_type_hints(type(owner))


def _parse(key: str, value: Any, kind: Any) -> Any:
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        if type(None) in options:
            return None
        raise ValueError(f"{key}: expected {_name(kind)}, got {value!r}")
    target = next(option for option in options if option is not type(None))
    try:
        return _parse_as(value, target, key)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key}: expected {_name(kind)}, got {value!r}") from error


_IN_EPOCHS = ("log.watch", "log.eval_every")  # yes: every epoch
_YES_OR_NO = {"true": 1, "yes": 1, "on": 1, "false": 0, "no": 0, "off": 0}
_COMPILE = {word: "default" if number else "off" for word, number in _YES_OR_NO.items()}


def _parse_as(value: Any, target: Any, key: str = "") -> Any:
    if get_origin(target) is tuple:
        parts = get_args(target)
        if isinstance(value, str):
            value = value.strip("()[] ").replace("x", ",").split(",")
        elif not isinstance(value, (list, tuple)):
            value = [value]
        if len(value) == 1 and key_allows_one(parts):
            value = list(value) * len(parts)
        if len(value) != len(parts):
            raise ValueError
        return tuple(_parse_as(item, part) for item, part in zip(value, parts, strict=True))
    if target is bool:
        text = str(value).lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ValueError
        return text in ("true", "1", "yes", "on")
    if target is int:
        if key in _IN_EPOCHS and str(value).lower() in _YES_OR_NO:
            value = _YES_OR_NO[str(value).lower()]
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return int(value)
    if target is float:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if key == "efficiency.compile":
        value = _COMPILE.get(str(value).lower(), value)
    if not isinstance(value, str):
        raise TypeError
    return value


def key_allows_one(parts: tuple[Any, ...]) -> bool:
    """One integer stands for a square: image_size=32."""
    return all(part is int for part in parts)


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`, also after a trip through JSON (lists for tuples).

    Raises:
        ValueError: a setting this version does not know, or a value of the wrong type.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return config_from_overrides(TrainConfig(), flat)


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write config.json."""
    write_text_atomically(path, json.dumps(to_dict(config), indent=2) + "\n")


def load_config(path: str | Path) -> TrainConfig:
    """Read config.json; ValueError where it is missing, not JSON or of another version."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"config: no such file: {file} (is this a run folder?)")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"config: {file} is not JSON: {error}") from error
    return from_dict(values)
