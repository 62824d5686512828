"""Random numbers that depend on (key, example), never on the device or on how many examples there are."""

import jax
from jax import Array


def per_example_keys(key: Array, index: Array) -> Array:
    """Keys [B], one for each example, from its position [B] in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Unit normal numbers [B, *shape], row i drawn from keys[i]."""
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    # Apart from what takes it: with random numbers before convolutions, libtpu 0.0.52 did not end in 20 minutes.
    return jax.lax.optimization_barrier(noise)


def split(keys: Array, num: int) -> tuple[Array, ...]:
    """`num` independent arrays of keys [B]."""
    return tuple(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream) for stream in range(num))
