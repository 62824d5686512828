"""Forces between embeddings: by hand, invariances, statistics of directions, both Gram forms, sharding, bad input."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import representation

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
RANDOM = np.random.default_rng(0)
ONLINE, TARGET = RANDOM.normal(size=(2, 2, 8, 4)).astype(np.float32)  # two views of eight images
DIRECTIONS = RANDOM.normal(size=(8, 4)).astype(np.float32)
ROTATION = np.linalg.qr(RANDOM.normal(size=(4, 4)))[0].astype(np.float32)


def test_attraction_by_hand():
    # Targets at 0 and 90 degrees: the centroid is at 45. Views at 45 and 135: distances 0 and 2.
    online, target = jnp.array([[[1.0, 1.0]], [[-3.0, 3.0]]]), jnp.array([[[5.0, 0.0]], [[0.0, 0.2]]])
    np.testing.assert_allclose(representation.centroid_attraction(online, target), [1.0], rtol=1e-6)
    # The mean of the views is at 90 degrees, 45 off: 2 - 2 cos 45.
    both = representation.centroid_attraction(online, target, normalise_online_centroid=True)
    np.testing.assert_allclose(both, [2 - np.sqrt(2)], rtol=1e-5)


def test_attraction_of_one_view_and_of_no_direction():
    cosine = np.sum(ONLINE[0] * TARGET[0], -1) / np.linalg.norm(ONLINE[0], axis=-1) / np.linalg.norm(TARGET[0], axis=-1)
    np.testing.assert_allclose(representation.centroid_attraction(ONLINE[:1], TARGET[:1]), 2 - 2 * cosine, rtol=1e-4)
    opposite = np.stack([TARGET[0], -TARGET[0]])
    np.testing.assert_allclose(representation.centroid_attraction(ONLINE, opposite), np.full(8, 2.0), rtol=1e-5)
    np.testing.assert_array_equal(representation.centroid_attraction(0 * ONLINE, TARGET), np.full(8, 2.0))


def test_invariances():
    """Scales of embeddings and a common rotation change nothing; the order of views neither; that of images moves along."""
    loss = representation.embedding_dynamics
    value = loss(ONLINE, TARGET, DIRECTIONS)
    scales = RANDOM.uniform(0.1, 10, (2, 8, 1)).astype(np.float32)
    for others in (
        (ONLINE * scales, TARGET / scales, DIRECTIONS * 5),
        (ONLINE @ ROTATION, TARGET @ ROTATION, DIRECTIONS @ ROTATION),
        (ONLINE[::-1], TARGET, DIRECTIONS),
    ):
        np.testing.assert_allclose(loss(*others), value, rtol=1e-4, atol=1e-5)
    order = RANDOM.permutation(8)
    np.testing.assert_allclose(loss(ONLINE[:, order], TARGET[:, order], DIRECTIONS[order]), value[order], rtol=1e-4)


def by_definition(online, target, directions):
    u = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    mean, rows = u(online).mean(0), u(online).reshape(-1, online.shape[-1])
    forces = 2 - 2 * (mean * u(u(target).mean(0))).sum(-1) + 0.1 * (mean * u(directions)).sum(-1)
    return forces + jnp.sum((rows.T @ rows / len(rows) - jnp.eye(rows.shape[1]) / rows.shape[1]) ** 2)


@pytest.mark.parametrize(("views", "features"), [(1, 12), (2, 4), (11, 4)])  # fewer rows than features; many views
def test_derivatives_are_those_of_the_definition(views, features):
    shapes = ((views, 8, features), (views, 8, features), (8, features))
    online, target, directions = (RANDOM.normal(size=shape).astype(np.float32) for shape in shapes)
    along, weights = jnp.cos(3 * online), jnp.arange(1.0, 9.0)

    def derivatives(loss):
        total = lambda z: (weights * loss(z, target, directions)).sum()  # noqa: E731
        slope = jax.grad(total)
        return total(online), slope(online), jax.jvp(total, (online,), (along,)), jax.jvp(slope, (online,), (along,))

    ours = jax.jit(lambda: derivatives(representation.embedding_dynamics))()
    chex.assert_trees_all_close(ours, jax.jit(lambda: derivatives(by_definition))(), rtol=1e-3, atol=1e-4)
    slope = jax.grad(lambda z: representation.embedding_dynamics(z, target, directions).sum())
    low = slope(jnp.asarray(online, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), slope(online), rtol=0.05, atol=0.1)


def test_drift_is_shared_by_views_and_has_mean_zero():
    gradient = jax.grad(lambda z: representation.brownian_drift(z, DIRECTIONS).sum())(jnp.stack([ONLINE[0]] * 2))
    np.testing.assert_allclose(gradient[0], gradient[1], rtol=1e-5, atol=1e-7)
    # The kick is tangential, of the size of the direction's own tangential part over V |z|.
    unit = ONLINE[0] / np.linalg.norm(ONLINE[0], axis=-1, keepdims=True)
    directions = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=-1, keepdims=True)
    kick = directions - np.sum(directions * unit, -1, keepdims=True) * unit
    expected = kick / np.linalg.norm(ONLINE[0], axis=-1, keepdims=True) / 2
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-3, atol=1e-5)
    count = 10_000
    many = representation.random_directions(KEY, count, 4)
    drift = jax.vmap(lambda n: representation.brownian_drift(ONLINE[:, :1], n[None])[0])(many)
    # Each is within 1 and has a variance of at most 1/4: 6 standard errors.
    assert abs(float(drift.mean())) < 3 / np.sqrt(count)


def test_directions_are_uniform_on_the_sphere():
    count, dim = 10_000, 4
    directions = np.asarray(representation.random_directions(KEY, count, dim))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    # Entries have variance 1/4 and their products at most 1/16: 4.5 standard errors, 14 numbers, below 1 in 10,000 keys.
    assert np.all(np.abs(directions.mean(0)) < 4.5 * 0.5 / np.sqrt(count))
    assert np.all(np.abs(directions.T @ directions / count - np.eye(dim) / dim) < 4.5 * 0.25 / np.sqrt(count))
    np.testing.assert_allclose(representation.random_directions(KEY, 8, dim), directions[:8], rtol=1e-5, atol=1e-6)
    draw = partial(representation.random_directions, num=1, dim=dim, axis_name="data")
    across = jax.jit(jax.shard_map(draw, mesh=MESH, in_specs=P(), out_specs=P("data")))(KEY)
    np.testing.assert_allclose(across, directions[:8], rtol=1e-5, atol=1e-6)


def textbook_dispersion(embeddings):
    rows = np.asarray(embeddings, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    values = np.zeros(rows.shape[1])
    singular = np.linalg.svd(rows, compute_uv=False)
    values[: len(singular)] = singular**2
    return np.sum((values / len(rows) - 1 / rows.shape[1]) ** 2)


@pytest.mark.parametrize("rows", [1, 3, 4, 8])
def test_dispersion_is_that_of_singular_values(rows):
    """Through the small Gram matrix where rows are few, a zero row included."""
    embeddings = ONLINE[0, :rows].copy()
    np.testing.assert_allclose(
        representation.singular_value_dispersion(embeddings), textbook_dispersion(embeddings), rtol=1e-5
    )
    embeddings[0] = 0
    np.testing.assert_allclose(
        representation.singular_value_dispersion(embeddings), textbook_dispersion(embeddings), rtol=1e-5
    )


def test_dispersion_at_its_limits():
    even = jnp.concatenate([jnp.eye(4), -3 * jnp.eye(4)])
    np.testing.assert_allclose(representation.singular_value_dispersion(even), 0, atol=1e-12)
    np.testing.assert_allclose(representation.singular_value_dispersion(jnp.ones((8, 4))), 1 - 1 / 4, rtol=1e-6)
    np.testing.assert_allclose(representation.singular_value_dispersion(jnp.eye(2, 4)), 1 / 2 - 1 / 4, rtol=1e-6)


def test_the_sum_of_its_terms():
    value = representation.embedding_dynamics(ONLINE, TARGET, DIRECTIONS, singular_weight=3.0, brownian_weight=0.5)
    expected = representation.centroid_attraction(ONLINE, TARGET)
    expected += 0.5 * representation.brownian_drift(ONLINE, DIRECTIONS)
    expected += 3 * textbook_dispersion(ONLINE.reshape(16, 4))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert representation.embedding_dynamics(ONLINE.astype(jnp.bfloat16), TARGET, DIRECTIONS).dtype == jnp.float32


def test_targets_and_directions_are_constants_and_gradients_finite():
    slopes = jax.jit(
        jax.grad(lambda *a: representation.embedding_dynamics(*a).sum(), argnums=(0, 1, 2)),
    )
    for scale in (1.0, 0.0):
        online, target, directions = slopes(scale * ONLINE, TARGET, DIRECTIONS)
        assert np.all(np.isfinite(online))
        assert not np.any(target)
        assert not np.any(directions)
    assert np.all(np.isfinite(slopes(jnp.ones_like(ONLINE), jnp.ones_like(ONLINE), DIRECTIONS)[0]))


def test_dispersion_undoes_a_collapse():
    """Gradient descent from almost one direction: attraction alone stays there, with dispersion all directions fill."""
    start = jnp.ones((1, 8, 4)) + 0.05 * ONLINE[:1]

    def descend(weight):
        slope = jax.grad(
            lambda z: representation.embedding_dynamics(
                z, z, DIRECTIONS, singular_weight=weight, brownian_weight=0.0
            ).mean()
        )
        return jax.lax.fori_loop(0, 300, lambda _, z: z - 2.0 * slope(z), start)[0]

    alone, spread = (representation.singular_value_dispersion(jax.jit(descend)(weight)) for weight in (0.0, 4.0))
    assert alone > 0.7
    assert spread < 0.1


def test_a_split_batch_gives_the_loss_of_the_whole():
    images = P(None, "data")
    function = partial(representation.embedding_dynamics, axis_name="data")
    across = jax.jit(
        jax.shard_map(function, mesh=MESH, in_specs=(images, images, P("data")), out_specs=P("data")),
    )
    value = representation.embedding_dynamics(ONLINE, TARGET, DIRECTIONS)
    np.testing.assert_allclose(across(ONLINE, TARGET, DIRECTIONS), value, rtol=1e-5)
    ours, theirs = (
        jax.grad(lambda z, f=f: f(z, TARGET, DIRECTIONS).mean())(ONLINE)
        for f in (across, representation.embedding_dynamics)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: representation.centroid_attraction(ONLINE, TARGET[:1]), r"\(2, 8, 4\) and \(1, 8, 4\)"),
        (lambda: representation.centroid_attraction(ONLINE[0], TARGET[0]), "online"),
        (lambda: representation.centroid_attraction(ONLINE[:0], TARGET[:0]), "at least one view"),
        (lambda: representation.brownian_drift(ONLINE, DIRECTIONS[:3]), r"\(8, 4\).*\(3, 4\)"),
        (lambda: representation.brownian_drift(ONLINE[:, :0], DIRECTIONS[:0]), "at least one view"),
        (lambda: representation.random_directions(KEY, 0, 4), "num"),
        (lambda: representation.random_directions(KEY, 4, 0), "dim"),
        (lambda: representation.singular_value_dispersion(ONLINE), "embeddings"),
        (lambda: representation.singular_value_dispersion(ONLINE[0, :0]), "at least one row"),
        (
            lambda: representation.embedding_dynamics(ONLINE, TARGET, DIRECTIONS, singular_weight=-1.0),
            "singular_weight",
        ),
        (
            lambda: representation.embedding_dynamics(ONLINE, TARGET, DIRECTIONS, brownian_weight=np.inf),
            "brownian_weight",
        ),
        (
            lambda: representation.embedding_dynamics(ONLINE, TARGET, DIRECTIONS, brownian_weight=np.nan),
            "brownian_weight",
        ),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
