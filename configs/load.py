"""From a command line to a config: find it by name, apply overrides, say what was misspelt.

    python -m train tiny --train-steps 50 --optimizers.policy.peak-learning-rate 1e-3
    python -m train game24_quickstart --stages.base.train-steps 100 --resume

A config is a file `configs/NAME.py` with a function `get_config()`. Overrides are parsed by tyro:
dots go into nested configs and tuples (`--sources.0.weight 2`), `-` and `_` are the same. An
optional part that is off (`lora`) is turned on by any field of it (`--lora.rank 16`). In a
pipeline `--stages.NAME.` goes into the config of that stage, and `--seed 1` moves the seeds of all.
"""

import contextlib
import dataclasses
import difflib
import importlib
import io
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

from train import compilation_cache, host_memory, run_folder
from train.errors import (
    EXIT_CONFIG,
    EXIT_DATA,
    EXIT_OK,
    EXIT_PREEMPTED,
    ConfigError,
    DataError,
    Preempted,
)
from train.pipeline import Pipeline, Stage, reseed
from train.stopping import StopFlag

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class CommonFlags:
    """Flags of every command."""

    run_folder: Path
    """Where everything of this run is kept."""
    resume: bool = False
    """Continue in the run folder; with nothing there, start. Finished stages are skipped."""
    overwrite: bool = False
    """Delete what the run folder holds and start again. With --resume: only what has changed."""
    show: bool = False
    """Print the resolved config and what it amounts to, and do nothing."""
    stop_after_seconds: float | None = None
    """Time after which to save and stop as if a signal had come; None runs to the end."""
    command: tyro.conf.Suppress[str] = ""


def names(folder: Path = FOLDER, *, function: str = "get_config") -> list[str]:
    """Names of all configs: the files with a `get_config` (or another function)."""
    return sorted(
        path.stem
        for path in folder.glob("*.py")
        if re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    )


def find(name: str, *, folder: Path = FOLDER, function: str = "get_config") -> Any:
    """The config of `configs/NAME.py`, or what another function in another folder there returns.

    Raises:
      ConfigError: no such file, with the nearest name.
    """
    known, place = names(folder, function=function), folder.relative_to(FOLDER.parent)
    if name not in known:
        raise ConfigError(
            f"a config is a file in {place}/; got {name!r}.{_did_you_mean(name, known)}"
            f" There are: {', '.join(known)}."
        )
    module = importlib.import_module(".".join([*place.parts, name]))
    return getattr(module, function)()


def parse(
    argv: Sequence[str],
    *,
    program: str,
    expects: type | tuple[type, ...],
    flags: type[CommonFlags] = CommonFlags,
) -> tuple[Any, Any]:
    """Command line `NAME [--overrides] [flags]` -> the resolved config and the flags.

    Prints and exits with 0 on --help, which explains every field of that config.

    Args:
      program: the command's package, such as "train" for `python -m train`.
      expects: config types this command can run.
      flags: the command's own flags, beside the common ones.

    Raises:
      ConfigError: unknown config, one for another command, unknown field, unusable value.
    """
    usage = f"usage: python -m {program} NAME [--overrides] [flags]; NAME: {', '.join(names())}"
    if list(argv) in (["--help"], ["-h"]):
        print(f"{usage}\n`python -m {program} NAME --help` explains every field of that config.")
        raise SystemExit(EXIT_OK)
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"the first argument names a config. {usage}")
    name, *rest = argv
    config = find(name)
    if not isinstance(config, expects):
        kinds = expects if isinstance(expects, tuple) else (expects,)
        raise ConfigError(
            f"python -m {program} runs a {' or '.join(kind.__name__ for kind in kinds)}; "
            f"configs/{name}.py is a {type(config).__name__}. Use the command in its docstring."
        )
    return override(config, rest, program=program, name=name, flags=flags)


def override(
    config: Any,
    argv: Sequence[str],
    *,
    program: str,
    name: str = "",
    flags: type[CommonFlags] = CommonFlags,
) -> tuple[Any, Any]:
    """Applies overrides to a config; for commands that make their config without a file.

    Args:
      name: what the command line says after the program; names the default run folder.

    Raises:
      ConfigError: as in `parse`, or what the config itself refuses.
    """
    command = shlex.join(["python", "-m", program, *([name] if name else []), *argv])
    defaults = flags(run_folder=Path("runs") / (name or program), command=command)
    target = _stages_as_fields(config) if isinstance(config, Pipeline) else config
    target = _with_named_parts(target, [argument.replace("_", "-") for argument in argv])
    _check_flags(argv, [*_flag_names(target), *_flag_names(defaults), "help"])
    parsed, found = _parse_with_tyro(target, defaults, argv, f"python -m {program} {name}".strip())
    if isinstance(config, Pipeline):
        parsed = _fields_as_stages(config, parsed)
    return parsed, found


def main(program: str, command: Callable[[list[str]], Any]) -> NoReturn:
    """Runs `command(argv)` and exits: 0 done, 2 config, 3 data, 75 stopped and resumable.

    These three failures are one line on stderr; anything else is a bug and keeps its traceback.
    """
    host_memory.keep_freed_memory()
    compilation_cache.enable()
    try:
        command(sys.argv[1:])
        code = EXIT_OK
    except (ConfigError, DataError, Preempted) as error:
        codes = {ConfigError: EXIT_CONFIG, DataError: EXIT_DATA, Preempted: EXIT_PREEMPTED}
        code = next(code for kind, code in codes.items() if isinstance(error, kind))
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(code)


@contextlib.contextmanager
def opened_run(config: Any, flags: CommonFlags) -> Iterator[tuple[Path, StopFlag]]:
    """The run folder that the flags ask for, and the stop flag of the work in it."""
    folder = run_folder.prepare(
        flags.run_folder,
        config,
        resume=flags.resume,
        overwrite=flags.overwrite,
        command=flags.command,
    )
    with StopFlag(deadline_seconds=flags.stop_after_seconds) as stop:
        yield folder, stop


def _parse_with_tyro(
    config: Any, flags: CommonFlags, argv: Sequence[str], prog: str
) -> tuple[Any, Any]:
    # No prefixes: the fields of the config stand beside the common flags.
    unnamed = tyro.conf.arg(name="")
    both = dataclasses.make_dataclass(
        "Arguments",
        [
            ("config", Annotated[type(config), unnamed]),
            ("flags", Annotated[type(flags), unnamed, tyro.conf.FlagCreatePairsOff]),
        ],
        frozen=True,
    )
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(
                tyro.conf.configure(tyro.conf.AvoidSubcommands)(both),
                args=list(argv),
                default=both(config, flags),
                prog=prog,
                description=type(config).__doc__,
            )
    except SystemExit as stop:
        if stop.code == EXIT_OK:  # --help
            raise
        raise ConfigError(_one_line(errors.getvalue())) from None
    return parsed.config, parsed.flags


def _with_named_parts(config: Any, argv: Sequence[str], prefix: str = "--") -> Any:
    """A config whose parts that are None, but of which `argv` names a field, are their defaults."""
    changes = {}
    for name, hint in typing.get_type_hints(type(config)).items():
        flag = f"{prefix}{name.replace('_', '-')}."
        if not any(argument.startswith(flag) for argument in argv):
            continue
        part = getattr(config, name)
        if part is None and isinstance(hint, types.UnionType):
            kinds: list[Any] = [k for k in typing.get_args(hint) if dataclasses.is_dataclass(k)]
            if len(kinds) == 1 and all(map(_has_default, dataclasses.fields(kinds[0]))):
                changes[name] = kinds[0]()
        elif dataclasses.is_dataclass(part):
            changes[name] = _with_named_parts(part, argv, flag)
    return dataclasses.replace(config, **changes) if changes else config


def _has_default(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _one_line(box: str) -> str:
    """The message in one of tyro's boxes: what stands between its title and its first rule."""
    lines = [line.strip("│ ") for line in box.strip().splitlines()[1:]]
    is_rule = [not line.strip("─-") for line in lines]
    first = is_rule.index(False)  # terminals without box characters have a rule below the title
    message = " ".join(lines[first : is_rule.index(True, first)])
    return f"{message.strip().rstrip('.')}. See --help."


def _check_flags(argv: Sequence[str], known: Sequence[str]) -> None:
    known = [flag.replace("_", "-") for flag in known]
    for argument in argv:
        flag = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        if argument.startswith("--") and flag not in known:
            raise ConfigError(f"there is no field --{flag}.{_did_you_mean(flag, known, '--')}")


def _did_you_mean(wrong: str, known: Sequence[str], prefix: str = "") -> str:
    """The nearest name. The last part of a dotted one counts double: the rest may be left out."""

    def likeness(name: str) -> float:
        pairs = [(wrong, name), (wrong.rpartition(".")[2], name.rpartition(".")[2])]
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return 2 * last + whole if max(whole, last) > 0.6 else 0.0

    nearest = max(known, key=likeness, default="")
    if nearest and likeness(nearest):
        return f" Did you mean {prefix}{nearest}?"
    return " See --help." if prefix else ""


def _flag_names(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a config, as tyro spells them."""
    if dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    else:
        items = [(str(index), item) for index, item in enumerate(value)]
    for name, item in items:
        holds_configs = isinstance(item, tuple) and any(map(dataclasses.is_dataclass, item))
        if dataclasses.is_dataclass(item) or holds_configs:
            yield from _flag_names(item, f"{prefix}{name}.")
        else:
            yield from (f"{prefix}{name}",)
            if isinstance(item, bool):
                yield f"{prefix}no-{name}"


def _stages_as_fields(pipeline: Pipeline) -> Any:
    """A dataclass `stages.NAME.field`: tyro would name the stages by number."""
    stages = dataclasses.make_dataclass(
        "Stages", [(s.name, type(s.config)) for s in pipeline.stages], frozen=True
    )
    seed_help = tyro.conf.arg(help="Moves the seeds of all stages: adds 1000 times this to each.")
    seed = ("seed", Annotated[int, seed_help], 0)
    wrapper = dataclasses.make_dataclass(
        "PipelineOverrides", [("stages", stages), seed], frozen=True
    )
    wrapper.__doc__ = Pipeline.__doc__
    return wrapper(stages(*(stage.config for stage in pipeline.stages)))


def _fields_as_stages(pipeline: Pipeline, fields: Any) -> Pipeline:
    changed: list[Stage] = [
        dataclasses.replace(stage, config=getattr(fields.stages, stage.name))
        for stage in pipeline.stages
    ]
    return reseed(dataclasses.replace(pipeline, stages=tuple(changed)), fields.seed)
