"""Prompts -> searched games -> SearchRecords, one shard per batch, resumable between batches."""

import concurrent.futures
import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data import problems, records, tokenizer
from models import language_model
from search import gumbel, oracle, token_model
from train import checkpoints
from train.errors import ConfigError, DataError
from train.stopping import StopFlag

# One batch leaves a processor idle: on a CPU between its many small products, on an accelerator
# while the host writes records.
BATCHES_AT_ONCE = 2


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
    seed: int = 0
    """Decides all noise."""

    def __post_init__(self):
        moves = self.random_moves
        counts = (self.batch_size, self.max_moves, 1 if self.limit is None else self.limit)
        if min(counts) < 1 or self.first < 0:
            raise ConfigError(
                "batch_size, max_moves and limit are 1 or more and first is 0 or more; got "
                f"{self.batch_size=}, {self.max_moves=}, {self.limit=}, {self.first=}."
            )
        if not moves or min(moves) < 0 or max(moves) >= self.max_moves:
            raise ConfigError(
                "random_moves has one entry per game of a problem, each at least 0 and below "
                f"max_moves; got {moves} with max_moves={self.max_moves}."
            )


@functools.partial(jax.jit, static_argnums=(0, 5))
def _start(model, params, tokens, lengths, problem, max_moves):
    return model.start(params, tokens, lengths, problem, max_moves=max_moves)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _search(model, params, root, rng_key, plan, config, verify):
    return gumbel.planned_search(
        model, params, root, rng_key, plan=plan, config=config, verify=verify
    )


@functools.partial(jax.jit, static_argnums=(0, 4))
def _random_move(model, params, root, rng_key, verify):
    """One move drawn from the model (the best of a Gumbel sample is a sample)."""
    root = model.propose(params, root, rng_key)
    child = model.act(params, root, jnp.zeros_like(root.length))
    return (
        child
        if verify is None
        else token_model.judge(child, verify, asked=child.ended & ~root.finished)
    )


def _uncounted(state: token_model.State) -> token_model.State:
    """The state with its evaluations back at 0: they are counted search by search."""
    return dataclasses.replace(state, evaluations=jnp.zeros_like(state.evaluations))


@dataclasses.dataclass(frozen=True)
class Game:
    """A played game: its record, and the tokens the model read to play it."""

    record: records.SearchRecord
    evaluations: int


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
) -> list[Game]:
    """Plays one game per prompt, all at once, a search per move.

    Args:
      numbers: which problem each prompt is, for the oracle.
      verify: the oracle; needed exactly when `config.search.use_oracle`.
    """
    if config.search.use_oracle != (verify is not None):
        raise ValueError(
            "an oracle is given exactly when the search uses it; got "
            f"use_oracle={config.search.use_oracle} and verify={verify}."
        )
    encoded = [text.encode(prompt.text) for prompt in prompts]
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    tokens = np.full((len(encoded), lengths.max()), text.pad_id, np.int32)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)] = ids
    state = _start(model, params, tokens, lengths, np.asarray(numbers, np.int32), config.max_moves)
    evaluations = lengths.astype(np.int64)
    state = _uncounted(state)
    searched: list[list[tuple[records.Position, records.Tree]]] = [[] for _ in prompts]

    for move, move_key in enumerate(jax.random.split(rng_key, config.max_moves)):
        if move < random_moves:
            state = _random_move(model, params, state, move_key, verify)
            evaluations += np.asarray(state.evaluations)
            state = _uncounted(state)
            continue
        root = {"length": np.asarray(state.length), "finished": np.asarray(state.finished)}
        if root["finished"].all():
            break
        search = config.search
        plan = search.plan(search.simulations_at(move), capacity=search.capacity)
        result = _search(model, params, state, move_key, plan, search.compiled, verify)
        state = _uncounted(result.child)
        host = jax.device_get(dataclasses.replace(result, child=None))
        for row in np.flatnonzero(~root["finished"]).tolist():
            evaluations[row] += host.evaluations[row]
            offset = int(root["length"][row])
            searched[row].append(_position(host, row, offset, verify is not None))

    final = jax.device_get(
        {"tokens": state.tokens, "length": state.length, "outcome": state.outcome}
    )
    games = []
    for row, prompt in enumerate(prompts):
        completion = tuple(final["tokens"][row, : final["length"][row]].tolist())
        trees = tuple(tree for _, tree in searched[row])
        record = records.SearchRecord(
            problem_id=prompt.id,
            split=prompt.split,
            prompt=prompt.text,
            completion=text.decode(completion),
            prompt_tokens=tuple(encoded[row]),
            completion_tokens=completion,
            outcome=float(final["outcome"][row]) if verify is not None else None,
            seed=config.seed,
            settings=dataclasses.asdict(config.search),
            positions=tuple(position for position, _ in searched[row]),
            leaves=_leaves(completion, searched[row]),
            trees=trees if config.keep_trees else (),
        )
        games.append(Game(record=record, evaluations=int(evaluations[row])))
    return games


def _position(
    result: gumbel.SearchResult, row: int, offset: int, checked: bool
) -> tuple[records.Position, records.Tree]:
    """What one search says of one row, as it is written down (offsets are in completion tokens)."""
    tree = result.tree
    texts, parents = tree.embeddings, tree.parents[row]
    root = result.root_candidates
    there = np.flatnonzero(root.log_probs[row] > -np.inf).tolist()
    position = records.Position(
        offset=offset,
        candidates=tuple(
            tuple(root.tokens[row, i, : root.lengths[row, i]].tolist()) for i in there
        ),
        weights=tuple(result.weights[row, [*there, -1]].astype(float).tolist()),
        visits=tuple(result.visits[row, there].tolist()),
        root_value=float(result.value[row]),
        prior=tuple(np.exp(root.log_probs[row, there]).astype(float).tolist()),
    )
    number_of: dict[int, int] = {}
    columns: dict[str, list] = {f.name: [] for f in dataclasses.fields(records.Tree)}
    for node in range(len(parents)):
        parent = int(parents[node])
        if node and (parent not in number_of or texts["finished"][row, parent]):
            continue  # what mctx grows below a finished text is that text again
        number_of[node] = len(number_of)
        start = offset if node == 0 else int(texts["length"][row, parent])
        action = int(tree.action_from_parent[row, node])
        prior = 1.0 if node == 0 else np.exp(tree.children_prior_logits[row, parent, action])
        finished = bool(texts["finished"][row, node])
        edge = texts["tokens"][row, node, start : texts["length"][row, node]]
        columns["parent"].append(number_of[parent] if node else -1)
        columns["edge_tokens"].append(tuple(edge.tolist()))
        columns["prior"].append(float(prior))
        columns["visits"].append(int(tree.node_visits[row, node]))
        columns["value"].append(float(tree.node_values[row, node]))
        outcome = float(texts["outcome"][row, node]) if finished and checked else None
        columns["outcome"].append(outcome)
        q = tree.node_values[row, 0]
        if node:
            reward = tree.children_rewards[row, parent, action]
            q = reward + tree.children_discounts[row, parent, action] * tree.node_values[row, node]
        columns["q"].append(float(q))
    return position, records.Tree(**{name: tuple(column) for name, column in columns.items()})


def _leaves(completion, searched) -> tuple[records.Leaf, ...]:
    """Every finished text that was judged, once."""
    found: dict[tuple[int, ...], float | None] = {}
    for position, tree in searched:
        paths: list[tuple[int, ...]] = []
        for node, parent in enumerate(tree.parent):
            before = completion[: position.offset] if parent < 0 else paths[parent]
            paths.append(before + tree.edge_tokens[node])
            if tree.outcome[node] is not None:
                found[paths[-1]] = tree.outcome[node]
    return tuple(records.Leaf(tokens=path, outcome=outcome) for path, outcome in found.items())


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


def _print_progress(played: list[Game], done: int, total: int, seconds: float) -> None:
    outcomes = [game.record.outcome for game in played]
    is_checked = None not in outcomes
    print(
        f"search  batch {done}/{total}  "
        f"{f'solved {outcomes.count(1.0)}/{len(played)}' if is_checked else 'not checked'}  "
        f"{BATCHES_AT_ONCE * len(played) / seconds:.1f} games/s  "
        f"{seconds * (total - done) / BATCHES_AT_ONCE:.0f} s left",
        flush=True,
    )


def run(config: SelfPlayConfig, run_folder: Path, *, resume: bool, stop: StopFlag) -> Path:
    """Plays all problems of the config; returns the folder of the record shards.

    A shard is one batch; finished shards are never played again. The same config gives the same
    bytes, whether interrupted or not.

    Raises:
      ConfigError: there are shards already, without `resume`.
      Preempted: `stop` was requested; all finished batches are saved.
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
        (game, list(numbers[start : start + size]))
        for game in range(len(config.random_moves))
        for start in range(0, len(numbers), size)
    ]
    verify = None
    if config.search.use_oracle:
        verify = oracle.Oracle(config.problem_set, config.split, tokenizer_name)

    folder.mkdir(parents=True, exist_ok=True)
    seed_key = jax.random.key(config.seed)

    def play_batch(number: int) -> bool:
        """Whether the batch is on disk now, and not put off."""
        game, rows = batches[number]
        shard = folder / f"shard-{number:05d}-of-{len(batches):05d}{records.SUFFIX}"
        if records.sidecar_path(shard).exists():
            return True
        if stop.requested:
            return False
        # The last batch is filled up, so that it has the shape that is compiled already.
        filled = rows + rows[:1] * (size - len(rows))
        started = time.monotonic()
        played = play(
            model,
            params,
            [all_problems[n].prompt for n in filled],
            filled,
            text,
            config,
            jax.random.fold_in(seed_key, number),
            verify,
            random_moves=config.random_moves[game],
        )[: len(rows)]
        named = [
            dataclasses.replace(one.record, tokenizer=tokenizer_name, game=game) for one in played
        ]
        records.write_shard(shard, named)
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
