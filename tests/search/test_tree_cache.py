"""The tree cache against caches of every node's own and against reading whole texts again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import language_model
from models.attention import AttentionConfig
from models.language_model import LanguageModel
from models.paired import PairedModel
from models.transformer import TransformerConfig
from search import engine, gumbel, token_model, tree_cache
from search.token_model import ActionConfig

EOS, NEWLINE, VOCAB = 1, 2, 5
SIMULATIONS = 12
BOUNDED = {"kind": "taylor", "normalize_query_key": True}
TOKEN = ActionConfig(kind="token", num_candidates=4, max_completion_tokens=6)
STEP = ActionConfig(num_candidates=4, opening_tokens=2, max_step_tokens=4, max_completion_tokens=9)
# name -> (attention, key/value heads of 4, action)
CASES = {
    "every head its own keys, tokens": ({}, 4, TOKEN),
    "grouped queries, window, convolution, steps": (
        {"window_tokens": 3, "short_conv_width": 3},
        2,
        STEP,
    ),
    "order 1, steps": (BOUNDED | {"order": 1, "radius": 0.9}, 4, STEP),
    "order 2, window, convolution, decay, tokens": (
        BOUNDED
        | {"order": 2, "radius": 1.5, "window_tokens": 2, "short_conv_width": 4, "decay": True},
        2,
        TOKEN,
    ),
    "order 4, steps": ({"kind": "taylor", "order": 4}, 2, STEP),
}
PROMPTS = np.array([[3, 4, 0, 0], [4, 3, 3, 4], [4, 0, 0, 0]], np.int32)
LENGTHS = np.array([2, 4, 1], np.int32)
ROWS, WIDTH = 3, 4 + 9  # a prompt and the longest completion
# The tests check numbers, not speed: compile fast.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def build(case, num_layers=1):
    attention, num_kv_heads, action = CASES[case]
    config = TransformerConfig(
        vocab_size=VOCAB,
        width=16,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=4,
        value_head_width=8,
        attention=AttentionConfig(**attention),
    )
    return token_model.TokenModel(LanguageModel(config), action, EOS, NEWLINE)


def random_params(model, seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)


class Growing:
    """Trees that grow at random: simulation i appends any action to any node that is not finished.
    (Lines that are too long finish a text; that none ends by itself, and closed lines are taken
    more often, lets the trees grow deep.)
    """

    def __init__(self, dynamics):
        self.dynamics = dynamics = dataclasses.replace(dynamics, forbidden_tokens=(EOS,))
        self.memory = memory = dynamics.memory

        def read(params, texts, lengths):
            """The state of whole texts, read at once."""
            state = dynamics.start(params, texts, lengths, jnp.zeros_like(lengths), max_moves=2)
            return dynamics.propose(params, state)

        def grow(params, root, parent, slots, action, simulation):
            child = dynamics.act(params, memory.recall(root, parent, slots), action)
            child = dynamics.propose(params, child)
            number = jnp.full((ROWS, 1), simulation + 1)
            return memory.store(root, parent, child, slots, number)

        def commit(params, root, node, slots):
            return dynamics.propose(params, memory.commit(params, root, node, slots))

        self.read, self.grow, self.commit = jit(read), jit(grow), jit(commit)

    def read_all(self, params, texts, lengths):
        """`read` with as many rows as a tree has texts, so that it is compiled once."""
        padded = np.zeros((ROWS * (SIMULATIONS + 1), WIDTH), np.int32)
        padded[: len(texts), : texts.shape[1]] = texts
        lengths = np.concatenate([lengths, np.ones(len(padded) - len(texts), np.int32)])
        state = jax.device_get(self.read(params, padded, lengths))
        return jax.tree.map(lambda x: x[: len(texts)], state)

    def tree(self, params, root, rng):
        """Nodes, of which the second is a child of the root, and the slots."""
        node, slots = self.memory.plant(root, SIMULATIONS)
        nodes = [jax.device_get(node)]
        for simulation in range(SIMULATIONS):
            finished = np.stack([node.finished for node in nodes])
            is_parent = np.where(finished.all(axis=0), True, ~finished)
            of_row = [rng.choice(np.flatnonzero(is_parent[:, row])) for row in range(ROWS)]
            parent = jax.tree.map(
                lambda *x, of_row=of_row: np.stack([x[n][row] for row, n in enumerate(of_row)]),
                *nodes,
            )
            action = np.array([self._action(parent.candidates, row, rng) for row in range(ROWS)])
            child, slots = self.grow(params, root, parent, slots, action, simulation)
            nodes.append(jax.device_get(child))
        return nodes, slots

    def _action(self, candidates, row, rng):
        last = candidates.tokens[row, np.arange(4), candidates.lengths[row] - 1]
        closing = np.flatnonzero(last == NEWLINE)
        return rng.choice(closing if len(closing) and rng.random() < 0.8 else np.arange(4))

    def largest_error(self, params, prompts, nodes):
        """Of log p of candidates and of values, against reading the text of every node again."""
        texts = np.zeros((len(nodes), ROWS, WIDTH), np.int32)
        for row, length in enumerate(LENGTHS):
            texts[:, row, :length] = prompts[row, :length]
            for n, node in enumerate(nodes):
                texts[n, row, length : length + node.length[row]] = node.tokens[
                    row, : node.length[row]
                ]
        lengths = LENGTHS + np.stack([node.length for node in nodes])
        want = self.read_all(params, texts.reshape(-1, WIDTH), lengths.reshape(-1))
        is_open = ~np.concatenate([node.finished for node in nodes])
        assert np.any(is_open)

        def error(of):
            got, there = np.concatenate([of(node) for node in nodes])[is_open], of(want)[is_open]
            assert np.all(np.isfinite(got)) and np.all(np.isfinite(there))
            return np.abs(got - there).max()

        return max(error(lambda node: node.candidates.log_probs), error(lambda node: node.value))


def random_prompts(rng):
    return np.where(PROMPTS > 0, rng.integers(3, VOCAB, PROMPTS.shape), 0).astype(np.int32)


def check_every_node(growing, params_of_seed, seeds):
    num_open = 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        params, prompts = params_of_seed(seed), random_prompts(rng)
        root = growing.read_all(params, prompts, LENGTHS)
        for _ in range(2):  # the second tree stands where a move of the first has led
            nodes, slots = growing.tree(params, root, rng)
            num_open += sum((~node.finished).sum() for node in nodes)
            assert growing.largest_error(params, prompts, nodes) <= 1e-4
            root = growing.commit(params, root, nodes[1], slots)
            if np.all(root.finished):
                break
            assert growing.largest_error(params, prompts, [jax.device_get(root)]) <= 1e-4
    assert num_open > 20 * seeds


@functools.cache
def growing_trees(case):
    return Growing(build(case))


@pytest.mark.parametrize("case", CASES)
def test_every_node_says_what_its_text_says(case):
    """Over random trees, models and ragged prompts, and again after a move."""
    growing = growing_trees(case)
    check_every_node(growing, lambda seed: random_params(growing.dynamics.model, seed), seeds=3)


def test_two_models_that_read_one_text_have_one_tree_cache():
    """Prior of one, value of the other, layers of both in the slots."""
    policy, value = (build("order 4, steps", num_layers=n).model for n in (1, 2))
    pair = PairedModel(policy.config, value_config=value.config)
    dynamics = token_model.TokenModel(pair, STEP, EOS, NEWLINE)

    def params(seed):
        return {"policy": random_params(policy, seed), "value": random_params(value, seed + 1)}

    check_every_node(Growing(dynamics), params, seeds=1)


def older(*arguments, right=language_model.age_in_lane):
    age = right(*arguments)
    return jnp.where(age < 1, age, age + 1)


def with_a_sibling(filled, length, capacity, right=language_model.age_in_lane):
    age = right(filled, length, capacity)
    return jnp.where(jnp.arange(capacity) == filled[..., None, None] + length, 0, age)


def of_the_next_slot(self, *arguments, right=tree_cache.TreeCache.store):
    node, slots = right(self, *arguments)
    return dataclasses.replace(node, cache=node.cache + 1), slots


@pytest.mark.parametrize(
    ("where", "name", "mistake"),
    [
        (language_model, "age_in_lane", older),
        (language_model, "age_in_lane", with_a_sibling),
        (tree_cache.TreeCache, "store", of_the_next_slot),
    ],
)
def test_a_mistake_shows(where, name, mistake, monkeypatch):
    """A wrong age, a visible sibling, a wrong slot."""
    right = growing_trees("order 2, window, convolution, decay, tokens")
    params = random_params(right.dynamics.model, 0)
    root = right.read_all(params, PROMPTS, LENGTHS)
    monkeypatch.setattr(where, name, mistake)
    nodes, _ = Growing(right.dynamics).tree(params, root, np.random.default_rng(0))
    assert right.largest_error(params, PROMPTS, nodes) > 1e-3


def check_visits(case, seeds, num_layers=1):
    dynamics = build(case, num_layers)
    config = gumbel.SearchConfig(action=dynamics.config, max_considered_actions=3, root_noise=True)
    root_of = jit(functools.partial(dynamics.start, max_moves=None))

    def searches(dynamics):
        search = functools.partial(
            engine.search, dynamics, num_simulations=SIMULATIONS, config=config
        )
        return jit(lambda params, root, rng_key: search(params, root, rng_key))

    tree, plain = (searches(dataclasses.replace(dynamics, node_caches=n)) for n in (False, True))
    for seed in range(seeds):
        params = random_params(dynamics.model, seed)
        prompts = random_prompts(np.random.default_rng(seed))
        root = plain_root = root_of(params, prompts, LENGTHS, np.arange(3))
        for rng_key in jax.random.split(jax.random.key(seed)):
            got, want = tree(params, root, rng_key), plain(params, plain_root, rng_key)
            for name in ("visits", "action", "evaluations"):
                np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
            for name in ("node_visits", "parents", "children_index", "children_visits"):
                np.testing.assert_array_equal(getattr(got.tree, name), getattr(want.tree, name))
            np.testing.assert_array_equal(
                got.tree.embeddings["tokens"], want.tree.embeddings["tokens"]
            )
            np.testing.assert_allclose(got.weights, want.weights, atol=1e-4)
            np.testing.assert_allclose(got.value, want.value, atol=1e-4)
            root, plain_root = got.child, want.child


def test_visits_are_those_of_node_caches():
    check_visits("grouped queries, window, convolution, steps", seeds=4)


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_visits_are_those_of_node_caches_over_many_models(case):
    check_visits(case, seeds=40, num_layers=2)


def num_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "action",
    [
        dataclasses.replace(TOKEN, max_completion_tokens=16),
        pytest.param(
            dataclasses.replace(STEP, max_completion_tokens=16, max_step_tokens=4),
            marks=pytest.mark.soak,
        ),
    ],
    ids=["tokens", "steps"],
)
def test_a_search_needs_little_more_memory_than_its_slots(action):
    """Temporary memory of the compiled program: the slots, once; what is in the nodes, the paths of
    one simulation's leaves (B texts of M tokens) and a model call needs is small beside them.
    """
    config = TransformerConfig(
        vocab_size=VOCAB, width=16, num_layers=2, num_heads=8, head_dim=64, value_head_width=8
    )
    dynamics = token_model.TokenModel(LanguageModel(config), action, EOS, NEWLINE)
    num_simulations = 512 // action.max_action_tokens
    search_config = gumbel.SearchConfig(action=action, max_considered_actions=3)

    def search(params, root, rng_key):
        result = engine.search(
            dynamics, params, root, rng_key, num_simulations=num_simulations, config=search_config
        )
        return result.visits, result.weights

    params = jax.eval_shape(dynamics.model.init, jax.random.key(0))
    integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    start = functools.partial(dynamics.start, max_moves=1)
    root = jax.eval_shape(start, params, integers((4, 8)), integers((4,)), integers((4,)))
    _, slots = jax.eval_shape(lambda root: dynamics.memory.plant(root, num_simulations), root)
    in_slots = num_bytes(slots)
    assert in_slots == 4 * 2 * 2 * 4 * 512 * 8 * 64  # bytes, keys and values, layers, B, slots
    program = jax.jit(search).lower(params, root, jax.random.key(0)).compile()
    temporary = program.memory_analysis().temp_size_in_bytes
    assert in_slots < temporary < 1.2 * in_slots


def test_a_tree_needs_a_300th_of_the_memory_of_node_caches():
    """Prompt of 200 tokens, 400 simulations, up to 300 tokens deep, layers as of an 8B model."""
    config = TransformerConfig(
        vocab_size=128, width=4096, num_layers=4, num_heads=32, num_kv_heads=8, head_dim=128,
        dtype="bfloat16",
    )  # fmt: skip
    action = dataclasses.replace(TOKEN, max_completion_tokens=300)
    tree = token_model.TokenModel(LanguageModel(config), action, EOS, NEWLINE)
    integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    params = jax.eval_shape(tree.model.init, jax.random.key(0))

    def cache_bytes(dynamics):
        """Of what is there at the end: the prefix, what the nodes hold of it, what is beside."""

        def plant(params, tokens, lengths):
            root = dynamics.start(params, tokens, lengths, lengths, max_moves=1)
            node, slots = dynamics.memory.plant(root, 400)
            nodes = jax.tree.map(lambda x: jnp.zeros((401, *x.shape)), node.cache)
            nodes = jax.tree.map(lambda x, one: x.astype(one.dtype), nodes, node.cache)
            prefix = () if dynamics.node_caches else root.cache
            return prefix, nodes, slots

        return num_bytes(jax.eval_shape(plant, params, integers((1, 200)), integers((1,))))

    tokens = 401 * 500 / (200 + 400)  # of node caches: 500 in each
    ratio = cache_bytes(dataclasses.replace(tree, node_caches=True)) / cache_bytes(tree)
    assert 300 <= ratio <= tokens
