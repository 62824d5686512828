"""The diffusion transformer: patches by hand, what an untrained block does, noise level and class, dropout."""

import jax
import numpy as np
import pytest

from tests.experiments.models.helpers import build, changed, compiled, inputs, keys, shapes, weights

SHAPE = (4, 6, 2)


def zero(tree):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def test_untrained_blocks_change_nothing_and_the_output_is_zero():
    model = build("dit", SHAPE)
    # Not all zero, as after training, but what init sets to zero.
    params = weights(model)
    for name in ("block_0", "block_1"):
        params[name]["modulation"] = zero(params[name]["modulation"])
    read = jax.jit(lambda params, *given: model.apply(params, *given, read=True))
    _, readings = read(params, *inputs(SHAPE))
    np.testing.assert_array_equal(readings.features["block_0"], readings.features["block_1"])
    init = jax.jit(lambda key: {name: model.init(key)[name] for name in ("last", "modulation", "block_0")})
    fresh = init(jax.random.key(0))
    for leaf in (fresh["last"]["kernel"], fresh["modulation"]["kernel"], fresh["block_0"]["modulation"]["kernel"]):
        np.testing.assert_array_equal(leaf, 0)


def test_patches_by_hand():
    """With one width a value and no blocks that do anything, it normalises each patch alone."""
    model = build("dit", SHAPE, depth=1, heads=1)
    params = zero(shapes(model))
    params["first"]["kernel"] = params["last"]["kernel"] = np.eye(8, dtype=np.float32)
    x, c_noise = inputs(SHAPE, batch=2)
    expected = np.empty_like(x)
    for row in range(0, 4, 2):
        for column in range(0, 6, 2):
            part = x[:, row : row + 2, column : column + 2]
            mean = part.mean((1, 2, 3), keepdims=True)
            spread = np.sqrt(part.var((1, 2, 3), keepdims=True) + 1e-6)
            expected[:, row : row + 2, column : column + 2] = (part - mean) / spread
    np.testing.assert_allclose(compiled(model)(params, x, c_noise), expected, rtol=1e-4, atol=1e-5)


def test_hears_noise_level_class_and_place():
    model = build("dit", SHAPE, class_condition=True)
    params, (x, c_noise), labels = weights(model), inputs(SHAPE), np.array([1, 2, 3, 4])
    apply = compiled(model)
    out = apply(params, x, c_noise, labels=labels)
    level = apply(params, x, changed(c_noise, 0, 0.9), labels=labels)
    other = apply(params, x, c_noise, labels=changed(labels, 0, 9))
    far = apply(params, changed(x, (0, 0, 0), 3.0), c_noise, labels=labels)
    for another in (level, other, far):
        assert np.abs(out[0, 2:] - another[0, 2:]).max() > 1e-3
        np.testing.assert_allclose(out[1:], another[1:], rtol=1e-4, atol=1e-5)


def test_dropout():
    model = build("dit", SHAPE, dropout=0.5)
    params, given, apply = weights(model), inputs(SHAPE), compiled(model)
    mine, others = keys(4), keys(4, seed=1)
    first, again, mixed, without = (
        apply(params, *given, keys=k) for k in (mine, mine, changed(others, 1, mine[1]), None)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(mixed[1], first[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(mixed[0], first[0])
    np.testing.assert_allclose(without, compiled(build("dit", SHAPE))(params, *given), rtol=1e-5, atol=1e-6)


def test_bfloat16():
    half, full = (build("dit", SHAPE, dtype=dtype) for dtype in ("bfloat16", "float32"))
    params, given = weights(full), inputs(SHAPE)
    out, exact = (compiled(model)(params, *given) for model in (half, full))
    assert out.dtype == np.float32
    assert np.abs(out - exact).max() > 0  # computed in fewer digits
    np.testing.assert_allclose(out, exact, atol=0.3)


@pytest.mark.parametrize("shape", [(5, 4, 1), (4, 5, 1)])
def test_patches_divide_the_sides(shape):
    with pytest.raises(ValueError, match=r"model\.patch must divide the sides of images .* got 2"):
        build("dit", shape)


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (7, 1)])
def test_heads_divide_an_even_width(width, heads):
    with pytest.raises(
        ValueError, match=rf"model\.width must be even and a multiple of model\.heads {heads}, got {width}"
    ):
        build("dit", width=width, heads=heads)
