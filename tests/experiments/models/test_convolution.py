"""Convolutions: by hand, and with their gradients against XLA's own, eager and inside a compiled loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.convolution import Convolution, convolve
from tests.experiments.models.helpers import layer, quickly

CASES = [  # size of the kernel, stride, sides of the image
    *((3, stride, sides) for stride in (1, 2) for sides in ((7, 5), (6, 6), (2, 1))),
    *((1, 1, (7, 5)), (1, 2, (7, 5)), (1, 2, (6, 6))),
    (2, 1, (5, 4)),  # padded on one side alone
]


def by_xla(x, kernel, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def example(size, sides, seed=0):
    generator = np.random.default_rng(seed)
    shapes = (3, *sides, 2), (size, size, 2, 4)
    return tuple(jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes)


def value_and_gradients(function, stride, x, kernel):
    out, pull = jax.vjp(partial(function, stride=stride), x, kernel)
    # A cotangent that differs at every place, so that a shifted gradient is seen.
    return out, *pull(jnp.asarray(np.cos(np.arange(out.size)).reshape(out.shape), jnp.float32))


def in_a_loop(function, stride, x, kernel):
    def step(total, factor):
        _, for_x, for_kernel = value_and_gradients(function, stride, factor * x, kernel)
        return (total[0] + for_x, total[1] + for_kernel), function(factor * x, kernel, stride)

    zeros = jnp.zeros_like(x), jnp.zeros_like(kernel)
    (for_x, for_kernel), outs = jax.lax.scan(step, zeros, jnp.array([1.0, 2.0]))
    return outs, for_x, for_kernel


def agree(ours, xlas):
    for one, two in zip(ours, xlas, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_hand_worked():
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    ones = jnp.ones((3, 3, 1, 1))
    np.testing.assert_array_equal(convolve(x, ones, 1)[0, ..., 0], [[12, 21, 16], [27, 45, 33], [24, 39, 28]])
    np.testing.assert_array_equal(convolve(x, ones, 2)[0, ..., 0], [[12, 16], [24, 28]])
    np.testing.assert_array_equal(convolve(x, jnp.full((1, 1, 1, 1), 2.0), 1), 2 * x)


@pytest.mark.parametrize(("size", "stride", "sides"), CASES)
def test_values_and_gradients_are_those_of_xla(size, stride, sides):
    x, kernel = example(size, sides)
    both = (quickly(partial(value_and_gradients, function, stride)) for function in (convolve, by_xla))
    ours, xlas = (function(x, kernel) for function in both)
    assert ours[0].shape == (3, -(-sides[0] // stride), -(-sides[1] // stride), 4)
    agree(ours, xlas)


@pytest.mark.parametrize("stride", [1, 2])
def test_eager_values_and_gradients(stride):
    x, kernel = example(3, (7, 5))
    agree(*(value_and_gradients(function, stride, x, kernel) for function in (convolve, by_xla)))


@pytest.mark.parametrize(("size", "stride", "sides"), [(3, 1, (7, 5)), (3, 2, (7, 5)), (1, 2, (6, 6))])
def test_values_and_gradients_inside_a_loop(size, stride, sides):
    x, kernel = example(size, sides)
    loops = (quickly(partial(in_a_loop, function, stride)) for function in (convolve, by_xla))
    agree(*(loop(x, kernel) for loop in loops))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_keep_half_precision(stride):
    x, kernel = jnp.ones((3, 5, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 4), jnp.bfloat16)
    gradients = jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel, stride).astype(jnp.float32) ** 2), (0, 1))
    assert [g.dtype for g in jax.eval_shape(gradients, x, kernel)] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer(dtype):
    module = layer(lambda rngs: Convolution(2, 4, 3, stride=2, dtype=jnp.dtype(dtype), rngs=rngs))
    assert module.kernel[...].dtype == module.bias[...].dtype == jnp.float32
    x, _ = example(3, (6, 5))
    out = quickly(lambda x: module(x))(x)
    assert out.dtype == dtype
    expected = by_xla(x, module.kernel[...], 2) + module.bias[...]
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=1e-5 if dtype == "float32" else 0.1)
