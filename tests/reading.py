"""What a model says of whole texts, read by one compiled program whatever their length."""

import functools

import jax
import numpy as np

ROOM = 32


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model, params, tokens):
    out = model.outputs(params, tokens)
    return out.logits, out.value


def read(model, params, text):
    """Logits `[T, V]` and values `[T]` after every token of one text `[T]`, as numpy arrays.

    The text is filled up with token 0 to a multiple of ROOM: of what follows a token it knows
    nothing.
    """
    length = len(text)
    padded = np.pad(np.asarray(text, np.int32), (0, -length % ROOM))
    logits, value = jax.device_get(_outputs(model, params, padded[None]))
    return logits[0, :length], value[0, :length]


def log_softmax(logits):
    """Of the last axis, in numpy."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
