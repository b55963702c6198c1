"""The tree cache against caches of every node's own and against reading whole texts again."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import AttentionConfig
from models.language_model import LanguageModel
from models.paired import PairedModel
from models.transformer import TransformerConfig
from models.view import View
from search import gumbel, token_model, tree_cache
from search.token_model import ActionConfig

EOS, NEWLINE, VOCAB = 1, 2, 9
SIMULATIONS = 12
BOUNDED = {"kind": "taylor", "normalize_query_key": True}
TOKEN = ActionConfig(kind="token", num_candidates=4, max_completion_tokens=6)
STEP = ActionConfig(
    num_candidates=4, opening_tokens=2, max_step_tokens=3, max_completion_tokens=7
)
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
PROMPTS = np.array([[3, 4, 0, 0], [5, 6, 3, 8], [4, 0, 0, 0]], np.int32)
LENGTHS = np.array([2, 4, 1], np.int32)
# The tests check numbers, not speed: compile fast.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def build(case, num_layers=2):
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


def searching(dynamics):
    """(parameters, prompts, key) -> results of two moves, the second from where the first led."""
    config = gumbel.SearchConfig(
        action=dynamics.config, max_considered_actions=3, root_noise=True
    )

    @jit
    def search(params, prompts, rng_key):
        root = dynamics.start(params, prompts, LENGTHS, jnp.arange(3), max_moves=2)

        def move(root, rng_key):
            result = gumbel.search(
                dynamics, params, root, rng_key, num_simulations=SIMULATIONS, config=config
            )
            return result.child, dataclasses.replace(result, child=None)

        # Both moves in one loop compile once: give the root the shapes of what follows.
        return jax.lax.scan(move, root, jax.random.split(rng_key))[1]

    return search


def reading_again(dynamics):
    """(parameters, texts `[Q, L]`, lengths) -> candidates' log p and value after reading them."""

    @jit
    def read(params, texts, lengths):
        state = dynamics.start(params, texts, lengths, jnp.zeros_like(lengths))
        state = dynamics.propose(params, state)
        return state.candidates.log_probs, state.value

    return read


def largest_error(read, params, prompts, result):
    """Over all nodes but finished ones and the root, whose candidates are drawn with noise."""
    tree, texts = result.tree, result.tree.embeddings
    num_moves, batch, num_nodes, width = texts["tokens"].shape
    whole = np.zeros((num_moves, batch, num_nodes, prompts.shape[1] + width), np.int32)
    for row, length in enumerate(LENGTHS):
        whole[:, row, :, :length] = prompts[row, :length]
        whole[:, row, :, length : length + width] = texts["tokens"][:, row]
    lengths = LENGTHS[:, None] + texts["length"]
    log_probs, value = read(params, whole.reshape(-1, whole.shape[-1]), lengths.reshape(-1))
    is_node = np.asarray(~texts["finished"] & (tree.node_visits > 0)).reshape(-1)
    assert is_node.sum() > num_moves * batch * num_nodes / 3
    value_errors = np.abs(value - tree.raw_values.reshape(-1))[is_node]
    is_node = is_node.reshape(num_moves, batch, num_nodes).copy()
    is_node[..., 0] = False
    log_probs = np.asarray(log_probs).reshape(tree.children_prior_logits.shape)[is_node]
    got = np.asarray(tree.children_prior_logits)[is_node]
    assert np.all(np.isfinite(got) == np.isfinite(log_probs))
    there = np.isfinite(got)
    return max(np.abs(got - log_probs)[there].max(), value_errors.max())


@pytest.mark.parametrize("case", CASES)
def test_every_node_says_what_its_text_says_and_visits_are_those_of_node_caches(case):
    dynamics = build(case)
    read = reading_again(dynamics)
    search = searching(dynamics)
    plain = searching(dataclasses.replace(dynamics, node_caches=True))
    for seed in range(4):
        params = random_params(dynamics.model, seed)
        prompts = np.where(PROMPTS > 0, np.random.default_rng(seed).integers(3, 9, (3, 4)), 0)
        arguments = params, jnp.asarray(prompts, jnp.int32), jax.random.key(seed)
        result, want = search(*arguments), plain(*arguments)
        assert largest_error(read, params, prompts, result) <= 1e-4
        for name in ("visits", "action", "evaluations"):
            np.testing.assert_array_equal(getattr(result, name), getattr(want, name))
        for name in ("node_visits", "parents", "children_index", "children_visits"):
            np.testing.assert_array_equal(getattr(result.tree, name), getattr(want.tree, name))
        np.testing.assert_allclose(result.weights, want.weights, atol=1e-4)
        np.testing.assert_allclose(result.value, want.value, atol=1e-4)


def wrong_age(monkeypatch):
    right = View.age_in_path

    def older(self, capacity):
        age = right(self, capacity)
        return jnp.where(age < 0, age, age + 1)

    monkeypatch.setattr(View, "age_in_path", older)


def a_sibling_is_visible(monkeypatch):
    right = View.age_in_path

    def one_more(self, capacity):
        longer = dataclasses.replace(self, path_length=self.path_length + 1)
        return right(longer, capacity)

    monkeypatch.setattr(View, "age_in_path", one_more)


def wrong_slot(monkeypatch):
    right = tree_cache.TreeCache.store

    def shifted(self, *arguments):
        node, slots = right(self, *arguments)
        return dataclasses.replace(node, cache=node.cache + 1), slots

    monkeypatch.setattr(tree_cache.TreeCache, "store", shifted)


@pytest.mark.parametrize("mistake", [wrong_age, a_sibling_is_visible, wrong_slot])
def test_the_comparison_sees_a_mistake(mistake, monkeypatch):
    dynamics = build("order 2, window, convolution, decay, tokens", num_layers=1)
    params = random_params(dynamics.model, 0)
    read = reading_again(dynamics)
    with monkeypatch.context() as patch:
        mistake(patch)
        result = searching(dynamics)(params, jnp.asarray(PROMPTS), jax.random.key(0))
    assert largest_error(read, params, PROMPTS, result) > 1e-3


def test_two_models_that_read_one_text_have_one_tree_cache():
    """Prior of one, value of the other, layers of both in the slots."""
    action = CASES["order 4, steps"][2]
    policy, value = (build("order 4, steps", num_layers=n).model for n in (2, 1))
    pair = PairedModel(policy.config, value_config=value.config)
    params = {"policy": random_params(policy, 0), "value": random_params(value, 1)}
    dynamics = token_model.TokenModel(pair, action, EOS, NEWLINE)
    result = searching(dynamics)(params, jnp.asarray(PROMPTS), jax.random.key(0))
    assert largest_error(reading_again(dynamics), params, PROMPTS, result) <= 1e-4


def compiled_search(dynamics, num_simulations, batch=4, prompt=8):
    """The program of one search, and the bytes of its slots and of all else that grows with it."""
    config = gumbel.SearchConfig(action=dynamics.config, max_considered_actions=3)

    def search(params, root, rng_key):
        result = gumbel.search(
            dynamics, params, root, rng_key, num_simulations=num_simulations, config=config
        )
        return result.visits, result.weights

    params = jax.eval_shape(dynamics.model.init, jax.random.key(0))
    integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    root = jax.eval_shape(
        functools.partial(dynamics.start, max_moves=1),
        params, integers((batch, prompt)), integers((batch,)), integers((batch,)),
    )  # fmt: skip
    node, slots = jax.eval_shape(lambda r: dynamics.memory.plant(r, num_simulations), root)
    nodes = num_bytes(node) * (num_simulations + 1)
    return jax.jit(search).lower(params, root, jax.random.key(0)).compile(), slots, nodes


def num_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "action",
    [
        dataclasses.replace(TOKEN, max_completion_tokens=16),
        dataclasses.replace(STEP, max_completion_tokens=16, max_step_tokens=4),
    ],
    ids=["tokens", "steps"],
)
def test_a_search_needs_little_more_memory_than_its_slots(action):
    """Temporary memory of the compiled program: the slots once, the nodes, and as a constant part
    the paths of one simulation's leaves (B texts of M tokens) and what a model call needs."""
    config = TransformerConfig(
        vocab_size=VOCAB, width=16, num_layers=2, num_heads=8, head_dim=64, value_head_width=8
    )
    dynamics = token_model.TokenModel(LanguageModel(config), action, EOS, NEWLINE)
    simulations = 512 // action.max_action_tokens
    program, slots, nodes = compiled_search(dynamics, simulations)
    in_slots = num_bytes(slots)
    assert in_slots == 2 * 2 * 4 * 4 * 512 * 512  # bytes, layers, keys and values, rows, slots
    constant = 3 * in_slots * action.max_completion_tokens // 512
    temporary = program.memory_analysis().temp_size_in_bytes
    print(temporary, in_slots, nodes, constant)
    assert in_slots < temporary < 1.2 * in_slots + nodes + constant < 2 * in_slots


def test_a_tree_needs_a_300th_of_the_memory_of_node_caches():
    """Prompt of 200 tokens, 400 simulations, up to 300 tokens deep, an 8B model's layer."""
    config = TransformerConfig(
        vocab_size=128, width=4096, num_layers=1, num_heads=32, num_kv_heads=8, head_dim=128,
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
