"""Numerical kernels. They import jax and numpy only, so they can be lifted out of here."""
