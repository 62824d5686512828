"""World models under dropout: masks, a step by hand, dreams, mixtures, bad input.

Five-sigma bounds fail by chance with probability 6e-7 a comparison; keys are fixed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from mlfuncs import world_model

KEY = jax.random.key(0)
SIZES = {"latent_size": 6, "action_size": 2, "hidden_size": 5}


def test_masks_hear_actions_always_and_latents_in_expectation():
    rate, count = 0.3, 1 << 14
    inputs, hidden = world_model.world_model_masks(KEY, **SIZES, batch_shape=(count,), input_rate=rate, hidden_rate=0.1)
    assert (inputs.shape, hidden.shape, inputs.dtype) == ((count, 8), (count, 5), jnp.float32)
    np.testing.assert_array_equal(inputs[:, 6:], np.ones((count, 2)))
    np.testing.assert_allclose(np.unique(inputs[:, :6]), [0, 1 / 0.7], rtol=1e-6)
    np.testing.assert_allclose(np.unique(hidden), [0, 1 / 0.9], rtol=1e-6)
    # E m = 1 with variance r / (1 - r), for each unit.
    assert np.all(np.abs(inputs[:, :6].mean(0) - 1) <= 5 * np.sqrt(rate / (1 - rate) / count))
    assert np.all(np.abs(hidden.mean(0) - 1) <= 5 * np.sqrt(0.1 / 0.9 / count))


def test_mask_edges():
    inputs, hidden = world_model.world_model_masks(KEY, **SIZES, input_rate=0.0, hidden_rate=0.0)
    np.testing.assert_array_equal(inputs, np.ones(8))
    np.testing.assert_array_equal(hidden, np.ones(5))
    assert world_model.world_model_masks(KEY, latent_size=3, action_size=0, hidden_size=1)[0].shape == (3,)
    traced = jax.jit(lambda r: world_model.world_model_masks(KEY, **SIZES, input_rate=r))(0.05)
    np.testing.assert_allclose(traced[0], world_model.world_model_masks(KEY, **SIZES)[0], rtol=1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_step_by_hand():
    params = {
        "kernel": jnp.array([[1.0, 2.0, 3.0, 4.0], [0.5, 0.5, 0.5, 0.5]]),
        "recurrent_kernel": jnp.array([[0.1, 0.2, 0.3, 0.4]]),
        "bias": jnp.array([0.0, 1.0, 0.0, -1.0]),
    }
    carry = {"h": jnp.array([[2.0]]), "c": jnp.array([[3.0]])}
    # Input 1 is scaled by 2, input 2 dropped; the hidden state scaled by 5.
    after = world_model.masked_lstm_step(
        params, carry, jnp.array([[0.3, 9.0]]), jnp.array([[2.0, 0.0]]), jnp.array([[5.0]])
    )
    i, f, g, o = 0.6 * np.array([1, 2, 3, 4]) + 10 * np.array([0.1, 0.2, 0.3, 0.4]) + np.array([0, 1, 0, -1])
    c = sigmoid(f) * 3 + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(after["c"], [[c]], rtol=1e-5)
    np.testing.assert_allclose(after["h"], [[sigmoid(o) * np.tanh(c)]], rtol=1e-5)


def lstm(width=8, hidden=5):
    keys = jax.random.split(jax.random.key(1), 2)
    return {
        "kernel": jax.random.normal(keys[0], (width, 4 * hidden)) / 3,
        "recurrent_kernel": jax.random.normal(keys[1], (hidden, 4 * hidden)) / 3,
        "bias": jnp.zeros(4 * hidden),
    }


def test_bool_masks_are_scaled_and_floats_are_not():
    params, x = lstm(), jax.random.normal(KEY, (3, 8))
    carry = {"h": jax.random.normal(jax.random.key(2), (3, 5)), "c": jnp.ones((3, 5))}
    kept = jax.random.bernoulli(KEY, 0.7, (3, 8)), jax.random.bernoulli(KEY, 0.7, (3, 5))
    rates = {"input_rate": 0.25, "hidden_rate": 0.5}
    step = jax.jit(world_model.masked_lstm_step)
    from_bool = step(params, carry, x, *kept, **rates)
    from_float = step(params, carry, x, kept[0] / 0.75, kept[1] / 0.5, **rates)
    for name in ("h", "c"):
        np.testing.assert_allclose(from_bool[name], from_float[name], rtol=1e-5)
    # One mask for the batch.
    shared = step(params, carry, x, kept[0][:1], kept[1][:1])
    rows = step(params, carry, x, jnp.broadcast_to(kept[0][:1], (3, 8)), jnp.broadcast_to(kept[1][:1], (3, 5)))
    np.testing.assert_array_equal(shared["h"], rows["h"])


def dream(key, **settings):
    """State: the multipliers of the step before, and a clock; the episode ends at the fourth step."""

    def step(key, state, action, masks):
        clock = state["clock"] + action
        return {"clock": clock, "masks": masks}, jax.random.uniform(key), clock >= 4

    return world_model.dream_rollout(
        key,
        step,
        lambda state: jnp.int32(1),
        {"clock": jnp.int32(0), "masks": jnp.zeros(64, bool)},
        lambda key: jax.random.bernoulli(key, 0.5, (64,)),
        **settings,
    )


def test_valid_up_to_and_including_the_end():
    records = dream(KEY, horizon=6)
    np.testing.assert_array_equal(records["states"]["clock"], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(records["done"], [False] * 3 + [True] * 3)
    np.testing.assert_array_equal(records["valid"], [True] * 4 + [False] * 2)
    np.testing.assert_array_equal(records["actions"], np.ones(6))
    assert np.unique(records["rewards"]).size == 6  # a new key at every step
    assert dream(KEY, horizon=1)["valid"].tolist() == [True]


def test_masks_of_an_episode_are_constant_and_differ_between_environments():
    keys = jax.random.split(KEY, 3)
    masks = np.asarray(jax.vmap(lambda key: dream(key, horizon=5, resample="episode"))(keys)["states"]["masks"])[:, 1:]
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[:, :1], masks.shape))
    assert (masks[0, 0] != masks[1, 0]).any()
    assert (masks[1, 0] != masks[2, 0]).any()


def test_masks_of_steps_are_independent():
    keys = jax.random.split(KEY, 16)
    masks = np.asarray(jax.vmap(lambda key: dream(key, horizon=18))(keys)["states"]["masks"])[:, 1:] - 0.5
    products = masks[:, 1:] * masks[:, :-1]  # 16 * 16 * 64 = 2^14 of variance 1/16
    assert abs(products.mean()) <= 5 * 0.25 / np.sqrt(products.size)


def test_a_batch_of_environments_in_one_rollout_equals_the_lstm_by_hand():
    params = lstm()
    start = {"h": jnp.zeros((4, 5)), "c": jnp.zeros((4, 5))}

    def step(key, state, action, masks):
        inputs = jnp.concatenate([state["h"], state["h"][:, :1], action], axis=1)
        after = world_model.masked_lstm_step(params, state, inputs, *masks)
        return after, after["h"].sum(1), after["h"][:, 0] > jnp.array([-9.0, 9.0, 9.0, -9.0])

    masks = lambda key: world_model.world_model_masks(key, **SIZES, batch_shape=(4,), input_rate=0.5)  # noqa: E731
    policy = lambda state: jnp.ones((4, 2))  # noqa: E731
    records = jax.jit(lambda key: world_model.dream_rollout(key, step, policy, start, masks, horizon=3))(KEY)
    np.testing.assert_array_equal(records["valid"], [[True] * 4] + [[False, True, True, False]] * 2)
    assert records["states"]["h"].shape == (3, 4, 5)
    np.testing.assert_array_equal(records["states"]["h"][0], start["h"])
    slope = jax.grad(
        lambda h: world_model.dream_rollout(KEY, step, policy, {**start, "h": h}, masks, horizon=3)["rewards"].sum()
    )
    assert np.all(np.isfinite(jax.jit(slope)(start["h"])))


def test_environments_over_devices_are_those_of_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    one = lambda index: dream(jax.random.fold_in(KEY, index), horizon=4)["rewards"]  # noqa: E731
    expected = jax.vmap(one)(jnp.arange(16))
    sharded = jax.jit(jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=P("data"), out_specs=P("data")))(jnp.arange(16))
    np.testing.assert_array_equal(sharded, expected)


def test_mixture_likelihood_against_scipy():
    keys = jax.random.split(KEY, 4)
    log_weights, means, log_scales = (jax.random.normal(key, (2, 3, 5)) for key in keys[:3])
    targets = jax.random.normal(keys[3], (2, 3))
    weights = np.exp(log_weights) / np.exp(log_weights).sum(-1, keepdims=True)
    density = (weights * scipy.stats.norm.pdf(np.asarray(targets)[..., None], means, np.exp(log_scales))).sum(-1)
    ours = world_model.mixture_density_negative_log_likelihood(log_weights, means, log_scales, targets)
    np.testing.assert_allclose(ours, -np.log(density), rtol=1e-4)
    # Unnormalised weights: a constant changes nothing.
    moved = world_model.mixture_density_negative_log_likelihood(log_weights + 7, means, log_scales, targets)
    np.testing.assert_allclose(moved, ours, rtol=1e-4)


def test_mixture_likelihood_edges():
    one = world_model.mixture_density_negative_log_likelihood(
        jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.array([2.0])
    )
    np.testing.assert_allclose(one, [2 + 0.5 * np.log(2 * np.pi)], rtol=1e-6)
    # Far in the tails of all components, and with an impossible one: finite, with finite gradients.
    arguments = jnp.array([[0.0, -jnp.inf]]), jnp.array([[0.0, 1.0]]), jnp.array([[-4.0, 0.0]])
    loss = lambda *a: world_model.mixture_density_negative_log_likelihood(*a, jnp.array([30.0])).sum()  # noqa: E731
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
    np.testing.assert_allclose(value, 450 * np.exp(8) - 4 + 0.5 * np.log(2 * np.pi), rtol=1e-5)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
    half = world_model.mixture_density_negative_log_likelihood(
        *[jnp.ones((2, 3, 4), jnp.bfloat16)] * 3, jnp.ones((2, 3))
    )
    assert half.dtype == jnp.float32


def test_mixture_draws():
    """2^14 draws of two far components of weights 1/4 and 3/4: share and both means at 5 sigma."""
    count = 1 << 14
    log_weights = jnp.broadcast_to(jnp.log(jnp.array([1.0, 3.0])) + 5, (count, 2))
    means, log_scales = jnp.array([-50.0, 50.0]), jnp.log(jnp.array([2.0, 0.5]))
    draws = np.asarray(
        world_model.sample_mixture_density(
            KEY, log_weights, jnp.broadcast_to(means, (count, 2)), jnp.broadcast_to(log_scales, (count, 2))
        )
    )
    assert draws.shape == (count,)
    first, second = draws[draws < 0], draws[draws > 0]
    assert abs(first.size / count - 0.25) <= 5 * np.sqrt(3 / 16 / count)
    assert abs(first.mean() + 50) <= 5 * 2 / np.sqrt(first.size)
    assert abs(second.mean() - 50) <= 5 * 0.5 / np.sqrt(second.size)
    assert abs(first.std() / 2 - 1) <= 5 / np.sqrt(2 * first.size)


def test_scales_are_clipped_in_sampling_alone():
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    assert np.isfinite(world_model.sample_mixture_density(KEY, one, zero, 300 * one)[0])
    value = world_model.mixture_density_negative_log_likelihood(one, zero, 20 * one, jnp.zeros(1))
    np.testing.assert_allclose(value, [20 + 0.5 * np.log(2 * np.pi)], rtol=1e-6)


def test_bad_masks():
    for name, size in (("latent_size", 0), ("action_size", -1), ("hidden_size", 0)):
        with pytest.raises(ValueError, match=name):
            world_model.world_model_masks(KEY, **{**SIZES, name: size})
    for rate in (-0.1, 1.0, float("nan")):
        for name in ("input_rate", "hidden_rate"):
            with pytest.raises(ValueError, match=name):
                world_model.world_model_masks(KEY, **SIZES, **{name: rate})


def test_bad_steps():
    params, x = lstm(), jnp.ones((3, 8))
    carry = {"h": jnp.ones((3, 5)), "c": jnp.ones((3, 5))}
    good = {
        "params": params,
        "carry": carry,
        "inputs": x,
        "input_mask": jnp.ones((1, 8)),
        "hidden_mask": jnp.ones((3, 5)),
    }
    world_model.masked_lstm_step(**good)
    for name in params:
        with pytest.raises(ValueError, match=name):
            world_model.masked_lstm_step(**{**good, "params": {**params, name: params[name][..., :-1]}})
    for change, match in (
        ({"carry": {**carry, "c": jnp.ones((3, 4))}}, "carry"),
        ({"inputs": jnp.ones((2, 8))}, "batch"),
        ({"inputs": jnp.ones(8)}, "inputs"),
        ({"input_mask": jnp.ones((2, 8))}, "input_mask"),
        ({"hidden_mask": jnp.ones((3, 4))}, "hidden_mask"),
        ({"input_rate": 1.0}, "input_rate"),
        ({"hidden_rate": -1.0}, "hidden_rate"),
    ):
        with pytest.raises(ValueError, match=match):
            world_model.masked_lstm_step(**{**good, **change})


def test_bad_dreams_and_mixtures():
    with pytest.raises(ValueError, match="horizon"):
        dream(KEY, horizon=0)
    with pytest.raises(ValueError, match="resample"):
        dream(KEY, horizon=2, resample="never")
    two, three = jnp.ones((2, 2)), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="log_weights and means"):
        world_model.sample_mixture_density(KEY, two, three, two)
    with pytest.raises(ValueError, match="log_weights and log_scales"):
        world_model.mixture_density_negative_log_likelihood(two, two, three, jnp.ones(2))
    with pytest.raises(ValueError, match="targets"):
        world_model.mixture_density_negative_log_likelihood(two, two, two, jnp.ones(3))
    with pytest.raises(ValueError, match="at least one component"):
        world_model.sample_mixture_density(KEY, *[jnp.ones((2, 0))] * 3)
