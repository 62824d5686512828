"""The selective scan: by hand, against the recurrence, long sequences, pieces that join, gradients, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import attention


def inputs(length, batch=2, width=3, size=4, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    rates = -np.exp(draw(width, size))
    arrays = (draw(batch, length, width), draw(batch, length, width) - 2, rates)
    return *arrays, draw(batch, length, size), draw(batch, length, size)


def recurrence(x, delta, a, b, c, state=None):
    """One step after the other in float64, with softplus."""
    x, delta, a, b, c = (np.asarray(value, np.float64) for value in (x, delta, a, b, c))
    step = np.log1p(np.exp(delta))
    state = np.zeros((x.shape[0], *a.shape)) if state is None else np.asarray(state, np.float64)
    outputs = []
    for t in range(x.shape[1]):
        state = np.exp(step[:, t, :, None] * a) * state + (step[:, t] * x[:, t])[..., None] * b[:, t, None, :]
        outputs.append(np.einsum("bdn,bn->bd", state, c[:, t]))
    return np.stack(outputs, 1), state


def test_scan_by_hand():
    # Decay 1/2 a step, step size 1: h = 2, 1 + 4, 2.5 + 6, and y = h C.
    x = jnp.array([[[2.0], [4.0], [6.0]]])
    one, out = jnp.ones((1, 3, 1)), jnp.array([[[1.0], [10.0], [2.0]]])
    y, state = attention.selective_scan(
        x, one, jnp.log(jnp.array([[0.5]])), one, out, delta_softplus=False, return_state=True
    )
    np.testing.assert_allclose(y[0, :, 0], [2, 50, 17], rtol=1e-6)
    np.testing.assert_allclose(state, [[[8.5]]], rtol=1e-6)
    skipped = attention.selective_scan(
        x,
        0 * one,
        jnp.log(jnp.array([[0.5]])),
        one,
        out,
        skip=jnp.array([3.0]),
        gate=one,
        delta_bias=jnp.ones(1),
        delta_softplus=False,
    )  # the gate comes after the skip
    np.testing.assert_allclose(skipped[0, :, 0], (np.array([2, 50, 17]) + 3 * x[0, :, 0]) / (1 + np.exp(-1)), rtol=1e-5)


@pytest.mark.parametrize("wide", range(6))
def test_scan_takes_arguments_of_different_precision(wide):
    with jax.enable_x64(True):
        arguments = [*inputs(3), np.ones((2, 3, 4), np.float32)]
        arguments[wide] = arguments[wide].astype(np.float64)
        *tokens, start = map(jnp.asarray, arguments)
        y, state = attention.selective_scan(*tokens, initial_state=start, return_state=True)
        assert y.dtype == tokens[0].dtype
        assert state.dtype == jnp.float64
        expected, last = recurrence(*arguments)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 127, 129, 300])
def test_scan_is_the_recurrence(length):
    arguments = inputs(length)
    y, state = jax.jit(lambda *x: attention.selective_scan(*x, return_state=True))(*arguments)
    expected, last = recurrence(*arguments)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state, last, rtol=1e-4, atol=1e-5)


def test_long_sequences_keep_float32_precision():
    """4096 steps in float32 against float64, to 1e-4 of the largest output; slow decays remember thousands of steps."""
    x, delta, a, b, c = inputs(4096, batch=1, width=2, size=3)
    a = a * 0.01
    expected, _ = recurrence(x, delta, a, b, c)
    y = jax.jit(attention.selective_scan)(x, delta, a, b, c)
    np.testing.assert_allclose(y, expected, atol=1e-4 * np.abs(expected).max())


def test_a_sequence_may_come_in_pieces():
    x, delta, a, b, c = inputs(40)
    whole, last = attention.selective_scan(x, delta, a, b, c, return_state=True)
    piece = lambda s, **more: attention.selective_scan(x[:, s], delta[:, s], a, b[:, s], c[:, s], **more)  # noqa: E731
    first, state = piece(slice(0, 13), return_state=True)
    second, end = piece(slice(13, None), initial_state=state, return_state=True)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(end, last, rtol=1e-4, atol=1e-5)


def test_the_future_does_not_matter_and_neither_do_other_examples():
    arguments = inputs(10)
    changed = [value.copy() if value.ndim == 3 else value for value in arguments]
    for value in changed:
        if value.ndim == 3:
            value[:, 6:], value[1] = 7.0, 7.0
    ours, theirs = (attention.selective_scan(*values) for values in (arguments, changed))
    np.testing.assert_allclose(ours[0, :6], theirs[0, :6], rtol=1e-5)
    assert not np.allclose(ours[0, 6:], theirs[0, 6:])


def test_gradients_are_those_of_the_recurrence_and_finite_where_states_vanish():
    arguments = [jnp.asarray(value) for value in inputs(5, batch=1, width=2, size=2)]

    def stepwise(x, delta, a, b, c):
        state, total = jnp.zeros((1, *a.shape)), 0.0
        for t in range(5):
            step = jax.nn.softplus(delta[:, t])
            state = jnp.exp(step[..., None] * a) * state + (step * x[:, t])[..., None] * b[:, t, None]
            total += jnp.sum(jnp.sin(jnp.einsum("bdn,bn->bd", state, c[:, t])))
        return total

    ours = jax.grad(lambda *v: jnp.sum(jnp.sin(attention.selective_scan(*v))), argnums=(0, 1, 2, 3, 4))(*arguments)
    for own, other in zip(ours, jax.grad(stepwise, argnums=(0, 1, 2, 3, 4))(*arguments), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)
    arguments[2] = arguments[2] * 1e4  # decays of exactly 0
    for own in jax.grad(lambda *v: jnp.sum(attention.selective_scan(*v)), argnums=(0, 1, 2, 3, 4))(*arguments):
        assert np.all(np.isfinite(own))


def test_half_precision_is_scanned_in_float32_and_examples_split_over_devices():
    x, delta, a, b, c = inputs(200, batch=4)
    half = [jnp.asarray(value, jnp.bfloat16) for value in (x, delta, b, c)]
    y, state = attention.selective_scan(half[0], half[1], a, *half[2:], return_state=True)
    assert y.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    wide = [value.astype(jnp.float32) for value in half]
    expected = attention.selective_scan(wide[0], wide[1], a, *wide[2:])
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (P("data"), P("data"), P(), P("data"), P("data"))
    split = jax.jit(jax.shard_map(attention.selective_scan, mesh=mesh, in_specs=specs, out_specs=P("data")))
    whole = attention.selective_scan(x, delta, a, b, c)
    np.testing.assert_allclose(split(x, delta, a, b, c), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", jnp.ones((2, 5))),
        ("x", jnp.ones((2, 0, 3))),
        ("delta", jnp.ones((2, 4, 3))),
        ("a", jnp.ones((2, 4))),
        ("a", jnp.ones(3)),
        ("b", jnp.ones((2, 5, 3))),
        ("c", jnp.ones((2, 4, 4))),
        ("skip", jnp.ones(2)),
        ("gate", jnp.ones((2, 5, 4))),
        ("delta_bias", jnp.ones(())),
        ("initial_state", jnp.ones((2, 4, 3))),
    ],
)
def test_bad_input(name, value):
    arguments = dict(zip(("x", "delta", "a", "b", "c"), inputs(5), strict=True))
    with pytest.raises(ValueError, match=f"^{name} must"):
        attention.selective_scan(**{**arguments, name: value})
