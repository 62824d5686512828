"""Shared helpers on arrays: the largest values of a long axis are those of `jax.lax.top_k`, ties, NaN and signs included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs._arrays import top_k

RANDOM = np.random.default_rng(0)
SPECIAL = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45], np.float32)


def rows(name, shape):
    drawn = RANDOM.normal(size=shape)
    of_few = lambda values: values[RANDOM.integers(0, len(values), shape)]  # noqa: E731
    return {
        "normal": drawn,
        "ties": of_few(np.array([1.0, 2.0, 3.0])),
        "few": np.where(RANDOM.random(shape) < 0.01, drawn, -np.inf),
        "special": of_few(SPECIAL),
        "minus NaN": np.where(RANDOM.random(shape) < 0.005, drawn, np.copysign(np.nan, -1)),
        "constant": np.zeros(shape),
    }[name].astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize("length", [1023, 1024, 6400, 6411])
@pytest.mark.parametrize("name", ["normal", "ties", "few", "special", "minus NaN", "constant"])
def test_the_largest_are_those_of_lax(name, length, k):
    x = rows(name, (4, length))
    expected, ours = jax.lax.top_k(x, k), jax.jit(top_k, static_argnums=1)(x, k)
    np.testing.assert_array_equal(ours[1], expected[1])
    # To the bit: signs of 0 and NaN too.
    np.testing.assert_array_equal(np.asarray(ours[0]).view(np.int32), np.asarray(expected[0]).view(np.int32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8])
def test_other_types_and_axes(dtype):
    x = jnp.asarray(RANDOM.integers(0, 100, (2, 3, 4099)), dtype)
    for shaped in (x, x[0, 0], x[:0]):
        for ours, expected in zip(top_k(shaped, 5), jax.lax.top_k(shaped, 5), strict=True):
            assert ours.dtype == expected.dtype
            np.testing.assert_array_equal(ours, expected)


def test_derivatives_and_maps_are_those_of_lax():
    x, change = jnp.asarray(rows("ties", (2, 3, 2048)), jnp.float32), jnp.asarray(rows("normal", (2, 3, 2048)))

    def results(function):
        value = lambda x: jnp.sum(jax.vmap(lambda row: function(row, 9))(x)[0] ** 3)  # noqa: E731
        slope = jax.grad(value)
        return slope(x), jax.jvp(slope, (x,), (change,))[1]

    jax.tree.map(np.testing.assert_array_equal, results(top_k), results(jax.lax.top_k))
