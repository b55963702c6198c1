"""Learning rates and widths of `tiny`: the smallest sweep.

python -m train.sweep tiny_learning_rate --num-processes 2
python -m train.sweep tiny_learning_rate --dry-run --launcher slurm --slurm.partition gpu
"""

from train.sweep import Sweep, grid


def get_sweep() -> Sweep:
    return Sweep(
        config="tiny",
        members=grid(
            {
                "model.width": (32, 64),
                "optimizers.policy.peak_learning_rate": (3e-4, 1e-3, 3e-3, 1e-2),
            }
        ),
    )
