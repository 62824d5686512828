"""The parts of a batch: under pmap one a device, elsewhere the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import parts

WHOLE = {"x": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32), "label": np.arange(16)}
SPLIT = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), WHOLE)


def on_each(function, *arguments, name=parts.AXIS, **options):
    return jax.pmap(function, axis_name=name, **options)(*arguments)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_there_is_an_axis_under_pmap_alone():
    seen = []

    def look(x):
        seen.append(parts.axis())
        return x

    look(0)
    jax.jit(look)(0)
    jax.vmap(look, axis_name="another")(np.arange(2))
    on_each(look, np.arange(8), name="another")
    on_each(look, np.arange(8))
    look(0)
    assert seen == [None, None, None, None, parts.AXIS, None]


def test_positions_count_through_the_global_batch():
    here = on_each(lambda x: parts.positions(len(x)), SPLIT["label"])
    assert here.dtype == jnp.int32
    np.testing.assert_array_equal(here, np.arange(16).reshape(8, 2))
    alone = parts.positions(16)
    assert alone.dtype == jnp.int32
    np.testing.assert_array_equal(alone, np.arange(16))


def test_positions_on_some_of_the_devices():
    here = on_each(lambda x: parts.positions(len(x)), np.zeros((2, 3)), devices=jax.devices()[6:])
    np.testing.assert_array_equal(here, [[0, 1, 2], [3, 4, 5]])


def test_a_mean_over_parts_is_that_of_the_whole():
    mean = lambda tree: parts.mean({name: jnp.mean(x, axis=0) for name, x in tree.items()})  # noqa: E731
    whole = mean(WHOLE)
    for each in (jax.tree.map(lambda x, i=i: x[i], on_each(mean, SPLIT)) for i in range(8)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), each, whole)


def test_joined_is_the_global_batch_on_every_device():
    everywhere = on_each(parts.joined, SPLIT)
    for device in range(8):
        assert_same(jax.tree.map(lambda x, i=device: x[i], everywhere), WHOLE)


def test_own_is_what_was_joined():
    assert_same(on_each(lambda tree: parts.own(parts.joined(tree)), SPLIT), SPLIT)
    assert_same(on_each(lambda _, tree: parts.own(tree), np.arange(8), WHOLE, in_axes=(0, None)), SPLIT)


def test_keys_are_joined_and_cut_too():
    keys = jax.random.split(jax.random.key(0), 16)
    joined = on_each(lambda k: jax.random.key_data(parts.joined(k)), keys.reshape(8, 2))
    np.testing.assert_array_equal(joined, np.broadcast_to(jax.random.key_data(keys), joined.shape))
    own = on_each(lambda _, k: jax.random.key_data(parts.own(k)), np.arange(8), keys, in_axes=(0, None))
    np.testing.assert_array_equal(own.reshape(16, -1), jax.random.key_data(keys))


@pytest.mark.parametrize("function", [parts.mean, parts.joined, parts.own])
def test_a_whole_batch_is_left_alone(function):
    assert function(WHOLE) is WHOLE
    assert_same(jax.jit(function)(WHOLE), WHOLE)
