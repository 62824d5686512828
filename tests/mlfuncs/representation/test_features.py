"""Features: the bottleneck, standardisation, neighbours and kernel alignment, with their edges, split sets, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import representation

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
X, Y = jax.random.normal(KEY, (2, 16, 4))
LABELS = jnp.arange(16) % 3


def over_devices(function, specs, out):
    return jax.jit(jax.shard_map(partial(function, axis_name="data"), mesh=MESH, in_specs=specs, out_specs=out))


def test_bottleneck_by_hand():
    # (3, 4) has length 5; the second column has length 2.
    out = representation.normalized_bottleneck(
        jnp.array([3.0, 4.0]), jnp.eye(2), jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, -2.0]])
    )
    np.testing.assert_allclose(out, [0.6, -0.8], rtol=1e-6)
    kernel, bias, last = jax.random.normal(KEY, (4, 5)), jnp.ones(5), jax.random.normal(KEY, (5, 7))
    hidden = np.asarray(X.reshape(2, 8, 4) @ kernel + 1)
    hidden = hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
    out = representation.normalized_bottleneck(X.reshape(2, 8, 4), kernel, bias, last)
    np.testing.assert_allclose(out, hidden @ (last / np.linalg.norm(last, axis=0)), rtol=1e-4, atol=1e-5)
    # The length of a direction is frozen: no gradient along it.
    gradient = jax.jit(jax.grad(lambda v: representation.normalized_bottleneck(X, kernel, bias, v)[0].sum()))(last)
    np.testing.assert_allclose((gradient * last).sum(0), np.zeros(7), atol=1e-5)


def test_bottleneck_at_zero():
    run = jax.jit(jax.value_and_grad(lambda *x: representation.normalized_bottleneck(*x).sum(), argnums=(0, 1, 2, 3)))
    value, gradients = run(jnp.zeros((1, 2)), jnp.eye(2), jnp.zeros(2), jnp.zeros((2, 3)))
    assert value == 0
    assert all(np.all(np.isfinite(x)) for x in gradients)


def test_standardised_features():
    out = representation.standardize_features(X, Y)
    reference = np.asarray(X, np.float64)
    np.testing.assert_allclose(out, (Y - reference.mean(0)) / reference.std(0, ddof=1), rtol=1e-4, atol=1e-5)
    # A dead unit is only centred, also where its mean is off by a rounding.
    dead = X.at[:, 1].set(0.1)
    out = jax.jit(representation.standardize_features)(dead, Y)
    np.testing.assert_allclose(out[:, 1], Y[:, 1] - 0.1, rtol=1e-5, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: representation.standardize_features(x, Y).sum()))(dead)
    assert np.all(np.isfinite(gradient))
    split = over_devices(representation.standardize_features, (P("data"), P("data")), P("data"))
    np.testing.assert_allclose(split(dead, Y), out, rtol=1e-4, atol=1e-6)


def test_neighbours_by_hand():
    train, labels = jnp.array([[0.0], [1.0], [2.0], [10.0], [11.0]]), jnp.array([7, 7, 3, 3, -5])
    vote = representation.nearest_neighbor_predictions
    test = jnp.array([[0.1], [10.6]])
    np.testing.assert_array_equal(vote(train, labels, test, neighbors=1), [7, -5])
    np.testing.assert_array_equal(vote(train, labels, test, neighbors=3), [7, 3])
    np.testing.assert_array_equal(vote(train, labels, test, neighbors=2), [7, -5])  # one vote each: the smaller label
    np.testing.assert_array_equal(vote(train, labels, test, neighbors=5), [3, 3])  # two each of 7 and 3
    assert vote(train, labels, test, neighbors=1).dtype == jnp.int32


def test_neighbours_far_from_the_origin_and_split():
    expected = representation.nearest_neighbor_predictions(X, LABELS, Y, neighbors=3)
    distances = np.linalg.norm(np.asarray(Y)[:, None] - np.asarray(X)[None], axis=-1)
    nearest = np.asarray(LABELS)[np.argsort(distances, 1)[:, :3]]
    np.testing.assert_array_equal(expected, [np.bincount(row).argmax() for row in nearest])
    coarse = [jnp.round(x * 64) / 64 for x in (X, Y)]
    near = representation.nearest_neighbor_predictions(coarse[0], LABELS, coarse[1], neighbors=3)
    far = representation.nearest_neighbor_predictions(coarse[0] + 4096, LABELS, coarse[1] + 4096, neighbors=3)
    np.testing.assert_array_equal(near, far)
    split = over_devices(partial(representation.nearest_neighbor_predictions, neighbors=3), P("data"), P("data"))
    np.testing.assert_array_equal(split(X, LABELS, Y), expected)


def alignment(x, y):
    x, y = (np.asarray(z, np.float64).reshape(len(z), -1) for z in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    return np.sum((y.T @ x) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


@pytest.mark.parametrize("width", [3, 40])  # few and many features: cross-products and Gram matrices
def test_alignment(width):
    x, y = jax.random.normal(KEY, (16, width)), jax.random.normal(jax.random.key(1), (16, 2, width))
    run = jax.jit(representation.centered_kernel_alignment)
    np.testing.assert_allclose(run(x, y), alignment(x, y), rtol=1e-4)
    rotation = jnp.linalg.qr(jax.random.normal(KEY, (width, width)))[0]
    np.testing.assert_allclose(run(x, 1e-12 * x @ rotation + 0.0), 1, rtol=1e-4)
    np.testing.assert_allclose(run(1e12 * x, x), 1, rtol=1e-4)
    split = over_devices(representation.centered_kernel_alignment, (P("data"), P("data")), P())
    np.testing.assert_allclose(split(x, y), run(x, y), rtol=1e-4)


def test_alignment_with_constant_features_is_zero():
    run = jax.jit(jax.value_and_grad(representation.centered_kernel_alignment, argnums=(0, 1)))
    for first, second in ((X, jnp.full((16, 3), 0.1)), (jnp.full((16, 60), 0.1), X)):
        value, gradients = run(first, second)
        assert value == 0
        assert all(np.all(x == 0) for x in gradients)
    assert np.isnan(run(X.at[0, 0].set(jnp.nan), X)[0])


FOUR = jnp.ones((4, 4))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: representation.normalized_bottleneck(FOUR[:, :2], FOUR, jnp.ones(4), FOUR), "features"),
        (lambda: representation.normalized_bottleneck(FOUR, FOUR, jnp.ones(3), FOUR), "first_bias"),
        (lambda: representation.normalized_bottleneck(FOUR, FOUR, jnp.ones(4), FOUR[:2]), "second_kernel"),
        (lambda: representation.standardize_features(FOUR[:1], FOUR), "reference"),
        (lambda: representation.standardize_features(FOUR, FOUR[:, :2]), "features"),
        (lambda: representation.nearest_neighbor_predictions(X, LABELS, Y, neighbors=0), "neighbors"),
        (lambda: representation.nearest_neighbor_predictions(X, LABELS, Y, neighbors=17), "neighbors"),
        (lambda: representation.nearest_neighbor_predictions(X, LABELS * 1.0, Y), "train_labels"),
        (lambda: representation.nearest_neighbor_predictions(X, LABELS[:2], Y), "train_labels"),
        (lambda: representation.nearest_neighbor_predictions(X, LABELS, Y[:, :2]), "test_features"),
        (lambda: representation.centered_kernel_alignment(X, Y[:2]), "first and second"),
        (lambda: representation.centered_kernel_alignment(X[:1], Y[:1]), "at least 2"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
