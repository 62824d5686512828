"""The boundary condition, the consistency function, and the norm without gain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import consistency


def test_boundary_is_exact():
    c = consistency.boundary_preconditioning(jnp.array([0.002]))
    assert float(c["c_skip"][0]) == 1
    assert float(c["c_out"][0]) == 0


def test_hand_worked_coefficients():
    c = consistency.boundary_preconditioning(0.75, sigma_data=1.0, sigma_min=0.0)
    np.testing.assert_allclose(c["c_skip"], 1 / (0.75**2 + 1), rtol=1e-6)
    np.testing.assert_allclose(c["c_out"], 0.75 / 1.25, rtol=1e-6)  # sqrt(0.75^2 + 1) = 1.25
    np.testing.assert_allclose(c["c_in"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(c["c_noise"], np.log(0.75) / 4, rtol=1e-6)


def test_coefficients_and_gradients_are_finite_at_zero():
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        value, slope = jax.value_and_grad(lambda s, name=name: consistency.boundary_preconditioning(s)[name])(0.0)
        assert np.isfinite(value)
        assert np.isfinite(slope)


def test_consistency_function_is_the_identity_at_the_boundary():
    function = consistency.consistency_function(lambda x, c_noise: 100 * jnp.cos(x) + c_noise[:, None, None])
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    np.testing.assert_array_equal(function(x, jnp.full(3, 0.002)), x)
    np.testing.assert_array_equal(function(x, 0.002), x)


def test_consistency_function_calls_the_network_as_documented():
    seen = {}

    def network(x, c_noise):
        seen.update(x=x, c_noise=c_noise)
        return jnp.ones_like(x)

    x = jnp.full((2, 3), 8.0)
    sigma = jnp.array([1.2, 80.0])
    out = consistency.consistency_function(network)(x, sigma)
    np.testing.assert_allclose(
        seen["x"], 8.0 / np.sqrt(np.array([1.2, 80.0]) ** 2 + 0.25)[:, None] * np.ones((2, 3)), 1e-6
    )
    np.testing.assert_allclose(seen["c_noise"], np.log([1.2, 80.0]) / 4, rtol=1e-6)
    c = consistency.boundary_preconditioning(sigma)
    np.testing.assert_allclose(out, (c["c_skip"] * 8 + c["c_out"])[:, None] * np.ones((2, 3)), rtol=1e-6)


def test_non_scaling_layer_norm_hand_worked():
    x = jnp.array([[1.0, 3.0], [5.0, 5.0]])
    np.testing.assert_allclose(consistency.non_scaling_layer_norm(x), [[-1, 1], [0, 0]], atol=1e-6)
    shifted = consistency.non_scaling_layer_norm(x, jnp.array([10.0, 20.0]))
    np.testing.assert_allclose(shifted, [[9, 21], [10, 20]], atol=1e-5)


def test_non_scaling_layer_norm_invariance_and_edges():
    x = jax.random.normal(jax.random.key(0), (4, 5, 16))
    np.testing.assert_allclose(
        consistency.non_scaling_layer_norm(7 * x + 3), consistency.non_scaling_layer_norm(x), atol=1e-4
    )
    gradient = jax.grad(lambda x: jnp.sum(consistency.non_scaling_layer_norm(x) ** 3))(jnp.ones((2, 4)))
    assert bool(jnp.all(jnp.isfinite(gradient)))
    half = consistency.non_scaling_layer_norm((300 * x).astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), consistency.non_scaling_layer_norm(x), atol=0.05)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: consistency.boundary_preconditioning(1.0, sigma_data=0.0), "sigma_data"),
        (lambda: consistency.boundary_preconditioning(1.0, sigma_min=-1.0), "sigma_min"),
        (lambda: consistency.boundary_preconditioning(-1.0), "sigma"),
        (lambda: consistency.consistency_function(lambda x, s: x, sigma_data=-1.0), "sigma_data"),
        (lambda: consistency.consistency_function(lambda x, s: x)(jnp.ones((2, 3)), jnp.ones(3)), "sigma"),
        (lambda: consistency.non_scaling_layer_norm(jnp.ones((2, 3)), jnp.ones(2)), "bias"),
        (lambda: consistency.non_scaling_layer_norm(jnp.ones((2, 3)), eps=0.0), "eps"),
        (lambda: consistency.non_scaling_layer_norm(1.0), "x"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
