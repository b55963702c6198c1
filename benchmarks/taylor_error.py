"""Error of Taylor attention against softmax: by order and radius, Taylor and minimax coefficients.

    python -m benchmarks.taylor_error

Two errors, both in float64 (docs/results/taylor_error has them as table.md and error.png):

    weight  max |w(x) / exp(x) - 1| for |x| <= radius: the most a single weight can be wrong
    output  rms(out_taylor - out_softmax) / rms(out_softmax) of causal attention over random
            normalised queries and keys, scores radius * cosine, values from a normal distribution
"""

import argparse
import pathlib

import numpy as np
from matplotlib import figure

from kernels import taylor_attention as taylor
from train import run_folder

RADII = (0.5, 1.0, 2.0, 4.0, 8.0)
KINDS = ("taylor", "minimax")
NUM_TOKENS, HEAD_DIM, NUM_TEXTS = 512, 16, 8


def coefficients(kind: str, order: int, radius: float) -> np.ndarray:
    """[order+1] of the polynomial."""
    if kind == "taylor":
        return taylor.taylor_coefficients(order)
    return taylor.minimax_coefficients(order, radius)


def weight_error(polynomial: np.ndarray, radius: float) -> float:
    """max |w/exp - 1| on [-radius, radius]; inf where a weight can be negative."""
    if taylor.positive_radius(polynomial) < radius:
        return np.inf
    x = np.linspace(-radius, radius, 4001)
    return float(np.abs(np.polynomial.polynomial.polyval(x, polynomial) * np.exp(-x) - 1).max())


def random_texts(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of random queries and keys [B, T, T], and values [B, T, H]."""
    rng = np.random.default_rng(seed)
    query, key, value = rng.normal(size=(3, NUM_TEXTS, NUM_TOKENS, HEAD_DIM))
    query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    return query @ key.swapaxes(1, 2), value


def attend(weights: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Causal attention by weights [B, T, T]."""
    weights = np.tril(weights)
    return weights @ value / weights.sum(-1, keepdims=True)


def output_error(polynomial: np.ndarray, radius: float, cosine, value) -> float:
    """Relative root mean square error of the output; inf where a weight can be negative."""
    if taylor.positive_radius(polynomial) < radius:
        return np.inf
    want = attend(np.exp(radius * cosine), value)
    got = attend(np.polynomial.polynomial.polyval(radius * cosine, polynomial), value)
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


def measure() -> dict[tuple[str, int, float], tuple[float, float]]:
    """(kind, order, radius) -> (weight error, output error)."""
    cosine, value = random_texts()
    errors = {}
    for kind in KINDS:
        for order in range(taylor.MAX_ORDER + 1):
            for radius in RADII:
                w = coefficients(kind, order, radius)
                errors[kind, order, radius] = (
                    weight_error(w, radius),
                    output_error(w, radius, cosine, value),
                )
    return errors


def table(errors) -> str:
    """Markdown: a row per order, a column per radius; each cell is Taylor / minimax."""
    lines = [__doc__.strip(), ""]
    for i, name in enumerate(("weight", "output")):
        lines += [
            f"## {name.capitalize()} error, Taylor / minimax",
            "",
            "| order | " + " | ".join(f"radius {radius:g}" for radius in RADII) + " |",
            "| --- |" + " --- |" * len(RADII),
        ]
        for order in range(taylor.MAX_ORDER + 1):
            cells = (
                " / ".join(_percent(errors[kind, order, radius][i]) for kind in KINDS)
                for radius in RADII
            )
            lines.append(f"| {order} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _percent(error: float) -> str:
    """Two digits; a dash for weights that can be negative."""
    if np.isinf(error):
        return "–"
    return f"{100 * error:,.0f}%" if error >= 0.995 else f"{100 * error:.2g}%"


def plot(errors, path: pathlib.Path) -> None:
    """Both errors over the order, a line per radius; Taylor dashed, minimax solid."""
    canvas = figure.Figure(figsize=(9, 4), layout="constrained")
    axes = canvas.subplots(1, 2, sharey=True)
    orders = range(taylor.MAX_ORDER + 1)
    for i, (axis, name) in enumerate(zip(axes, ("weight", "output"), strict=True)):
        for color, radius in enumerate(RADII):
            for kind, style in zip(KINDS, ("--", "-"), strict=True):
                values = {order: errors[kind, order, radius][i] for order in orders}
                safe = [order for order in orders if np.isfinite(values[order])]
                axis.semilogy(
                    safe,
                    [values[order] for order in safe],
                    style,
                    color=f"C{color}",
                    marker=".",
                    label=f"radius {radius:g}" if kind == "minimax" else None,
                )
        axis.set(xlabel="order", title=f"{name} error (dashed: Taylor, solid: minimax)")
        axis.grid(alpha=0.3)
    axes[0].legend()
    canvas.savefig(path, dpi=120)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, default="docs/results/taylor_error")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    errors = measure()
    machine = run_folder.environment()
    origin = f"commit {machine['git_commit']}, {machine['cpu_model']}"
    (folder / "table.md").write_text(
        f"{table(errors)}\n`python -m benchmarks.taylor_error`, {origin}.\n"
    )
    plot(errors, folder / "error.png")
    print(f"wrote {folder}/table.md and error.png")


if __name__ == "__main__":
    main()
