"""Numerical kernels. They import jax and numpy only, so that they can be lifted out of this repository."""
