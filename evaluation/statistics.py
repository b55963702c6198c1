"""How sure a number is: intervals of an accuracy, and whether two methods differ."""

import math
from collections.abc import Sequence

import scipy.special

NORMAL_975 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def wilson_interval(num_right: float, num_asked: int) -> tuple[float, float]:
    """The 95% score interval of a proportion p = num_right / num_asked.

        (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n),   z = 1.96

    Unlike p -+ z sqrt(p (1 - p)/n) it stays within [0, 1] and has a width at 0 and at 1.
    Source: E. B. Wilson, JASA 22 (1927); recommended by Newcombe, Statistics in Medicine 17 (1998).

    Args:
      num_right: may be a mean over runs, so need not be whole.
    """
    if not 0 <= num_right <= num_asked or num_asked < 1:
        raise ValueError(
            f"an interval needs 0 <= num_right <= num_asked and num_asked >= 1; got {num_right} "
            f"of {num_asked}. Ask at least one problem."
        )
    n, p, z2 = num_asked, num_right / num_asked, NORMAL_975**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * p * (1 - p) / n + z2**2 / (4 * n**2)) / (1 + z2 / n)
    # At 0 and 1 the bound is exactly p; rounding must not push it beyond.
    return min(p, max(0.0, center - half)), max(p, min(1.0, center + half))


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
