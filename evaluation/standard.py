"""The standard table: what is measured on every model that learned from search."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

from evaluation.methods import AnyMethod, Beam, BestOfN, Greedy, Search
from evaluation.sampling import Choice
from search import gumbel

# min_p of the second best-of-n, the best of nine settings on Game of 24's validation puzzles
# (docs/experiments.md).
SAMPLING_FLOOR = 0.05
BEAM_WIDTHS = (1, 2, 4, 8, 16)
WIDEST_BEAM = 64
SEARCH_VARIANTS: tuple[dict[str, Any], ...] = (
    {"mode": "plan"},
    {"reuse_tree": True},
    {"algorithm": "puct"},
    {"leaf_value": "rollout"},
    {"parallel_leaves": 8},
)


def standard_methods(
    *,
    search: gumbel.SearchConfig,
    simulations: Sequence[int] = (16, 50, 200, 400),
    compared: int = 50,
    max_moves: int = 3,
    split: str = "test",
    limit: int | None = None,
    has_base: bool = True,
    has_controls: bool = True,
    has_curves: bool = False,
    ablation_splits: Sequence[str] = ("test", "train"),
    ablation_limit: int | None = 100,
) -> tuple[AnyMethod, ...]:
    """The table that every trained model gets.

    Args:
      search: settings of all searches (its simulations, oracle and noise are set here); its actions
        are those of a beam, and its longest text is that of every method.
      simulations: per move, of the searches without an oracle.
      compared: the simulations at which search is compared with sampling, controls and ablations.
      has_base: whether there is a base model to compare with.
      has_controls: whether sampling with a floor and the base model's prior are measured too.
      has_curves: whether best of n and majority are measured at the cost of every search, a single
        sample and beams of several widths too, and the other ways to search: plans, trees that stay
        from move to move, PUCT, greedy rollouts, leaves in parallel, tokens as actions, games and
        plans with the oracle. Curves of accuracy against forward passes.
      ablation_splits: where oracle x value is measured.
    """
    longest = search.action.max_completion_tokens

    def searched(
        num_simulations, *, use_oracle=False, use_value=True, like=search, **fields
    ) -> Search:
        changed = dataclasses.replace(
            like,
            num_simulations=num_simulations,
            use_oracle=use_oracle,
            use_value=use_value,
            root_noise=False,
        )
        return Search(search=changed, max_moves=max_moves, **fields)

    asked: dict[str, Any] = {"split": split, "limit": limit}
    greedy = functools.partial(Greedy, max_completion_tokens=longest)
    sampled = functools.partial(BestOfN, max_completion_tokens=longest, **asked)
    methods: list[AnyMethod] = [greedy(**asked)]
    sizes = dict.fromkeys((*simulations, compared))
    methods += [searched(n, **asked) for n in sizes]
    if has_curves:
        beam = functools.partial(Beam, action=search.action, max_moves=max_moves, **asked)
        methods += [beam(width=width) for width in BEAM_WIDTHS]
        for n in sizes:
            # A single sample costs the same whatever the budget is.
            single: tuple[Choice, ...] = ("chance",) if n == compared else ()
            choices: tuple[Choice, ...] = ("value", "majority", "checker", *single)
            methods.append(sampled(match=f"search-{n}", choices=choices))
        methods.append(beam(match=f"search-{compared}", width=WIDEST_BEAM))
        for variant in SEARCH_VARIANTS:
            changed = dataclasses.replace(search, **variant)
            methods += [searched(n, like=changed, **asked) for n in sizes]
        for mode in ("play", "plan"):
            changed = dataclasses.replace(search, mode=mode)
            methods += [searched(n, use_oracle=True, like=changed, **asked) for n in sizes]
        by_token = dataclasses.replace(search.action, kind="token", min_probability=0.0)
        tokens = dataclasses.replace(search, action=by_token)
        methods += [
            Search(
                search=dataclasses.replace(tokens, num_simulations=n),
                max_moves=longest,
                label=f"search-{n}-tokens",
                **asked,
            )
            for n in sizes
            if n <= compared
        ]
    else:
        methods.append(sampled(match=f"search-{compared}"))
    if has_controls:
        methods.append(sampled(match=f"search-{compared}", min_p=SAMPLING_FLOOR))
    if has_base:
        methods.append(greedy(model="base", **asked))
        if has_controls:
            methods.append(searched(compared, model="base_prior", **asked))
        methods.append(searched(compared, model="base", use_oracle=True, use_value=False, **asked))
    for other in ablation_splits:
        cut = limit if other == split else ablation_limit
        if other != split:
            methods.append(greedy(split=other, limit=cut))
        for use_oracle, use_value in itertools.product((False, True), repeat=2):
            method = searched(
                compared, use_oracle=use_oracle, use_value=use_value, split=other, limit=cut
            )
            if method not in methods:
                methods.append(method)
    return tuple(methods)
