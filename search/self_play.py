"""Prompts -> searched games -> SearchRecords, one shard per batch, resumable between batches."""

import concurrent.futures
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from data import problems, records, tokenizer
from models import language_model
from search import game, gumbel, oracle, snapshots, token_model
from train import checkpoints, config_json
from train.errors import ConfigError, DataError
from train.stopping import StopFlag

# One batch leaves a processor idle: on a CPU between its many small products, on an accelerator
# while the host writes records.
BATCHES_AT_ONCE = 2
SLURM_HOURS = 4.0  # what many clusters allow


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfPlayConfig:
    """One search run: `python -m search NAME --checkpoint P`."""

    checkpoint: str = ""
    """Run folder or checkpoint of the model that plays."""
    problem_set: str = "game24"
    """Name of the problems (see data.problems)."""
    split: str = "train"
    """Which of its splits to play."""
    first: int = 0
    """Number of the first problem to play."""
    limit: int | None = None
    """How many problems to play from there; None plays all that follow."""
    search: gumbel.SearchConfig = gumbel.SearchConfig(use_oracle=True, root_noise=True)
    """How each move is searched."""
    max_moves: int = 3
    """Moves (actions) after which a game is over, finished or not."""
    random_moves: tuple[int, ...] = (0,)
    """One game per problem and entry; so many of its first moves are drawn from the model's prior
    instead of being searched, to see other states."""
    batch_size: int = 64
    """Games searched at once."""
    keep_trees: bool = True
    """Whether records hold the whole search trees."""
    slice_calls: int = 32
    """Model calls between two looks at the clock and at signals."""
    save_minutes: float = 10.0
    """A batch that takes longer is saved so often; a stopped one is saved at once."""
    wall_clock_hours: float | None = None
    """The run stops by then, saved, to be resumed. None: 4 hours in a Slurm job, else no limit."""
    seed: int = 0
    """Decides all noise."""

    def __post_init__(self):
        moves = self.random_moves
        counts = {
            "batch_size": self.batch_size,
            "max_moves": self.max_moves,
            "slice_calls": self.slice_calls,
            "limit": 1 if self.limit is None else self.limit,
        }
        if min(counts.values()) < 1 or self.first < 0:
            raise ConfigError(
                f"{', '.join(counts)} are 1 or more and first is 0 or more; got {counts}, "
                f"{self.first=}."
            )
        if self.save_minutes < 0 or (self.wall_clock_hours or 1) <= 0:
            raise ConfigError(
                "save_minutes is 0 or more, and a wall clock is more than 0 hours; got "
                f"{self.save_minutes=}, {self.wall_clock_hours=}."
            )
        if not moves or min(moves) < 0 or max(moves) >= self.max_moves:
            raise ConfigError(
                "random_moves has one entry per game of a problem, each at least 0 and below "
                f"max_moves; got {moves} with max_moves={self.max_moves}."
            )


def play(
    model: token_model.TokenModel,
    params: language_model.Params,
    prompts: Sequence[problems.Prompt],
    numbers: Sequence[int],
    text: tokenizer.Tokenizer,
    config: SelfPlayConfig,
    rng_key: jax.Array,
    verify: oracle.Oracle | None = None,
    *,
    random_moves: int = 0,
) -> list[game.Game]:
    """`game.play` with the settings of a run, without a stop."""
    games = game.play(
        model,
        params,
        prompts,
        numbers,
        text,
        config.search,
        rng_key,
        verify,
        max_moves=config.max_moves,
        random_moves=random_moves,
        seed=config.seed,
        keep_trees=config.keep_trees,
    )
    assert games is not None  # nobody watches
    return games


def load_problems(config: SelfPlayConfig) -> tuple[list[problems.Problem], range]:
    """All problems of the split, and the numbers of those that are played.

    Raises:
      DataError: no such problem set or split. ConfigError: nothing is left to play.
    """
    found = problems.load_problems(config.problem_set, config.split)
    numbers = range(len(found))[config.first :][: config.limit]
    if not numbers:
        raise ConfigError(
            f"a search plays at least one problem; {config.problem_set} {config.split} has "
            f"{len(found)}, got first={config.first}, limit={config.limit}."
        )
    return found, numbers


def check_prompts(config: SelfPlayConfig) -> None:
    """Reads every prompt as the model will, before anything is written.

    Raises:
      DataError: no such problems, or the model's tokenizer cannot read one of them.
      ConfigError: nothing is left to play.
    """
    name = checkpoints.read_metadata(checkpoints.find_step(config.checkpoint)).tokenizer
    text = tokenizer.load_tokenizer(name)
    found, numbers = load_problems(config)
    for number in numbers:
        try:
            text.encode(found[number].prompt.text)
        except DataError as error:
            raise DataError(
                f"the model reads every prompt; tokenizer {name!r} cannot read problem {number} of "
                f"{config.problem_set}: {error} Or give a checkpoint that was trained on such text."
            ) from error


def _print_progress(played: list[game.Game], done: int, total: int, seconds: float) -> None:
    outcomes = [one.record.outcome for one in played]
    is_checked = None not in outcomes
    print(
        f"search  batch {done}/{total}  "
        f"{f'solved {outcomes.count(1.0)}/{len(played)}' if is_checked else 'not checked'}  "
        f"{BATCHES_AT_ONCE * len(played) / seconds:.1f} games/s  "
        f"{seconds * (total - done) / BATCHES_AT_ONCE:.0f} s left",
        flush=True,
    )


def forecast(config: SelfPlayConfig, num_games: int) -> str:
    """What a run costs at most, in one line."""
    search, size = config.search, config.batch_size
    moves = config.max_moves if search.mode == "play" else 1
    simulations = sum(map(search.simulations_at, range(moves)))
    calls = -(-num_games // size) * simulations
    return (
        f"forecast: {num_games:,} games of up to {simulations:,} simulations; at most {calls:,} "
        f"model calls of {size * search.parallel_leaves} texts, "
        f"{num_games * simulations * search.action.max_action_tokens:,} tokens"
    )


def _name_of_games(config: SelfPlayConfig) -> str:
    """A hash of all settings that decide the games."""
    same = dataclasses.replace(config, slice_calls=1, save_minutes=0.0, wall_clock_hours=None)
    return config_json.sha256(same)


class _Watch:
    """Looks at the clock between the slices of one batch: saves it, stops it."""

    def __init__(self, path: Path, belongs_to: str, seconds: float, is_stopped):
        self.path, self.belongs_to, self.seconds = path, belongs_to, seconds
        self.is_stopped, self.saved_at = is_stopped, time.monotonic()

    def __call__(self, snapshot) -> bool:
        stopped = bool(self.is_stopped())
        if stopped or time.monotonic() - self.saved_at >= self.seconds:
            snapshots.write(self.path, snapshot(), self.belongs_to)
            self.saved_at = time.monotonic()
        return stopped


def run(config: SelfPlayConfig, run_folder: Path, *, resume: bool, stop: StopFlag) -> Path:
    """Plays all problems of the config; returns the folder of the record shards.

    A shard is one batch; finished shards are never played again, and a batch that was stopped goes
    on in the middle of its search. The same config gives the same bytes, interrupted or not.

    Raises:
      ConfigError: there are shards already, without `resume`.
      DataError: a batch that was stopped belongs to another config or model.
      Preempted: `stop` was requested, or the time is up; everything is saved.
    """
    folder = run_folder / "records"
    if not resume and list(folder.glob(f"*{records.SUFFIX}")):
        raise ConfigError(
            f"a new search needs a folder without records; {folder} holds some. Use --resume to "
            "continue, or another --run-folder."
        )
    model_config, tokenizer_name, params = checkpoints.load_params(config.checkpoint)
    text = tokenizer.load_tokenizer(tokenizer_name)
    language = language_model.LanguageModel(model_config)
    model = token_model.for_tokenizer(language, config.search.action, text)
    all_problems, numbers = load_problems(config)
    size = config.batch_size
    batches = [
        (game_number, list(numbers[start : start + size]))
        for game_number in range(len(config.random_moves))
        for start in range(0, len(numbers), size)
    ]
    print(forecast(config, sum(len(rows) for _, rows in batches)), flush=True)
    verify = None
    if config.search.use_oracle:
        verify = oracle.Oracle(config.problem_set, config.split, tokenizer_name)

    folder.mkdir(parents=True, exist_ok=True)
    seed_key = jax.random.key(config.seed)
    started_at = time.monotonic()
    hours = config.wall_clock_hours
    if hours is None and "SLURM_JOB_ID" in os.environ:
        hours = SLURM_HOURS
    belongs_to = _name_of_games(config)

    def is_stopped() -> str | None:
        # What is under way is saved within a slice; a minute is left for it.
        if hours is not None and time.monotonic() - started_at > 3600 * hours - 60:
            stop.request(f"wall clock of {hours:g} h")
        return stop.requested

    def play_batch(number: int) -> bool:
        """Whether the batch is on disk now, and not put off."""
        game_number, rows = batches[number]
        shard = folder / f"shard-{number:05d}-of-{len(batches):05d}{records.SUFFIX}"
        unfinished = run_folder / "unfinished" / f"batch-{number:05d}.npz"
        if records.sidecar_path(shard).exists():
            unfinished.unlink(missing_ok=True)
            return True
        if is_stopped():
            return False
        # The last batch is filled up, so that it has the shape that is compiled already.
        filled = rows + rows[:1] * (size - len(rows))
        started = time.monotonic()
        named_batch = f"{belongs_to} {number}"
        played = game.play(
            model,
            params,
            [all_problems[n].prompt for n in filled],
            filled,
            text,
            config.search,
            jax.random.fold_in(seed_key, number),
            verify,
            max_moves=config.max_moves,
            random_moves=config.random_moves[game_number],
            seed=config.seed,
            keep_trees=config.keep_trees,
            snapshot=snapshots.read(unfinished, named_batch),
            slice_calls=config.slice_calls,
            watch=_Watch(unfinished, named_batch, 60 * config.save_minutes, is_stopped),
        )
        if played is None:
            return False
        played = played[: len(rows)]
        named = [
            dataclasses.replace(one.record, tokenizer=tokenizer_name, game=game_number)
            for one in played
        ]
        records.write_shard(shard, named)
        unfinished.unlink(missing_ok=True)
        _print_progress(played, number + 1, len(batches), time.monotonic() - started)
        return True

    is_played = [play_batch(0)]  # alone: it compiles
    with concurrent.futures.ThreadPoolExecutor(BATCHES_AT_ONCE) as pool:
        is_played += pool.map(play_batch, range(1, len(batches)))
    if not all(is_played):
        stop.raise_preempted(f"batch {is_played.index(False)} of {len(batches)}")
    summary = records.summary(records.read_folder(folder))
    (run_folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return folder
