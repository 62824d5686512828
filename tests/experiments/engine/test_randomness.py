"""Per-example random numbers: row i depends on (key, i) alone, and streams are apart."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine import randomness

KEY = jax.random.key(3)


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


def test_a_key_depends_on_key_and_index_alone():
    keys = randomness.per_example_keys(KEY, jnp.arange(16))
    for i in (0, 3, 15):
        np.testing.assert_array_equal(bits(keys[i]), bits(jax.random.fold_in(KEY, i)))
    np.testing.assert_array_equal(bits(randomness.per_example_keys(KEY, jnp.array([5, 2]))), bits(keys)[[5, 2]])
    assert len({tuple(row) for row in bits(keys)}) == 16
    other = randomness.per_example_keys(jax.random.key(4), jnp.arange(16))
    assert (bits(other) != bits(keys)).any(axis=1).all()


def test_normal_rows_depend_on_their_key_alone():
    keys = randomness.per_example_keys(KEY, jnp.arange(16))
    rows = randomness.normal(keys, (2, 3))
    assert rows.shape == (16, 2, 3)
    np.testing.assert_array_equal(randomness.normal(keys[:4], (2, 3)), rows[:4])
    np.testing.assert_array_equal(randomness.normal(keys[::-1], (2, 3)), rows[::-1])
    np.testing.assert_array_equal(jax.random.normal(keys[7], (2, 3)), rows[7])


def test_normal_has_mean_zero_and_deviation_one():
    numbers = randomness.normal(randomness.per_example_keys(KEY, jnp.arange(1000)), (20,))
    # Standard errors over 20000 numbers are 0.007 and 0.005.
    assert abs(numbers.mean()) < 0.03
    assert abs(numbers.std() - 1) < 0.02
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03


def test_split_streams_differ_and_do_not_depend_on_their_number():
    keys = randomness.per_example_keys(KEY, jnp.arange(4))
    streams = randomness.split(keys, 3)
    assert [stream.shape for stream in streams] == [(4,)] * 3
    assert len({tuple(row) for stream in (keys, *streams) for row in bits(stream)}) == 16
    np.testing.assert_array_equal(bits(randomness.split(keys, 1)[0]), bits(streams[0]))
    np.testing.assert_array_equal(bits(randomness.split(keys[2:3], 3)[1][0]), bits(streams[1][2]))


def test_sharded_and_compiled_numbers_are_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(jnp.arange(16), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))

    @jax.jit
    def draw(index):
        _, stream = randomness.split(randomness.per_example_keys(KEY, index), 2)
        return jax.random.key_data(stream), randomness.normal(stream, (5,))

    alone_keys, alone = draw(jnp.arange(16))
    spread_keys, numbers = draw(spread)
    assert len(numbers.sharding.device_set) == 8
    np.testing.assert_array_equal(spread_keys, alone_keys)
    np.testing.assert_array_equal(numbers, alone)
