"""How sure a number is: intervals of an accuracy, and whether two methods differ."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike

from data.proportions import wilson_interval

__all__ = [
    "bootstrap_p_value",
    "estimate",
    "exponential",
    "fisher_interval",
    "interval_over_seeds",
    "mcnemar_p_value",
    "pearson",
    "spearman",
    "student_interval",
    "wilson_interval",
]


def student_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean of k >= 2 independent runs: m -+ t_{k-1} s / sqrt(k).

    s^2 = sum (x - m)^2 / (k - 1), t_{k-1} the 97.5% quantile of Student's t (Biometrika 6, 1908).
    """
    k = len(scores)
    if k < 2:
        raise ValueError(f"a spread needs two runs or more; got {k}. Add seeds.")
    mean = sum(scores) / k
    deviation = math.sqrt(sum((x - mean) ** 2 for x in scores) / (k - 1))
    half = float(scipy.special.stdtrit(k - 1, 0.975)) * deviation / math.sqrt(k)
    return mean - half, mean + half


def interval_over_seeds(scores: Sequence[float], num_asked: int) -> tuple[float, float]:
    """The 95% interval of the mean accuracy of k runs on the same `num_asked` problems.

    Both the runs and the problems are samples, so this is the wider, at each end, of Student's
    interval over the runs and Wilson's over the problems (counted once, not once per run: the
    runs answer the same ones). With one run it is Wilson's.
    """
    mean = sum(scores) / len(scores)
    low, high = wilson_interval(mean * num_asked, num_asked)
    if len(scores) > 1:
        over_runs = student_interval(scores)
        low, high = max(0.0, min(low, over_runs[0])), min(1.0, max(high, over_runs[1]))
    return low, high


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two columns; 0 where one of the two does not vary."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    return pearson(scipy.stats.rankdata(x), scipy.stats.rankdata(y))


def fisher_interval(correlation: float, n: int, *, of_ranks: bool = False) -> tuple[float, float]:
    """95% interval of a correlation: tanh(artanh r -+ 1.96 s / sqrt(n - 3)); all of it for n = 3.

    s = 1 (R. A. Fisher, Metron 1, 1921), or sqrt(1 + r^2 / 2) for that of ranks (Bonett and Wright,
    Psychometrika 65, 2000).
    """
    if n <= 3:
        return -1.0, 1.0
    centre = math.atanh(min(max(correlation, -1 + 1e-12), 1 - 1e-12))
    half = 1.959964 * math.sqrt((1 + correlation**2 / 2 if of_ranks else 1) / (n - 3))
    ends = math.tanh(centre - half), math.tanh(centre + half)
    return min(correlation, ends[0]), max(correlation, ends[1])


def estimate(
    scores: Sequence[float | tuple[float, float]],
) -> tuple[float, float, float]:
    """The mean over questions and its 95% interval: (score, low, high).

    Scores that are all 0 or 1: a share, with Wilson's interval. Other numbers: Student's. Pairs
    (x, y): the ratio r = sum x / sum y with Student's interval of the linearised mean, whose
    deviations are (x - r y) / mean y (Cochran, Sampling Techniques, 3rd ed., section 6.4).
    """
    n = len(scores)
    if all(isinstance(score, tuple) for score in scores):
        pairs = np.array(scores, float)
        numerator, denominator = pairs[:, 0], pairs[:, 1]
        if not denominator.sum():
            return 0.0, 0.0, 0.0
        score = float(numerator.sum() / denominator.sum())
        deviations = (numerator - score * denominator) / denominator.mean()
    else:
        values = np.array(scores, float)
        score = math.fsum(values) / n
        if np.isin(values, (0.0, 1.0)).all():
            low, high = wilson_interval(math.fsum(values), n)
            return score, min(low, score), max(high, score)
        deviations = values - score
    if n < 2:
        return score, score, score
    quantile = float(scipy.special.stdtrit(n - 1, 0.975))
    half = quantile * math.sqrt(float(np.square(deviations).sum()) / (n - 1) / n)
    return score, score - half, score + half


def exponential(interval: tuple[float, float, float]) -> tuple[float, float, float]:
    """exp of an estimate and its interval, at most e^700."""
    score, low, high = (math.exp(min(x, 700.0)) for x in interval)
    return score, low, high


def bootstrap_p_value(
    first: Sequence[float | tuple[float, float]],
    second: Sequence[float | tuple[float, float]],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """P of a difference at least this large between two methods on the same questions, if equal.

    Paired bootstrap: questions are drawn with replacement, the difference of the two estimates is
    centred, and p = (1 + number of resamples that are as far from 0) / (1 + num_resamples), two
    sided (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 16.4).

    Args:
      first, second: the scores of each question, in the same order; numbers or pairs (x, y) as in
        `estimate`.
    """
    if len(first) != len(second):
        raise ValueError(
            f"a paired test needs the same questions; got {len(first)} and {len(second)} scores. "
            "Evaluate both on one set."
        )

    def parts(scores: Sequence[float | tuple[float, float]]) -> np.ndarray:
        return np.array([s if isinstance(s, tuple) else (s, 1.0) for s in scores], float)

    ours, theirs = parts(first), parts(second)
    generator = np.random.default_rng(seed)

    def difference(rows: np.ndarray) -> np.ndarray:
        """rows: [R, n] question numbers -> [R]."""
        estimates = []
        for part in (ours, theirs):
            sums = part[rows].sum(axis=1)
            estimates.append(sums[:, 0] / np.where(sums[:, 1] == 0, 1, sums[:, 1]))
        return estimates[0] - estimates[1]

    n = len(ours)
    observed = float(difference(np.arange(n)[None])[0])
    at_once = max(1, 2_000_000 // n)
    extreme = 0
    for start in range(0, num_resamples, at_once):
        drawn = generator.integers(0, n, (min(at_once, num_resamples - start), n))
        extreme += int((abs(difference(drawn) - observed) >= abs(observed) - 1e-12).sum())
    return (1 + extreme) / (1 + num_resamples)


def mcnemar_p_value(first: Sequence[bool], second: Sequence[bool]) -> float:
    """P of a difference at least this large between two methods on the same problems, if equal.

    Exact two-sided McNemar test: of the b + c problems that only one of them solves, each is a fair
    coin; p = min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c)).
    Source: Q. McNemar, Psychometrika 12 (1947), with the exact binomial in place of chi-squared.

    Args:
      first, second: whether each problem was solved, in the same order.
    """
    if len(first) != len(second):
        raise ValueError(
            f"a paired test needs the same problems; got {len(first)} and {len(second)} answers. "
            "Evaluate both methods on one split and limit."
        )
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    differing = only_first + only_second
    tail = sum(math.comb(differing, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**differing)
