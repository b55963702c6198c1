"""Causal attention whose exp is a polynomial: linear in length, constant time per new token."""

from kernels.taylor_attention.api import (
    IMPLEMENTATIONS,
    crossover_length,
    fold,
    query_state,
    taylor_attention,
    taylor_attention_step,
    taylor_attention_sums,
)
from kernels.taylor_attention.features import (
    MAX_FEATURES,
    MAX_ORDER,
    minimax_coefficients,
    num_features,
    polynomial,
    positive_radius,
    taylor_coefficients,
)
from kernels.taylor_attention.sequence import state_before
from kernels.taylor_attention.state import TaylorState, empty_state

__all__ = [
    "IMPLEMENTATIONS",
    "MAX_FEATURES",
    "MAX_ORDER",
    "TaylorState",
    "crossover_length",
    "empty_state",
    "fold",
    "minimax_coefficients",
    "num_features",
    "polynomial",
    "positive_radius",
    "query_state",
    "state_before",
    "taylor_attention",
    "taylor_attention_step",
    "taylor_attention_sums",
    "taylor_coefficients",
]
