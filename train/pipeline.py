"""A pipeline: our own commands one after another, each in its folder, none of them twice.

    RUN/stages/00-base/     a run folder like any other (`train.run_folder`), plus
        stage.json          command, hash and seconds so far, written when the stage starts
        done.json           hash and total seconds, written when it has finished

A stage's config may name an earlier stage: a string field "stage:base", or with a path below it
"stage:base/records", becomes that folder when the stage runs. The hash of a stage covers its
command, its config and the hashes of the stages it names, and no path: a run folder can be moved.
It does not cover the code: a finished stage that another commit made is kept, and named.
"""

import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import rich
import rich.console

from train import config_json, pipeline_status, run_folder
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag

REFERENCE_PREFIX = "stage:"
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]*")


@runtime_checkable
class RunFn(Protocol):
    """What a command offers: do the work of `config` in an opened run folder.

    With `resume` it continues from what it finds there (nothing is fine). When `stop.requested`
    it saves and raises `Preempted`.
    """

    def __call__(
        self, config: Any, run_folder: Path, /, *, resume: bool, stop: StopFlag
    ) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of a pipeline."""

    name: str
    """Lower-case letters, digits and underscores; names its folder and its overrides."""
    command: str
    """Which of our commands runs: tokenizer, train, search, evaluation, scoring or rewards."""
    config: Any
    """The config of that command."""
    expected_seconds: float = 0.0
    """Rough duration on 2 CPU cores, for the time left that is shown; 0 is unknown."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Stages in the order they run."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        known: list[str] = []
        for stage in self.stages:
            if not NAME_PATTERN.fullmatch(stage.name) or stage.name in known:
                raise ConfigError(
                    "stage names are distinct and made of a-z, 0-9 and _, a letter first; got "
                    f"{stage.name!r} after {known}. Rename it."
                )
            for name in sorted(references(stage.config)):
                if name not in known:
                    raise ConfigError(
                        f"a stage can use only earlier stages; {stage.name!r} uses "
                        f"'{REFERENCE_PREFIX}{name}' after {known}. Move or rename a stage."
                    )
            known.append(stage.name)


def run(
    pipeline: Pipeline,
    folder: Path,
    *,
    commands: Mapping[str, RunFn],
    stop: StopFlag,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    console: rich.console.Console | None = None,
) -> dict[str, float]:
    """Runs every stage that has not finished yet.

    With `resume`, finished stages are skipped, a started one continues, and one whose hash has
    changed is refused; `resume` and `overwrite` together redo the changed stages only.

    Args:
      commands: command name -> function; see `configs.commands.COMMANDS`.
      command: the command line, for command.txt.

    Returns:
      Stage name -> seconds it took, over all attempts.

    Raises:
      ConfigError: an unknown command, or a folder that is left alone (see `run_folder.prepare`).
      Preempted: `stop` was requested; every stage until here is saved.
    """
    _check_commands(pipeline, commands)
    open_folder(pipeline, folder, resume=resume, overwrite=overwrite, command=command)
    stages = Stages(pipeline, folder)
    for line in stages.made_by_others():
        (console or rich.get_console()).print(line, markup=False, highlight=False, soft_wrap=True)

    with pipeline_status.show(pipeline.stages, console=console) as status:
        for stage in pipeline.stages:
            if stages.state(stage.name) == "done":
                status.skipped(stage.name, stages.seconds(stage.name))
                continue
            if stop.requested:
                stop.raise_preempted(f"stage {stage.name}, not started")
            status.started(stage.name, stages.seconds(stage.name))
            run_stage(pipeline, folder, stage.name, commands=commands, stop=stop)
            status.finished(stage.name, stages.seconds(stage.name))
    return {stage.name: stages.seconds(stage.name) for stage in pipeline.stages}


def run_stage(
    pipeline: Pipeline, folder: Path, name: str, *, commands: Mapping[str, RunFn], stop: StopFlag
) -> None:
    """Runs or continues one stage in the opened folder of its pipeline; nothing if it is done.

    Raises:
      ConfigError: no such stage, or one that it uses is not done. Preempted: saved.
    """
    stages = Stages(pipeline, folder)
    stage = stages.find(name)
    if stages.state(name) == "done":
        return
    missing = [used for used in sorted(references(stage.config)) if stages.state(used) != "done"]
    if missing:
        raise ConfigError(
            f"a stage needs those that it uses; {name} uses {', '.join(missing)}, not done in "
            f"{folder}. Run them first."
        )
    at, sha256 = stages.folders[name], stages.hashes[name]
    continues = stages.state(name) == "started"
    if not continues:
        run_folder.prepare(
            at,
            stage.config,
            overwrite=at.exists(),
            extra_files={"stage.json": _stage_json(stage, sha256, seconds=0.0)},
        )
    seconds_before = stages.seconds(name)
    start = time.monotonic()
    try:
        config = resolve(stage.config, stages.folders)
        commands[stage.command](config, at, resume=continues, stop=stop)
    except (ConfigError, DataError, Preempted) as error:
        raise type(error)(f"stage {name}: {error}") from error
    finally:
        seconds = round(seconds_before + time.monotonic() - start, 3)
        run_folder.write_json(at / "stage.json", _stage_json(stage, sha256, seconds))
    run_folder.write_json(at / "done.json", {"sha256": sha256, "seconds": seconds})


class Stages:
    """The stages of a pipeline in its folder."""

    def __init__(self, pipeline: Pipeline, folder: Path):
        self._stages = {stage.name: stage for stage in pipeline.stages}
        self.hashes = stage_hashes(pipeline)
        self.folders = {
            name: folder / "stages" / f"{index:02d}-{name}"
            for index, name in enumerate(self._stages)
        }

    def find(self, name: str) -> Stage:
        """Raises: ConfigError: there is none of this name."""
        if name not in self._stages:
            raise ConfigError(f"the stages are {', '.join(self._stages)}; got {name!r}.")
        return self._stages[name]

    def state(self, name: str) -> str:
        """What its folder holds: absent, changed (of another config), started or done."""
        return _state(self.folders[name], self.hashes[name])

    def seconds(self, name: str) -> float:
        """That it took so far, over all attempts."""
        state = self.state(name)
        if state not in ("done", "started"):
            return 0.0
        file = "done.json" if state == "done" else "stage.json"
        return run_folder.read_json(self.folders[name] / file)["seconds"]

    def made_by_others(self) -> list[str]:
        """A line per other commit that made finished stages; code is no part of a stage's hash."""
        present = run_folder.environment()["git_commit"]
        stages: dict[str | None, list[str]] = {}
        for name, at in self.folders.items():
            if self.state(name) == "done":
                commit = run_folder.read_json(at / "environment.json")["git_commit"]
                stages.setdefault(commit, []).append(name)
        return [
            f"kept as commit {commit} made it (this is {present}): {', '.join(names)}. To redo a "
            f"stage delete its folder, such as {self.folders[names[0]]}."
            for commit, names in stages.items()
            if commit != present
        ]


def reseed(pipeline: Pipeline, seed: int) -> Pipeline:
    """The same pipeline with other randomness: every field `seed` in it grows by 1000 * seed."""
    return _reseeded(pipeline, 1000 * seed)


def _reseeded(value: Any, offset: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_reseeded(item, offset) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        changed = {
            name: getattr(value, name) + offset
            if name == "seed"
            else _reseeded(getattr(value, name), offset)
            for name in names
        }
        return dataclasses.replace(value, **changed)
    return value


def references(config: Any) -> set[str]:
    """Names of the stages that a config uses."""
    return {
        text.removeprefix(REFERENCE_PREFIX).partition("/")[0]
        for text in _strings(config_json.encode(config))
        if text.startswith(REFERENCE_PREFIX)
    }


def resolve(config: Any, folders: Mapping[str, Path]) -> Any:
    """The same config with "stage:NAME/rest" replaced by the path FOLDER/rest."""

    def path_of(text: str) -> str:
        if not text.startswith(REFERENCE_PREFIX):
            return text
        name, _, rest = text.removeprefix(REFERENCE_PREFIX).partition("/")
        return str(folders[name] / rest)

    return _map_strings(config, path_of)


def stage_hashes(pipeline: Pipeline) -> dict[str, str]:
    """Stage name -> hash of its command, config and of the stages it uses."""
    hashes: dict[str, str] = {}
    for stage in pipeline.stages:
        identity = {
            "command": stage.command,
            "config": config_json.encode(stage.config),
            "uses": {name: hashes[name] for name in references(stage.config)},
        }
        hashes[stage.name] = config_json.sha256_of_json(identity)
    return hashes


def open_folder(
    pipeline: Pipeline, folder: Path, *, resume: bool, overwrite: bool, command: str = ""
) -> None:
    """Creates the pipeline's folder, or checks that each stage in it may be kept or redone.

    Raises:
      ConfigError: it is left alone (see `run_folder.prepare` and `run`).
    """
    if not (resume and _is_pipeline_folder(folder)):
        run_folder.prepare(folder, pipeline, resume=resume, overwrite=overwrite, command=command)
        return
    stages = Stages(pipeline, folder)
    present = set((folder / "stages").glob("[!.]*"))
    changed = [name for name in stages.folders if stages.state(name) == "changed"]
    dropped = sorted(path.name for path in present - set(stages.folders.values()))
    if (changed or dropped) and not overwrite:
        raise ConfigError(
            f"{folder} holds stages of another config: {', '.join(changed + dropped)}. Add "
            "--overwrite to redo just these, or use another --run-folder."
        )
    for name in dropped:
        shutil.rmtree(folder / "stages" / name)
    run_folder.write_json(folder / "config.json", config_json.encode(pipeline))
    run_folder.append_command(folder, command)


def _check_commands(pipeline: Pipeline, commands: Mapping[str, RunFn]) -> None:
    for stage in pipeline.stages:
        if stage.command not in commands:
            raise ConfigError(
                f"a stage runs one of {', '.join(commands)}; stage {stage.name!r} asks for "
                f"{stage.command!r}. Change its command."
            )


def _is_pipeline_folder(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    saved = run_folder.read_json(folder / "config.json")
    return isinstance(saved, dict) and saved.get("class") == f"{__name__}:{Pipeline.__qualname__}"


def _state(at: Path, sha256: str) -> str:
    """As `Stages.state`."""
    if not at.exists():
        return "absent"
    for file, state in (("done.json", "done"), ("stage.json", "started")):
        if (at / file).is_file():
            return state if run_folder.read_json(at / file)["sha256"] == sha256 else "changed"
    return "changed"


def _stage_json(stage: Stage, sha256: str, seconds: float) -> dict[str, Any]:
    return {"name": stage.name, "command": stage.command, "sha256": sha256, "seconds": seconds}


def _strings(payload: Any) -> Iterator[str]:
    match payload:
        case str():
            yield payload
        case list():
            for item in payload:
                yield from _strings(item)
        case dict():
            yield from _strings(list(payload.values()))


def _map_strings(value: Any, function: Callable[[str], str]) -> Any:
    match value:
        case str():
            return function(value)
        case tuple():
            return tuple(_map_strings(item, function) for item in value)
        case Mapping():
            return {name: _map_strings(item, function) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(
            value, **{name: _map_strings(getattr(value, name), function) for name in fields}
        )
    return value
