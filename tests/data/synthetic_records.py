"""Search records like those of a real search, made by random legal play."""

import dataclasses

import numpy as np

from data import game24, records, tokenizer

TOKENIZER = tokenizer.load_tokenizer("game24")


def random_record(seed: int, *, nodes_per_tree: int = 12) -> records.SearchRecord:
    """A random legal game with a tree of random legal games at each of its positions."""
    rng = np.random.default_rng(seed)
    prompt, completion = game24.legal_play(rng)
    numbers = tuple(map(int, prompt.split()))
    positions, trees, leaves, offset = [], [], [], 0
    lines = completion.split("\n")
    for i in range(len(lines)):
        state = (
            [*numbers] if not i else [int(word) for word in lines[i - 1].split("left ")[1].split()]
        )
        before = "".join(f"{line}\n" for line in lines[:i])
        tree, finished = _random_tree(rng, numbers, before, state, nodes_per_tree)
        trees.append(tree)
        leaves += finished
        moves = [edge for edge, parent in zip(tree.edge_tokens, tree.parent) if parent == 0][:4]
        weights = rng.dirichlet(np.ones(len(moves) + 1))
        positions.append(
            records.Position(
                offset=offset,
                candidates=tuple(moves),
                weights=tuple(weights),
                visits=tuple(rng.integers(0, 9, len(moves)).tolist()),
                root_value=rng.random(),
                prior=tuple(rng.random(len(moves))),
            )
        )
        offset += len(TOKENIZER.encode(lines[i])) + 1
    return rounded(
        records.SearchRecord(
            problem_id="game24/" + "-".join(map(str, numbers)),
            split="train",
            prompt=prompt,
            completion=completion,
            prompt_tokens=tuple(TOKENIZER.encode(prompt)),
            completion_tokens=(*TOKENIZER.encode(completion), TOKENIZER.eos_id),
            outcome=float(game24.check(numbers, completion)),
            seed=seed,
            settings={"num_simulations": nodes_per_tree, "value_scale": 0.1},
            positions=tuple(positions),
            leaves=tuple(leaves),
            trees=tuple(trees),
            tokenizer="game24",
            game=0,
        )
    )


def rounded(record: records.SearchRecord) -> records.SearchRecord:
    """The record as a reader gets it back."""
    return records.from_json(records.to_json(record))


def _random_tree(rng, numbers, before: str, state: list[int], num_nodes: int):
    """Grows a tree by whole random games; returns it and its finished texts."""
    nodes = {(): 0}
    parent, edges, outcome, leaves = [-1], [()], [None], {}
    for _ in range(num_nodes // 2):
        completion = _play_from(rng, state)
        path, lines = (), completion.split("\n")
        for i, line in enumerate(lines):
            ends = i == len(lines) - 1
            edge = (*TOKENIZER.encode(line), TOKENIZER.eos_id if ends else TOKENIZER.newline_id)
            if (*path, edge) not in nodes:
                nodes[*path, edge] = len(parent)
                parent.append(nodes[path])
                edges.append(edge)
                solved = ends and game24.check(numbers, before + completion)
                outcome.append(float(solved) if ends else None)
            path = (*path, edge)
        tokens = (*TOKENIZER.encode(before + completion), TOKENIZER.eos_id)
        leaves[tokens] = records.Leaf(tokens=tokens, outcome=outcome[nodes[path]])
    count = len(parent)
    tree = records.Tree(
        parent=tuple(parent),
        edge_tokens=tuple(edges),
        prior=tuple(rng.random(count)),
        visits=tuple(rng.integers(1, 50, count).tolist()),
        value=tuple(rng.random(count)),
        outcome=tuple(outcome),
        q=tuple(rng.random(count)),
    )
    return tree, list(leaves.values())


def _play_from(rng, state: list[int]) -> str:
    """A random legal completion from these numbers."""
    tokens = game24._play(rng, np.array([sorted(state)]))[0]
    return TOKENIZER.decode(tokens).partition("\n")[2]


def solved_record() -> records.SearchRecord:
    """A solved game of 4 5 6 10: three positions of two candidates, one of them wrong, no trees."""
    lines = ["10 - 4 = 6 left 5 6 6\n", "5 * 6 = 30 left 6 30\n", "30 - 6 = 24"]
    wrong = ["6 + 4 = 10 left 5 10 10\n", "6 - 5 = 1 left 1 6\n", "30 + 6 = 36"]
    encoded = [tuple(TOKENIZER.encode(line)) for line in lines]
    others = [tuple(TOKENIZER.encode(line)) for line in wrong]
    encoded[-1] += (TOKENIZER.eos_id,)
    others[-1] += (TOKENIZER.eos_id,)
    offsets = [0, len(encoded[0]), len(encoded[0] + encoded[1])]
    positions = tuple(
        records.Position(
            offset=offset,
            candidates=(right, other),
            weights=(0.75, 0.125, 0.125),
            visits=(12, 4),
            root_value=0.5,
            prior=(0.25, 0.5),
        )
        for offset, right, other in zip(offsets, encoded, others)
    )
    completion_tokens = sum(encoded, ())
    failed = sum(encoded[:2], ()) + others[2]
    return records.SearchRecord(
        problem_id="game24/4-5-6-10",
        split="train",
        prompt="4 5 6 10\n",
        completion="".join(lines),
        prompt_tokens=tuple(TOKENIZER.encode("4 5 6 10\n")),
        completion_tokens=completion_tokens,
        outcome=1.0,
        seed=0,
        settings={},
        positions=positions,
        leaves=(
            records.Leaf(tokens=completion_tokens, outcome=1.0),
            records.Leaf(tokens=failed, outcome=0.0),
        ),
    )


def replace_outcomes(tree: records.Tree, outcome) -> records.Tree:
    return dataclasses.replace(tree, outcome=outcome)
