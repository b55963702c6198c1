"""Configs as JSON: written beside every run, compared, hashed, and read back unchanged.

A config is a frozen dataclass of numbers, strings, booleans, None, tuples, string-keyed dicts and
more such dataclasses. A dataclass becomes an object that names its type under "class", a Python
keyword and therefore never the name of a field.
"""

import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Mapping
from typing import Any

from train.errors import ConfigError

# A file may name only our own classes: reading JSON must never import anything else.
PACKAGES = ("configs", "data", "evaluation", "kernels", "models", "search", "synthesis", "train")


def encode(config: Any, path: str = "config") -> Any:
    """Turns a config into plain JSON values.

    Args:
      path: where we are in the config, for the error.

    Raises:
      ConfigError: a value that would not come back the same, with its place.
    """
    match config:
        case None | bool() | int() | str():
            return config
        case float() if math.isfinite(config):
            return config
        case tuple():
            return [encode(item, f"{path}.{index}") for index, item in enumerate(config)]
        case Mapping() if all(isinstance(name, str) for name in config):
            return {name: encode(item, f"{path}.{name}") for name, item in config.items()}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        cls = type(config)
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
        return {"class": f"{cls.__module__}:{cls.__qualname__}"} | {
            name: encode(value, f"{path}.{name}") for name, value in fields.items()
        }
    raise ConfigError(
        "a config holds finite numbers, strings, booleans, None, tuples, string-keyed dicts and "
        f"dataclasses; got {config!r} of type {type(config).__name__} at {path}. "
        "Use one of those (a tuple for a list, a str for a path)."
    )


def decode(payload: Any) -> Any:
    """Turns the JSON values of `encode` back into the config, equal to the first.

    Raises:
      ConfigError: a class or field this version of the code does not have.
    """
    match payload:
        case list():
            return tuple(decode(item) for item in payload)
        case {"class": str(name)}:
            fields = {field: value for field, value in payload.items() if field != "class"}
            cls = _find_class(name)
            try:
                return cls(**{field: decode(value) for field, value in fields.items()})
            except TypeError as error:
                raise ConfigError(
                    f"a saved config must fit the code that reads it; {name} says: {error}. "
                    "Use the commit in environment.json beside it."
                ) from error
        case dict():
            return {name: decode(value) for name, value in payload.items()}
    return payload


def sha256(config: Any) -> str:
    """Hex digest of a config: the same for equal configs, on every machine and Python."""
    return sha256_of_json(encode(config))


def sha256_of_json(payload: Any) -> str:
    """Hex digest of JSON values; 1 and 1.0 are equal in Python and are equal here."""
    text = json.dumps(_integral_floats_as_ints(payload), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The places where two encoded configs differ, as "optimizers.policy.b1: 0.9 -> 0.95"."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = ({str(i): item for i, item in enumerate(items)} for items in (old, new))
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class") == new.get("class"):
        return [
            line
            for name in {**old, **new}
            for line in differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"  # paths differ at their end


def _find_class(name: str) -> type:
    module, _, qualname = name.partition(":")
    if module.partition(".")[0] in PACKAGES:
        try:
            found = getattr(importlib.import_module(module), qualname, None)
        except ModuleNotFoundError:
            found = None
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    raise ConfigError(
        f"a saved config names dataclasses of {', '.join(PACKAGES)}; got {name!r}. "
        "Use the commit in environment.json beside it."
    )


def _integral_floats_as_ints(payload: Any) -> Any:
    match payload:
        case float() if payload.is_integer():
            return int(payload)
        case list():
            return [_integral_floats_as_ints(item) for item in payload]
        case dict():
            return {name: _integral_floats_as_ints(item) for name, item in payload.items()}
    return payload
