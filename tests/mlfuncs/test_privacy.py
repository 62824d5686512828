"""Gradient inversion: one cosine over all leaves, the objective at the truth, a reconstruction, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlfuncs import dropout, privacy, vision

KEY = jax.random.key(0)
RATE = 0.5


def tree(*leaves):
    return {f"leaf{i}": jnp.asarray(leaf, jnp.float32) for i, leaf in enumerate(leaves)}


def test_distance_by_hand():
    # One cosine: (3 * 4 + 4 * 3) / 25; the mean of those of leaves would be 1.
    g, target = tree([3.0], [[4.0]]), tree([4.0], [[3.0]])
    np.testing.assert_allclose(privacy.gradient_cosine_distance(g, target), 1 - 24 / 25, rtol=1e-5)
    minus = jax.tree.map(jnp.negative, g)
    np.testing.assert_allclose(privacy.gradient_cosine_distance(g, minus), 2, rtol=1e-6)


def test_distance_ignores_scale():
    g = tree(jax.random.normal(KEY, (3, 4)), jax.random.normal(jax.random.key(1), (4,)))
    other = tree(jax.random.normal(jax.random.key(2), (3, 4)), jnp.ones(4))
    for c in (1e-3, 1.0, 1e4):
        scaled = jax.tree.map(lambda x, c=c: c * x, g)
        np.testing.assert_allclose(privacy.gradient_cosine_distance(scaled, g), 0, atol=1e-5)
        np.testing.assert_allclose(
            privacy.gradient_cosine_distance(scaled, other), privacy.gradient_cosine_distance(g, other), rtol=1e-3
        )


def test_a_zero_gradient_is_at_distance_one_with_finite_slopes():
    zero, target = tree(jnp.zeros((2, 2))), tree(jnp.ones((2, 2)))
    for a, b in ((zero, target), (target, zero), (zero, zero)):
        value, slopes = jax.value_and_grad(privacy.gradient_cosine_distance, argnums=(0, 1))(a, b)
        assert value == 1
        for leaf in jax.tree.leaves(slopes):
            assert np.all(np.isfinite(leaf))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), target)
    assert privacy.gradient_cosine_distance(half, half).dtype == jnp.float32
    assert np.isnan(privacy.gradient_cosine_distance(tree([jnp.nan]), tree([1.0])))


def victim(batch=1, rate=RATE):
    """A tiny GELU network with two masked layers, an image, its label and the gradient that the client shares."""
    keys = jax.random.split(jax.random.key(3), 6)
    params = [
        jax.random.normal(key, shape) / np.sqrt(shape[0])
        for key, shape in zip(keys[:3], [(16, 32), (32, 32), (32, 5)], strict=True)
    ]
    x = jax.random.uniform(keys[3], (batch, 4, 4, 1))
    labels = jnp.arange(batch) % 5
    masks = [dropout.bernoulli_mask(key, (batch, 32), rate=rate, dtype=jnp.float32) for key in keys[4:]]

    def apply(params, inputs, masks):
        h = inputs.reshape(inputs.shape[0], -1)
        for layer, mask in zip(params[:-1], masks, strict=True):
            h = dropout.apply_mask(jax.nn.gelu(h @ layer), mask, rate=rate)
        return h @ params[-1]

    def client_loss(params):
        return optax.losses.softmax_cross_entropy_with_integer_labels(apply(params, x, masks), labels).mean()

    return apply, params, jax.jit(jax.grad(client_loss))(params), x, masks, labels


def test_at_the_truth_only_the_regularisers_are_left():
    apply, params, target, x, masks, labels = victim(batch=3)
    value, plain = jax.jit(
        lambda x: [
            privacy.dropout_inversion_objective(
                apply, params, target, x, masks, labels, rate=RATE, tv_weight=tv_weight, mask_weight=2 * tv_weight
            )
            for tv_weight in (0.1, 0.0)
        ]
    )(x)
    expected = 0.1 * vision.total_variation(x).mean() + 0.2 * dropout.mask_rate_penalty(masks, RATE)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    assert abs(float(plain)) < 1e-5


def test_objective_does_not_depend_on_the_order_of_the_batch():
    apply, params, target, x, masks, labels = victim(batch=4)
    guess = jax.random.uniform(KEY, x.shape)
    order = jnp.array([2, 0, 3, 1])
    objective = jax.jit(
        lambda x, masks, labels: privacy.dropout_inversion_objective(apply, params, target, x, masks, labels, rate=RATE)
    )
    value = objective(guess, masks, labels)
    permuted = objective(guess[order], [m[order] for m in masks], labels[order])
    np.testing.assert_allclose(permuted, value, rtol=1e-4)


def test_objective_is_twice_differentiable_and_takes_other_losses():
    apply, params, target, x, masks, labels = victim()
    squared = lambda logits, labels: jnp.mean((logits - jax.nn.one_hot(labels, 5)) ** 2)  # noqa: E731
    slopes = jax.jit(
        jax.grad(
            lambda x, m, rate: privacy.dropout_inversion_objective(
                apply, params, target, x, m, labels, rate=rate, loss_fn=squared
            ),
            argnums=(0, 1),
        )
    )(x, masks, RATE)
    for leaf in jax.tree.leaves(slopes):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)


def test_inversion_recovers_an_image_that_ignoring_masks_does_not():
    """150 steps on a victim of 4 x 4 pixels; known masks are the lower bound, ignored ones the attack that dropout stops."""
    apply, params, target, x, masks, labels = victim()
    schedule = optax.piecewise_constant_schedule(0.1, {75: 0.1, 120: 0.1})

    def error(**settings):
        attack = lambda key: privacy.invert_gradients(  # noqa: E731
            key, apply, params, target, labels, input_shape=x.shape, mask_shapes=[(1, 32), (1, 32)], rate=RATE,
            num_steps=150, learning_rate=schedule, history=10, **settings,
        )  # fmt: skip
        found = jax.jit(attack)(KEY)
        assert found["history"].shape == (10,)
        assert found["objective"] <= found["history"].min()
        assert 0 <= found["inputs"].min() <= found["inputs"].max() <= 1
        return float(jnp.mean((found["inputs"] - x) ** 2)), found

    ours, found = error()
    ignored, plain = error(optimize_masks=False)
    known, _ = error(optimize_masks=False, masks=masks)
    assert known < 5e-3
    assert ours < ignored / 3
    assert found["objective"] < plain["objective"]
    for mask in found["masks"]:
        assert 0 <= mask.min() <= mask.max() <= 1
    # Ignored dropout is a network without dropout: masks that undo its scale.
    np.testing.assert_allclose(plain["masks"][0], np.full((1, 32), 1 - RATE))


def test_inversion_details():
    apply, params, target, x, _, labels = victim(rate=0.0)
    start = {"input_shape": x.shape, "mask_shapes": ((1, 32), (1, 32)), "rate": 0.0, "num_steps": 2}
    run = jax.jit(
        jax.vmap(lambda key: privacy.invert_gradients(key, apply, params, target, labels, bounds=(-1.0, 2.0), **start))
    )
    trials = run(jax.random.split(KEY, 2))
    rate = jnp.float32(0.0)  # an array that a compiled function closes over is concrete within its trace
    closed = jax.jit(
        lambda key: privacy.invert_gradients(key, apply, params, target, labels, **{**start, "rate": rate})
    )
    np.testing.assert_array_equal(closed(KEY)["masks"][0], np.ones((1, 32)))
    assert trials["inputs"].shape == (2, *x.shape)
    assert trials["history"].shape == (2, 2)
    assert np.any(trials["inputs"][0] != trials["inputs"][1])
    for mask in trials["masks"]:  # rate 0: nothing to find
        np.testing.assert_array_equal(mask, np.ones((2, 1, 32)))
    with pytest.raises(ValueError, match=r"bounds\[0\]"):
        privacy.invert_gradients(KEY, apply, params, target, labels, bounds=(1.0, 0.0), **start)
    for change, match in (
        ({"num_steps": 0}, "num_steps"),
        ({"history": 0}, "history"),
        ({"patience": 0}, "patience"),
        ({"input_shape": (4, 4, 1)}, "input_shape"),
        ({"input_shape": (2, 4, 4, 1)}, "labels"),
        ({"rate": 1.0}, "rate"),
    ):
        with pytest.raises(ValueError, match=match):
            privacy.invert_gradients(KEY, apply, params, target, labels, **{**start, **change})


def test_the_rate_is_cut_when_nothing_improves():
    """Steps of 0.1 in sign can't settle; cut at every step that does not improve, they do."""
    apply = lambda params, inputs, masks: inputs.reshape(1, -1) @ params  # noqa: E731
    target = jnp.outer(jnp.array([0.13, 0.77]), jnp.array([-1.0, 1.0]))

    def late(patience):
        attack = lambda key: privacy.invert_gradients(  # noqa: E731
            key, apply, jnp.eye(2), target, jnp.zeros(1, int), input_shape=(1, 1, 2, 1), num_steps=60, history=60,
            patience=patience,
        )  # fmt: skip
        return jax.jit(attack)(KEY)["history"][-10:]

    assert np.ptp(late(2)) < np.ptp(late(800)) / 10


def test_bad_input():
    with pytest.raises(ValueError, match="target_gradients must be a tree like gradients"):
        privacy.gradient_cosine_distance(tree([1.0]), tree([1.0], [2.0]))
    with pytest.raises(ValueError, match="a leaf of gradients"):
        privacy.gradient_cosine_distance(tree([1.0]), tree([1.0, 2.0]))
    with pytest.raises(ValueError, match="eps"):
        privacy.gradient_cosine_distance(tree([1.0]), tree([1.0]), eps=0.0)
    apply, params, target, x, masks, labels = victim()
    good = {"params": params, "target_gradients": target, "inputs": x, "masks": masks, "labels": labels, "rate": RATE}
    for change, match in (
        ({"rate": 1.0}, "rate"),
        ({"rate": -0.1}, "rate"),
        ({"tv_weight": -1.0}, "tv_weight"),
        ({"mask_weight": -1.0}, "mask_weight"),
        ({"inputs": x[0]}, "inputs"),
        ({"labels": jnp.zeros(2, int)}, "labels"),
        ({"target_gradients": target[:2]}, "target_gradients"),
        ({"target_gradients": [*target[:2], target[2][:-1]]}, "a leaf of params"),
    ):
        with pytest.raises(ValueError, match=match):
            privacy.dropout_inversion_objective(apply, **{**good, **change})
