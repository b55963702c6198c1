"""A batch of games: searched move by move, or planned at once, and written down as records.

The batch can stop after any few model calls and go on in another process: what is under way is
`Snapshot`, arrays and records.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data import problems, records, tokenizer
from models import generate, language_model
from search import engine, gumbel, oracle, outcome, token_model


@functools.partial(jax.jit, static_argnums=(0, 5))
def _start(model, params, tokens, lengths, problem, max_moves):
    return model.start(params, tokens, lengths, problem, max_moves=max_moves)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _plant(model, params, root, rng_key, plan, config):
    return engine.plant(model, params, root, rng_key, plan=plan, config=config)


@functools.partial(jax.jit, static_argnums=(0, 4, 5), donate_argnums=2)
def _advance(model, params, growth, plan, config, verify, until):
    growth = engine.advance(
        model, params, growth, plan=plan, config=config, verify=verify, until=until
    )
    return growth, engine.is_done(growth, plan)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _summarise(model, params, growth, plan, config):
    return outcome.summarise(model, params, growth, plan=plan, config=config)


@functools.partial(jax.jit, static_argnums=0)
def _move_on(model, growth, result, plan):
    return outcome.move_on(model, growth, result, plan=plan)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _best_text(model, params, growth, verify):
    return outcome.best_text(model, params, growth, verify=verify)


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
    """A played game: its record, the tokens the model read for it, and the nodes of its trees."""

    record: records.SearchRecord
    evaluations: int
    nodes: int


Searched = list[list[tuple[records.Position, records.Tree]]]  # of every game, its searches


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Games under way, in the search of a move.

    arrays: of the `growth.Growth`, in the order of its leaves. evaluations: `[B]`, without those of
    this search.
    """

    move: int
    arrays: list[np.ndarray]
    evaluations: np.ndarray
    searched: Searched


def _snapshot(move: int, growth, evaluations: np.ndarray, searched: Searched) -> Snapshot:
    return Snapshot(move, [np.asarray(x) for x in jax.tree.leaves(growth)], evaluations, searched)


# Asked between slices, with a function that makes the snapshot; True stops the games there.
Watch = Callable[[Callable[[], Snapshot]], bool]


def play(
    model: token_model.TokenModel,
    params: language_model.Params,
    prompts: Sequence[problems.Prompt],
    numbers: Sequence[int],
    text: tokenizer.Tokenizer,
    search: gumbel.SearchConfig,
    rng_key: jax.Array,
    verify: oracle.Oracle | None = None,
    *,
    max_moves: int,
    random_moves: int = 0,
    seed: int = 0,
    keep_trees: bool = True,
    snapshot: Snapshot | None = None,
    watch: Watch | None = None,
    slice_calls: int = 1_000_000,
) -> list[Game] | None:
    """Plays one game per prompt, all at once.

    Args:
      numbers: which problem each prompt is, for the oracle.
      verify: the oracle; needed exactly when `search.use_oracle`.
      max_moves: a game is over after them, finished or not.
      random_moves: so many of the first are drawn from the model instead of being searched.
      snapshot: where the same games were stopped.
      slice_calls: of the model, between two questions to `watch`.

    Returns:
      The games, or None if `watch` stopped them.
    """
    if search.use_oracle != (verify is not None):
        raise ValueError(
            "an oracle is given exactly when the search uses it; got "
            f"use_oracle={search.use_oracle} and verify={verify}."
        )
    encoded = [tokenizer.prompt_ids(text, prompt.text) for prompt in prompts]
    tokens, lengths = generate.right_padded(encoded)
    last_move = random_moves if search.mode == "plan" else max_moves - 1
    state = _uncounted(
        _start(model, params, tokens, lengths, np.asarray(numbers, np.int32), last_move + 1)
    )
    evaluations = lengths.astype(np.int64)
    searched: Searched = [[] for _ in prompts]
    keys = jax.random.split(rng_key, max_moves)
    compiled, growth, first_move = search.compiled, None, 0

    def plan_of(move):
        return search.plan(search.simulations_at(move), capacity=search.capacity)

    if snapshot is not None:
        first_move, evaluations = snapshot.move, snapshot.evaluations.copy()
        searched = [list(row) for row in snapshot.searched]
        plant = functools.partial(_plant, model, config=compiled)
        planted = jax.eval_shape(plant, params, state, keys[0], plan_of(0))
        growth = jax.tree.unflatten(jax.tree.structure(planted), snapshot.arrays)

    for move in range(first_move, last_move + 1):
        if move < random_moves:
            state = _random_move(model, params, state, keys[move], verify)
            evaluations += np.asarray(state.evaluations)
            state = _uncounted(state)
            continue
        plan = plan_of(move)
        if growth is None:
            growth = _plant(model, params, state, keys[move], plan, compiled)
        is_over = np.asarray(growth.root.finished)
        offsets = np.asarray(growth.root.length)
        if is_over.all():
            break
        is_done = False
        while not is_done:
            until = growth.calls + slice_calls
            growth, is_done = _advance(model, params, growth, plan, compiled, verify, until)
            now = functools.partial(_snapshot, move, growth, evaluations, searched)
            if watch is not None and not is_done and watch(now):
                return None
        result = _summarise(model, params, growth, plan, compiled)
        host = jax.device_get(dataclasses.replace(result, child=None))
        evaluations += np.where(is_over, 0, host.evaluations)
        for row in np.flatnonzero(~is_over).tolist():
            searched[row].append(_position(host, row, int(offsets[row]), verify is not None))
        if search.mode == "plan":
            state = _best_text(model, params, growth, verify)
            evaluations += np.asarray(state.evaluations)
            break
        state = _uncounted(result.child)
        if search.reuse_tree and move < last_move:
            growth = _move_on(model, growth, result, plan_of(move + 1))
        else:
            growth = None

    write = functools.partial(_record, text, search=search, seed=seed, keep_trees=keep_trees)
    completions, outcomes = _completions(state, is_checked=verify is not None)
    written = map(write, prompts, encoded, completions, outcomes, searched)
    nodes = [sum(len(tree.parent) for _, tree in row) for row in searched]
    return [Game(*all_of) for all_of in zip(written, evaluations.tolist(), nodes, strict=True)]


def _completions(
    state: token_model.State, *, is_checked: bool
) -> tuple[list[records.Tokens], list[float | None]]:
    """What was written after each prompt, and its outcome."""
    wanted = {"tokens": state.tokens, "length": state.length, "outcome": state.outcome}
    final = jax.device_get(wanted)
    rows = zip(final["tokens"].tolist(), final["length"].tolist(), strict=True)
    outcomes = final["outcome"].tolist() if is_checked else [None] * len(final["length"])
    return [tuple(tokens[:length]) for tokens, length in rows], outcomes


def _record(
    text: tokenizer.Tokenizer,
    prompt: problems.Prompt,
    prompt_tokens: list[int],
    completion: records.Tokens,
    outcome: float | None,
    searched: list[tuple[records.Position, records.Tree]],
    *,
    search: gumbel.SearchConfig,
    seed: int,
    keep_trees: bool,
) -> records.SearchRecord:
    return records.SearchRecord(
        problem_id=prompt.id,
        split=prompt.split,
        prompt=prompt.text,
        completion=text.decode(completion),
        prompt_tokens=tuple(prompt_tokens),
        completion_tokens=completion,
        outcome=outcome,
        seed=seed,
        settings=dataclasses.asdict(search),
        positions=tuple(position for position, _ in searched),
        leaves=_leaves(completion, searched),
        trees=tuple(tree for _, tree in searched) if keep_trees else (),
    )


def _position(
    result: outcome.SearchResult, row: int, offset: int, checked: bool
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
        if node and parent not in number_of:
            continue  # not in use
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
