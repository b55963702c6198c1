"""Associative recall on the splits of Zoology (see `mqar`): hours on a GPU, not for a CPU.

python -m train mqar_zoology
"""

from configs import mqar
from train.pipeline import Pipeline


def get_config() -> Pipeline:
    return mqar.recall(mqar.ZOOLOGY)
