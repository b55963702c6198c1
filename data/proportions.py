"""How sure a share is that was counted."""

import math

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
