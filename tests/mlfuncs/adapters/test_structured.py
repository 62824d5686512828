"""Structured linear layers: masks by hand, groups and masks against dense layers, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import adapters

KEY = jax.random.key(0)
VERTICALS = jnp.array([0, 1, 0, 1])
X, KERNEL = jax.random.normal(KEY, (2, 5, 6)), jax.random.normal(KEY, (2, 3, 4))


def test_masks_by_hand():
    mask = adapters.vertical_connection_mask(VERTICALS, num_verticals=2, width=3, shared=1)
    own = [[1, 0, 1, 0]] * 2 + [[0, 1, 0, 1]] * 2
    np.testing.assert_array_equal(mask, np.array([[1, 1, 1, 1], *own], bool))
    for shared in (0, 3):
        mask = adapters.vertical_connection_mask(VERTICALS, num_verticals=2, width=3, shared=shared)
        assert mask.shape == (shared + 2 * (3 - shared), 4)
        np.testing.assert_array_equal(mask.sum(0), np.full(4, 3))  # every class sees `width` units
    assert jax.jit(lambda v: adapters.vertical_connection_mask(v, num_verticals=2, width=3))(VERTICALS).shape == (6, 4)


def test_groups_are_a_block_diagonal_layer():
    dense = jax.scipy.linalg.block_diag(*KERNEL)
    np.testing.assert_allclose(
        adapters.grouped_linear(X, KERNEL, jnp.arange(8.0)), X @ dense + jnp.arange(8.0), rtol=1e-5
    )
    one = jax.random.normal(KEY, (1, 6, 4))
    np.testing.assert_allclose(adapters.grouped_linear(X, one), X @ one[0], rtol=1e-5, atol=1e-5)
    mask = dense != 0
    np.testing.assert_allclose(
        adapters.masked_linear(X, dense + 7, mask), X @ ((dense + 7) * mask), rtol=1e-4, atol=1e-5
    )


def test_cut_connections_learn_nothing_whatever_they_hold():
    mask = adapters.vertical_connection_mask(VERTICALS, num_verticals=2, width=3)
    kernel = jnp.where(mask, 1.0, jnp.nan)
    run = jax.jit(jax.value_and_grad(lambda k: adapters.masked_linear(X, k, mask, jnp.ones(4)).sum()))
    value, gradient = run(kernel)
    assert np.isfinite(value)
    np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(mask)], 0)
    assert adapters.masked_linear(X.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), mask).dtype == jnp.bfloat16


mask_of = adapters.vertical_connection_mask


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mask_of(VERTICALS * 1.0, num_verticals=2, width=3), "class_vertical"),
        (lambda: mask_of(VERTICALS, num_verticals=1, width=3), "class_vertical"),
        (lambda: mask_of(VERTICALS, num_verticals=2, width=0), "width"),
        (lambda: mask_of(VERTICALS, num_verticals=2, width=3, shared=4), "shared"),
        (lambda: mask_of(VERTICALS, num_verticals=2, width=3, shared=-1), "shared"),
        (lambda: adapters.grouped_linear(X[..., :5], KERNEL), "inputs"),
        (lambda: adapters.grouped_linear(X, KERNEL[0]), "kernel"),
        (lambda: adapters.grouped_linear(X, KERNEL, jnp.ones(3)), "bias"),
        (lambda: adapters.masked_linear(X, jnp.ones((6, 4)), jnp.ones((6, 3))), "mask"),
        (lambda: adapters.masked_linear(X, jnp.ones((5, 4)), jnp.ones((5, 4))), "inputs"),
        (lambda: adapters.masked_linear(X, jnp.ones((6, 4)), jnp.ones((6, 4)), jnp.ones(3)), "bias"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
