"""Prompts -> searched games -> SearchRecords, one shard per batch, resumable between batches."""

import concurrent.futures
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from data import problems, records, tokenizer
from models import language_model
from search import game, gumbel, oracle, snapshots, token_model
from train import checkpoints, config_json
from train.errors import ConfigError, DataError
from train.run_folder import write_json
from train.stopping import StopFlag

# One batch leaves a processor idle: on a CPU between its many small products, on an accelerator
# while the host writes records.
BATCHES_AT_ONCE = 2
SLURM_HOURS = 4.0  # what many clusters allow
UNFINISHED = "unfinished"  # folder of the batches that were stopped
SUMMARY = "summary.json"


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


def wall_clock(config: SelfPlayConfig, stop: StopFlag) -> Callable[[], str | None]:
    """Asks whether to stop: because `stop` says so, or because the time of the config is up."""
    started_at = time.monotonic()
    hours = config.wall_clock_hours
    if hours is None and "SLURM_JOB_ID" in os.environ:
        hours = SLURM_HOURS

    def is_stopped() -> str | None:
        # What is under way is saved within a slice; a minute is left for it.
        if hours is not None and time.monotonic() - started_at > 3600 * hours - 60:
            stop.request(f"wall clock of {hours:g} h")
        return stop.requested

    return is_stopped


def batches_of(config: SelfPlayConfig, numbers: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Every batch of a run: the number of the game, and the problems that are played."""
    size = config.batch_size
    return [
        (game_number, list(numbers[start : start + size]))
        for game_number in range(len(config.random_moves))
        for start in range(0, len(numbers), size)
    ]


def shard_name(number: int, num_batches: int) -> str:
    """File of a batch."""
    return f"shard-{number:05d}-of-{num_batches:05d}{records.SUFFIX}"


class Player:
    """The model, the problems and the batches of a run: `play` gives the same in every process."""

    def __init__(self, config: SelfPlayConfig):
        """Raises: as `checkpoints.load_params` and `load_problems`."""
        self.config = config
        model_config, self.tokenizer, self._params = checkpoints.load_params(config.checkpoint)
        self._text = tokenizer.load_tokenizer(self.tokenizer)
        language = language_model.LanguageModel(model_config)
        self._model = token_model.for_tokenizer(language, config.search.action, self._text)
        self._problems, numbers = load_problems(config)
        self.batches = batches_of(config, numbers)
        self._verify: oracle.Oracle | None = None
        if config.search.use_oracle:
            self._verify = oracle.Oracle(config.problem_set, config.split, self.tokenizer)
        self._rng_key = jax.random.key(config.seed)
        self._belongs_to = _name_of_games(config)

    def shard_name(self, number: int) -> str:
        return shard_name(number, len(self.batches))

    def play(
        self, number: int, folder: Path, is_stopped: Callable[[], object]
    ) -> list[game.Game] | None:
        """The games of a batch, or None if they were stopped; then they are saved in `folder`,
        from where the next call goes on.

        Raises:
          DataError: what was saved belongs to another config or model.
        """
        config, (game_number, rows) = self.config, self.batches[number]
        # The last batch is filled up, so that it has the shape that is compiled already.
        filled = rows + rows[:1] * (config.batch_size - len(rows))
        named_batch = f"{self._belongs_to} {number}"
        saved = unfinished(folder, number)
        played = game.play(
            self._model,
            self._params,
            [self._problems[n].prompt for n in filled],
            filled,
            self._text,
            config.search,
            jax.random.fold_in(self._rng_key, number),
            self._verify,
            max_moves=config.max_moves,
            random_moves=config.random_moves[game_number],
            seed=config.seed,
            keep_trees=config.keep_trees,
            snapshot=snapshots.read(saved, named_batch),
            slice_calls=config.slice_calls,
            watch=_Watch(saved, named_batch, 60 * config.save_minutes, is_stopped),
        )
        return None if played is None else played[: len(rows)]

    def write(self, number: int, games: Sequence[game.Game], folder: Path) -> None:
        """Writes the shard of a batch."""
        game_number, _ = self.batches[number]
        named = [
            dataclasses.replace(one.record, tokenizer=self.tokenizer, game=game_number)
            for one in games
        ]
        records.write_shard(folder / self.shard_name(number), named)


def unfinished(folder: Path, number: int) -> Path:
    """Where the games of a batch are saved that was stopped."""
    return folder / f"batch-{number:05d}.npz"


def refuse_old_records(folder: Path) -> None:
    """A new search has an empty folder of records."""
    if list(folder.glob(f"*{records.SUFFIX}")):
        raise ConfigError(
            f"a new search needs a folder without records; {folder} holds some. Use --resume to "
            "continue, or another --run-folder."
        )


def finish(run_folder: Path) -> None:
    """Counts what was played, in the last file of a run."""
    shutil.rmtree(run_folder / UNFINISHED, ignore_errors=True)
    summary = records.summary(records.read_folder(run_folder / "records"))
    write_json(run_folder / SUMMARY, summary)


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
    if not resume:
        refuse_old_records(folder)
    player = Player(config)
    num_batches = len(player.batches)
    print(forecast(config, sum(len(rows) for _, rows in player.batches)), flush=True)
    is_stopped = wall_clock(config, stop)

    def play_batch(number: int) -> bool:
        """Whether the batch is on disk now, and not put off."""
        saved = unfinished(run_folder / UNFINISHED, number)
        if records.sidecar_path(folder / player.shard_name(number)).exists():
            saved.unlink(missing_ok=True)
            return True
        if is_stopped():
            return False
        started = time.monotonic()
        played = player.play(number, run_folder / UNFINISHED, is_stopped)
        if played is None:
            return False
        player.write(number, played, folder)
        saved.unlink(missing_ok=True)
        _print_progress(played, number + 1, num_batches, time.monotonic() - started)
        return True

    is_played = [play_batch(0)]  # alone: it compiles
    with concurrent.futures.ThreadPoolExecutor(BATCHES_AT_ONCE) as pool:
        is_played += pool.map(play_batch, range(1, num_batches))
    if not all(is_played):
        stop.raise_preempted(f"batch {is_played.index(False)} of {num_batches}")
    finish(run_folder)
    return folder
