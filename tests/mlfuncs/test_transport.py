"""Optimal transport: marginals, limits, agreement with SciPy, sharding, bad input."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.sharding import PartitionSpec as P

from mlfuncs import transport

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def over_devices(function, *specs, out=None):
    """`function` inside shard_map over eight devices."""
    return jax.jit(jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=P("data") if out is None else out))


@pytest.mark.parametrize("regularization", [0.05, 1.0])
def test_marginals(regularization):
    cost = jax.random.uniform(KEY, (7, 4))
    source = jnp.array([0.1, 0.2, 0.05, 0.15, 0.1, 0.3, 0.1])
    target = jnp.array([0.4, 0.1, 0.3, 0.2])
    plan = transport.sinkhorn_plan(cost, regularization=regularization, iterations=500, source=source, target=target)
    np.testing.assert_allclose(plan.sum(1), source, rtol=1e-3)
    np.testing.assert_allclose(plan.sum(0), target, rtol=1e-5)
    # One iteration already has exact columns: they are scaled last.
    np.testing.assert_allclose(transport.sinkhorn_plan(cost, iterations=1).sum(0), np.full(4, 0.25), rtol=1e-5)


def test_two_by_two_by_hand():
    # C = [[0, 1], [1, 0]], uniform masses: P is proportional to [[1, e], [e, 1]] with e = exp(-1 / lambda).
    e = np.exp(-1 / 0.5)
    plan = transport.sinkhorn_plan(jnp.array([[0.0, 1.0], [1.0, 0.0]]), regularization=0.5, iterations=50)
    np.testing.assert_allclose(plan, np.array([[1, e], [e, 1]]) / (2 + 2 * e), rtol=1e-5)


def test_small_regularization_reaches_the_assignment():
    cost = jax.random.uniform(KEY, (6, 6))
    plan = transport.sinkhorn_plan(cost, regularization=1e-3, iterations=4000)
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    np.testing.assert_allclose(plan[rows, columns], np.full(6, 1 / 6), atol=1e-3)
    np.testing.assert_allclose(jnp.sum(plan * cost), np.mean(np.asarray(cost)[rows, columns]), atol=1e-3)


def test_large_regularization_is_independent_and_small_does_not_underflow():
    cost = 1e4 * jax.random.uniform(KEY, (5, 5))
    np.testing.assert_allclose(transport.sinkhorn_plan(cost, regularization=1e9), np.full((5, 5), 0.04), rtol=1e-3)
    assert np.all(np.isfinite(transport.sinkhorn_plan(cost, regularization=1e-2, iterations=100)))


def test_permuting_rows_and_columns_permutes_the_plan():
    cost = jax.random.uniform(KEY, (5, 6))
    rows, columns = jnp.array([2, 0, 1, 4, 3]), jnp.array([5, 4, 0, 1, 2, 3])
    np.testing.assert_allclose(
        transport.sinkhorn_plan(cost[rows][:, columns]), transport.sinkhorn_plan(cost)[rows][:, columns], rtol=1e-5
    )


def test_rows_and_columns_without_mass_stay_empty_with_finite_gradients():
    cost = jax.random.uniform(KEY, (3, 3))
    masses = jnp.array([0.5, 0.5, 0.0])

    def total(cost, source, target):
        return jnp.sum(cost * transport.sinkhorn_plan(cost, source=source, target=target))

    plan = transport.sinkhorn_plan(cost, source=masses, target=masses)
    np.testing.assert_array_equal(plan[2], np.zeros(3))
    np.testing.assert_array_equal(plan[:, 2], np.zeros(3))
    for gradient in jax.grad(total, argnums=(0, 1, 2))(cost, masses, masses):
        assert np.all(np.isfinite(gradient))


def test_gradient_of_a_converged_plan():
    # Danskin: the gradient of the regularised optimum with respect to the cost is the plan.
    cost = jax.random.uniform(KEY, (4, 4))

    def optimum(cost):
        plan = transport.sinkhorn_plan(cost, regularization=0.3, iterations=300)
        return jnp.sum(plan * cost) + 0.3 * jnp.sum(plan * (jnp.log(plan) - 1))

    np.testing.assert_allclose(
        jax.grad(optimum)(cost), transport.sinkhorn_plan(cost, regularization=0.3, iterations=300), atol=1e-4
    )


def test_low_precision_costs_give_a_float32_plan():
    plan = transport.sinkhorn_plan(jax.random.uniform(KEY, (4, 4)).astype(jnp.bfloat16))
    assert plan.dtype == jnp.float32
    assert np.isnan(transport.sinkhorn_plan(jnp.array([[jnp.nan, 1.0], [1.0, 0.0]]))).any()


@pytest.mark.parametrize("masses", [False, True])
def test_sharded_plan_equals_that_of_one_device(masses):
    cost = jax.random.uniform(KEY, (16, 6))
    source = jax.nn.softmax(jnp.arange(16.0) / 8) if masses else None
    target = jax.nn.softmax(jnp.arange(6.0)) if masses else None
    expected = transport.sinkhorn_plan(cost, source=source, target=target)
    if masses:
        function = lambda c, s: transport.sinkhorn_plan(c, source=s, target=target, axis_name="data")  # noqa: E731
        sharded = over_devices(function, P("data"), P("data"))(cost, source)
    else:
        sharded = over_devices(partial(transport.sinkhorn_plan, axis_name="data"), P("data"))(cost)
    np.testing.assert_allclose(sharded, expected, rtol=1e-4, atol=1e-7)


def test_gradient_of_a_sharded_plan_equals_that_of_one_device():
    cost = jax.random.uniform(KEY, (16, 6))
    weights = jax.random.uniform(jax.random.key(1), (16, 6))

    def sharded(cost):
        plan = over_devices(partial(transport.sinkhorn_plan, axis_name="data"), P("data"))(cost)
        return jnp.sum(plan * weights)

    expected = jax.grad(lambda cost: jnp.sum(transport.sinkhorn_plan(cost) * weights))(cost)
    np.testing.assert_allclose(jax.grad(sharded)(cost), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 17, 64])
def test_exact_coupling_is_a_permutation_of_least_cost(batch):
    data, noise = jax.random.normal(KEY, (2, batch, 3, 2))
    partner = np.asarray(transport.minibatch_coupling(data, noise))
    assert sorted(partner) == list(range(batch))
    assert partner.dtype == np.int32
    cost = np.sum((np.asarray(data)[:, None] - np.asarray(noise)[None]) ** 2, axis=(2, 3))
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    np.testing.assert_allclose(cost[np.arange(batch), partner].sum(), cost[rows, columns].sum(), rtol=1e-5)


def test_exact_coupling_beats_every_permutation():
    data, noise = jax.random.normal(KEY, (2, 4, 2))
    cost = np.sum((np.asarray(data)[:, None] - np.asarray(noise)[None]) ** 2, axis=2)
    best = min(itertools.permutations(range(4)), key=lambda order: sum(cost[i, j] for i, j in enumerate(order)))
    assert tuple(transport.minibatch_coupling(data, noise).tolist()) == best


def test_exact_coupling_lowers_the_variance_over_pairings():
    # In 2-D the pairing removes most of the conditional variance of noise given data.
    draws = 60
    data = jax.random.normal(KEY, (128, 2))
    noise = jax.random.normal(jax.random.key(1), (draws, 128, 2))
    partner = jax.vmap(lambda z: transport.minibatch_coupling(data, z))(noise)
    coupled = jnp.take_along_axis(noise, partner[..., None], axis=1)
    assert jnp.mean(jnp.var(coupled, axis=0)) < 0.3 * jnp.mean(jnp.var(noise, axis=0))


def test_couplings_compile_and_pass_no_gradient():
    data, noise = jax.random.normal(KEY, (2, 8, 3))
    np.testing.assert_array_equal(
        jax.jit(transport.minibatch_coupling)(data, noise), transport.minibatch_coupling(data, noise)
    )
    # Arrays that a compiled function closes over are concrete within its trace.
    data_inside = jax.jit(lambda z: transport.minibatch_coupling(data, z))(noise)
    np.testing.assert_array_equal(data_inside, transport.minibatch_coupling(data, noise))
    broken = data * jnp.nan
    with pytest.raises(ValueError, match="data must be finite"):
        jax.jit(lambda z: transport.minibatch_coupling(broken, z))(noise)
    gradient = jax.grad(lambda d: jnp.sum(noise[transport.minibatch_coupling(d, noise)] * d))(data)
    np.testing.assert_allclose(gradient, noise[transport.minibatch_coupling(data, noise)], rtol=1e-6)


def test_sharded_coupling():
    data, noise = jax.random.normal(KEY, (2, 32, 3))
    whole = over_devices(partial(transport.minibatch_coupling, axis_name="data"), P("data"), P("data"))(data, noise)
    np.testing.assert_array_equal(whole, transport.minibatch_coupling(data, noise))
    # Without a name each device couples its own examples, as the paper does.
    own = over_devices(transport.minibatch_coupling, P("data"), P("data"))(data, noise)
    np.testing.assert_array_equal(own[4:8], transport.minibatch_coupling(data[4:8], noise[4:8]))


def test_entropic_coupling_follows_the_plan():
    data, noise = jax.random.normal(KEY, (2, 4, 2))
    draws = 20_000
    keys = jax.random.split(jax.random.key(1), draws)
    partner = jax.vmap(lambda key: transport.entropic_coupling(key, data, noise, regularization=0.3))(keys)
    frequency = jnp.mean(jax.nn.one_hot(partner, 4), axis=0)
    cost = jnp.sum((data[:, None] - noise[None]) ** 2, axis=2)
    plan = transport.sinkhorn_plan(cost / jnp.mean(cost), regularization=0.3, iterations=100)
    expected = plan / plan.sum(1, keepdims=True)
    # 16 frequencies, each within 5 standard errors.
    assert np.all(np.abs(frequency - expected) < 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-6)


def test_entropic_coupling_with_little_regularization_is_the_exact_one():
    data = 10 * jnp.arange(6.0)[:, None]
    noise = data[jnp.array([3, 1, 5, 0, 2, 4])] + 0.1
    np.testing.assert_array_equal(
        transport.entropic_coupling(KEY, data, noise, regularization=1e-3, iterations=500),
        transport.minibatch_coupling(data, noise),
    )


def test_sharded_entropic_coupling():
    data, noise = jax.random.normal(KEY, (2, 32, 3))
    function = lambda d, n: transport.entropic_coupling(KEY, d, n, axis_name="data")  # noqa: E731
    np.testing.assert_array_equal(
        over_devices(function, P("data"), P("data"))(data, noise), transport.entropic_coupling(KEY, data, noise)
    )


def test_not_a_number_ends_inside_compiled_code():
    data = jnp.ones((4, 2)).at[0, 0].set(jnp.nan)
    partner = jax.jit(transport.minibatch_coupling)(data, jnp.ones((4, 2)))
    assert partner.shape == (4,)


COST, PAIR = jnp.ones((2, 3)), jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: transport.sinkhorn_plan(jnp.ones(3)), "cost"),
        (lambda: transport.sinkhorn_plan(jnp.ones((0, 3))), "cost"),
        (lambda: transport.sinkhorn_plan(COST, regularization=0.0), "regularization"),
        (lambda: transport.sinkhorn_plan(COST, iterations=0), "iterations"),
        (lambda: transport.sinkhorn_plan(COST, source=jnp.ones(3)), "source"),
        (lambda: transport.sinkhorn_plan(COST, target=jnp.ones(2)), "target"),
        (lambda: transport.sinkhorn_plan(COST, target=jnp.array([-1.0, 1.0, 1.0])), "target"),
        (lambda: transport.minibatch_coupling(PAIR, jnp.ones((3, 3))), "noise"),
        (lambda: transport.minibatch_coupling(jnp.array(1.0), jnp.array(1.0)), "data"),
        (lambda: transport.minibatch_coupling(jnp.ones((0, 3)), jnp.ones((0, 3))), "data"),
        (lambda: transport.minibatch_coupling(PAIR * jnp.nan, PAIR), "data must be finite"),
        (lambda: transport.entropic_coupling(KEY, PAIR, PAIR * jnp.inf), "noise must be finite"),
        (lambda: transport.entropic_coupling(KEY, PAIR, PAIR, regularization=0.0), "regularization"),
        (lambda: transport.entropic_coupling(KEY, PAIR, PAIR, iterations=0), "iterations"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_exact_coupling_of_batches_far_from_the_origin():
    generator = np.random.default_rng(0)
    data = (generator.standard_normal((64, 4)) + 1000).astype(np.float32)
    noise = data[::-1] + 0.1 * generator.standard_normal((64, 4)).astype(np.float32)
    cost = ((data[:, None].astype(np.float64) - noise[None]) ** 2).sum(-1)
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    pairing = np.asarray(transport.minibatch_coupling(data, noise))
    np.testing.assert_allclose(cost[np.arange(64), pairing].sum(), cost[rows, columns].sum(), rtol=1e-4)
