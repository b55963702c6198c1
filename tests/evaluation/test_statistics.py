import pytest

from evaluation import statistics


@pytest.mark.parametrize(
    ("num_right", "num_asked", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_equals_the_published_one(num_right, num_asked, low, high):
    assert statistics.wilson_interval(num_right, num_asked) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_holds_the_score_at_every_count():
    for n in (1, 3, 7, 100, 631):
        for right in range(n + 1):
            low, high = statistics.wilson_interval(right, n)
            assert 0 <= low <= right / n <= high <= 1


@pytest.mark.parametrize(("num_right", "num_asked"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_interval_refuses_impossible_counts(num_right, num_asked):
    with pytest.raises(ValueError, match="got"):
        statistics.wilson_interval(num_right, num_asked)


def test_student_interval_of_three_runs():
    # t_2 = 4.3027, s = 0.1: 0.5 -+ 4.3027 * 0.1 / sqrt(3)
    assert statistics.student_interval([0.4, 0.5, 0.6]) == pytest.approx((0.2516, 0.7484), abs=1e-4)


def test_interval_over_seeds_is_the_wider_of_the_two_at_each_end():
    equal = statistics.interval_over_seeds([0.9, 0.9, 0.9], 100)
    assert equal == pytest.approx(statistics.wilson_interval(90, 100))
    apart = statistics.interval_over_seeds([0.4, 0.5, 0.6], 100)
    assert apart == pytest.approx(statistics.student_interval([0.4, 0.5, 0.6]))
    assert statistics.interval_over_seeds([0.9], 100) == pytest.approx(equal)
    assert statistics.interval_over_seeds([1.0, 0.1], 100)[1] == 1.0


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(0, 0, 1.0), (5, 0, 0.0625), (0, 5, 0.0625), (2, 12, 2 * 106 / 2**14), (4, 4, 1.0)],
)
def test_mcnemar_counts_the_coins_that_differ(only_first, only_second, p_value):
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    assert statistics.mcnemar_p_value(first, second) == pytest.approx(p_value)


def test_mcnemar_refuses_different_problems():
    with pytest.raises(ValueError, match="same problems"):
        statistics.mcnemar_p_value([True], [True, False])
