"""Paired tests: which methods are compared on the same problems, and how sure the difference is."""

from collections.abc import Sequence
from dataclasses import replace

from evaluation import report, statistics
from evaluation.methods import Greedy, Matched, Method

Place = tuple[str, str]  # split and name of a method


def compared_pairs(methods: Sequence[Method]) -> list[tuple[Place, Place]]:
    """The pairs that are tested.

    Each search that another method matches, against that and against greedy decoding; where nothing
    matches a search, every method against greedy decoding. And what the base model does (or its
    prior), against the same done by the trained model.
    """
    pairs: list[tuple[Method, Method]] = []
    if not any(isinstance(method, Matched) and method.match is not None for method in methods):
        pairs += [
            (method, other)
            for method in methods
            for other in methods
            if isinstance(other, Greedy) and not isinstance(method, Greedy)
            if (method.split, method.limit, method.model) == (other.split, other.limit, other.model)
        ]
    for method in methods:
        if isinstance(method, Matched) and method.match is not None:
            place = (method.split, method.match)
            (search,) = (other for other in methods if (other.split, other.name) == place)
            asked = (search.split, search.limit, search.model)
            greedy = [
                other
                for other in methods
                if isinstance(other, Greedy) and (other.split, other.limit, other.model) == asked
            ]
            pairs += [(search, other) for other in (method, *greedy)]
        if method.model != "trained":
            twin = replace(method, model="trained", label="")
            pairs += [(other, method) for other in methods if replace(other, label="") == twin]
    places = [((first.split, first.name), (second.split, second.name)) for first, second in pairs]
    return list(dict.fromkeys(places))


def compare(
    first: report.Row, first_right: Sequence[bool], second: report.Row, second_right: Sequence[bool]
) -> report.Comparison:
    """Exact McNemar test between two methods, from whether each answer was right."""
    both = list(zip(first_right, second_right, strict=True))
    return report.Comparison(
        task=first.task,
        split=first.split,
        stage=first.stage,
        first=first.name,
        second=second.name,
        n=len(both),
        only_first=(both.count((True, False)),),
        only_second=(both.count((False, True)),),
        p_values=(statistics.mcnemar_p_value(first_right, second_right),),
    )
