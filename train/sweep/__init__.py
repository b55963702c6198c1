"""Sweeps: many training runs that differ in some fields.

A sweep is a file `configs/sweeps/NAME.py` with a function `get_sweep()`; `python -m train.sweep
NAME` runs it.
"""

import dataclasses
import functools
import itertools
import math
import random as random_module
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import beartype.door

from train import config_json
from train.errors import ConfigError

Overrides = Mapping[str, Any]
Draw = Callable[[random_module.Random], Any]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Members of a sweep: one config, with other values in some fields."""

    config: str
    """Name of the config that all begin with."""
    members: tuple[Overrides, ...]
    """Of every member, dotted field -> value (see `grid`, `zipped`, `random`)."""
    metric: str = "validation_text_loss_nats_per_token"
    """Of metrics.jsonl: what the table and the plot compare, at the end of a run."""
    is_larger_better: bool = False
    """Whether the table begins with the largest value."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """The config in the folder of a sweep: members may be added, the rest is fixed."""

    config: Any
    metric: str


def grid(fields: Mapping[str, Sequence[Any]]) -> tuple[Overrides, ...]:
    """Every combination of the values; the last field changes fastest."""
    return tuple(
        dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())
    )


def zipped(fields: Mapping[str, Sequence[Any]]) -> tuple[Overrides, ...]:
    """The first values of all fields, then the second ones, and so on."""
    counts = {name: len(values) for name, values in fields.items()}
    if len(set(counts.values())) > 1:
        raise ConfigError(f"zipped fields have equally many values; got {counts}. Use grid.")
    return tuple(dict(zip(fields, values, strict=True)) for values in zip(*fields.values()))


def random(
    fields: Mapping[str, Sequence[Any] | Draw], *, count: int, seed: int = 0
) -> tuple[Overrides, ...]:
    """So many draws, each field by itself. A field is a sequence to choose from, or a function of a
    `random.Random`, such as `log_uniform(1e-4, 1e-2)`. More draws leave the first ones as they are.
    """
    generators = {name: random_module.Random(f"{seed} {name}") for name in fields}
    return tuple(
        {
            name: one(generators[name]) if callable(one) else generators[name].choice(list(one))
            for name, one in fields.items()
        }
        for _ in range(count)
    )


def uniform(low: float, high: float) -> Draw:
    """For `random`: any number between the two, with 4 digits."""
    return lambda generator: float(f"{generator.uniform(low, high):.4g}")


def log_uniform(low: float, high: float) -> Draw:
    """For `random`: any number between the two, as likely in every decade, with 4 digits."""
    return lambda generator: float(
        f"{math.exp(generator.uniform(math.log(low), math.log(high))):.4g}"
    )


def product(*parts: Sequence[Overrides]) -> tuple[Overrides, ...]:
    """Every combination of members of the parts, such as of a grid and of seeds."""
    members: list[Overrides] = [{}]
    for part in parts:
        members = [{**one, **other} for one in members for other in part]
    return tuple(members)


@dataclass(frozen=True)
class Member:
    """One run of a sweep. overrides: what it has of its own; config: all of it."""

    overrides: Overrides
    config: Any

    @functools.cached_property
    def name(self) -> str:
        """The same for equal configs, however they came about."""
        return config_json.sha256(self.config)[:12]


def members_of(sweep: Sweep, config: Any) -> list[Member]:
    """All different members; `config` is the one that they begin with.

    Raises:
      ConfigError: no such field, or a value that it cannot have.
    """
    found: dict[str, Member] = {}
    for overrides in sweep.members:
        changed = config
        for field, value in overrides.items():
            changed = set_field(changed, field, value)
        member = Member(overrides, changed)
        found.setdefault(member.name, member)
    return list(found.values())


def set_field(config: Any, field: str, value: Any) -> Any:
    """The config with another value in a dotted field, as `--field value` on a command line.

    Raises:
      ConfigError: no such field, or a value of another type, or one that the config refuses.
    """
    head, _, rest = field.replace("-", "_").partition(".")
    if isinstance(config, tuple):
        if not head.isdigit() or int(head) >= len(config):
            raise ConfigError(f"the places of a tuple of {len(config)} are numbers; got {head!r}.")
        place = int(head)
        changed = set_field(config[place], rest, value) if rest else value
        return (*config[:place], changed, *config[place + 1 :])
    cls: Any = type(config)
    hints = _hints(cls)
    if head not in hints:
        known = ", ".join(hints) or f"none in a {type(config).__name__}"
        raise ConfigError(f"a sweep sets fields of its config; got {head!r}. There are: {known}.")
    old = getattr(config, head)
    if rest:
        value = set_field(_default_part(hints[head]) if old is None else old, rest, value)
    elif not beartype.door.is_bearable(value, hints[head]):
        if isinstance(value, int) and beartype.door.is_bearable(float(value), hints[head]):
            value = float(value)
        else:
            raise ConfigError(f"{field} is a {hints[head]}; got {value!r}. Change the sweep.")
    try:
        return dataclasses.replace(config, **{head: value})
    except ValueError as error:
        raise ConfigError(f"{field}={value!r}: {error}") from error


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Field -> type of a dataclass; nothing of any other class."""
    return typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}


def _default_part(hint: Any) -> Any:
    """Of an optional part that is off: its defaults, as `configs.load` turns it on."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    parts: list[Any] = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    return parts[0]() if parts else None
