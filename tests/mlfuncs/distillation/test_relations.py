"""Relations inside a layer: by hand, invariances, gradients, one batch over devices, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import architecture_search, distillation

KEY = jax.random.key(0)
MAPS = jax.random.normal(KEY, (4, 3, 2, 5))


def test_relations_of_examples_by_hand():
    # Gram matrices: the identity, and all ones, whose rows are (1, 1) / sqrt 2.
    apart, alike = jnp.eye(2), jnp.ones((2, 3))
    off = 1 / np.sqrt(2)
    expected = 2 * ((1 - off) ** 2 + off**2) / 4
    np.testing.assert_allclose(distillation.similarity_preserving(apart, alike), expected, rtol=1e-6)


def test_correlations_of_channels_by_hand():
    # Channels of the first example never meet, those of the second always do.
    student = jnp.array([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 2.0]]])
    teacher = jnp.array([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [2.0, 2.0]]])
    off = 1 / np.sqrt(2)
    expected = [0.0, ((1 - off) ** 2 + off**2) * 2 / 2]
    np.testing.assert_allclose(distillation.channel_correlation(student, teacher), expected, atol=1e-6)


def test_scale_rotation_and_order_do_not_matter():
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (30, 30)))[0]
    flat = MAPS.reshape(4, 30)
    other = jax.random.normal(jax.random.key(2), (4, 7))
    base = distillation.similarity_preserving(flat, other)
    for changed in (3 * flat, flat @ rotation, 1e18 * flat):
        np.testing.assert_allclose(distillation.similarity_preserving(changed, other), base, rtol=1e-4)
        np.testing.assert_allclose(distillation.similarity_preserving(changed, flat), 0, atol=1e-6)
    np.testing.assert_allclose(architecture_search.relation_similarity(other, flat), -base, rtol=1e-6)
    turned = MAPS.transpose(0, 2, 1, 3)[:, ::-1]
    np.testing.assert_allclose(distillation.channel_correlation(MAPS, 2 * turned), 0, atol=1e-6)
    assert np.all(np.asarray(distillation.channel_correlation(MAPS, MAPS[::-1, :2])) <= 4)


@pytest.mark.parametrize("loss", [distillation.similarity_preserving, distillation.channel_correlation])
def test_gradients_pass_to_the_student_alone_and_are_finite(loss):
    other = MAPS[::-1]
    student, teacher = jax.grad(lambda s, t: jnp.sum(loss(s, t)), argnums=(0, 1))(MAPS, other)
    assert float(jnp.abs(student).max()) > 0
    np.testing.assert_array_equal(teacher, 0)
    for features in (jnp.zeros_like(MAPS), MAPS.at[0].set(0), MAPS[..., :1] * jnp.ones(5)):
        value, gradient = jax.value_and_grad(lambda s: jnp.sum(loss(s, other)))(features)
        assert np.isfinite(float(value))
        assert np.all(np.isfinite(np.asarray(gradient)))


def test_a_batch_over_devices_is_one_batch():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    student, teacher = jax.random.normal(KEY, (8, 6)), jax.random.normal(jax.random.key(3), (8, 3, 2))
    loss = partial(distillation.similarity_preserving, axis_name="data")
    split = jax.shard_map(loss, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P())
    np.testing.assert_allclose(
        jax.jit(split)(student, teacher), distillation.similarity_preserving(student, teacher), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.similarity_preserving(jnp.ones((2, 3)), jnp.ones((3, 3))), "2 and 3 examples"),
        (lambda: distillation.similarity_preserving(jnp.ones((0, 3)), jnp.ones((0, 3))), "at least one example"),
        (lambda: distillation.similarity_preserving(MAPS, MAPS, eps=0.0), "eps"),
        (lambda: distillation.channel_correlation(MAPS, MAPS[..., :4]), "5 and 4"),
        (lambda: distillation.channel_correlation(jnp.ones(3), jnp.ones(3)), "N, ..., K"),
        (lambda: distillation.channel_correlation(MAPS, MAPS[:3]), "4 and 3 examples"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
