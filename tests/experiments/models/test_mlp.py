"""The residual network of dense layers: by hand, what it listens to, dropout, half precision."""

import jax
import numpy as np
import pytest

from experiments.models import layers
from tests.experiments.models.helpers import (
    build,
    changed,
    compiled,
    inputs,
    keys,
    names,
    primitives,
    quickly,
    shapes,
    silu,
    weights,
)


@pytest.mark.parametrize("shape", [(2,), (3, 5, 2)])
def test_by_hand(shape):
    model = build("mlp", shape, num_classes=3, class_condition=True, norm="none", fourier_scale=0.5)
    params, (x, c_noise), labels = weights(model), inputs(shape), np.array([0, 2, 1, 1])
    p = jax.tree.map(np.asarray, params)
    linear = lambda layer, h: h @ layer["kernel"] + layer["bias"]  # noqa: E731
    fourier = np.asarray(layers.FourierFeatures(6, 0.5)(c_noise))
    embedding = linear(p["embed"]["second"], silu(linear(p["embed"]["first"], fourier)))
    embedding = silu(embedding + p["embed"]["classes"]["embedding"][np.asarray(labels)])
    h = linear(p["first"], np.asarray(x).reshape(4, -1))
    for block in (p["block_0"], p["block_1"]):
        inner = linear(block["first"], h + linear(block["modulation"]["dense"], embedding))
        h = h + linear(block["second"], silu(inner))
    expected = linear(p["last"], silu(h)).reshape(x.shape)
    out = compiled(model)(params, x, c_noise, labels=labels)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(16,), (8, 8, 1)])
def test_untrained_output_is_zero(shape):
    model = build("mlp", shape)
    last = quickly(lambda key: model.init(key)["last"])(jax.random.key(0))
    out = compiled(model)({**weights(model), "last": last}, *inputs(shape))
    np.testing.assert_array_equal(out, np.zeros((4, *shape)))


@pytest.mark.parametrize("norm", ["scaling", "non_scaling", "none"])
@pytest.mark.parametrize("conditioning", ["additive", "scale_shift"])
def test_hears_the_noise_level(norm, conditioning):
    model = build("mlp", (6,), norm=norm, time_conditioning=conditioning)
    params, (x, c_noise) = weights(model), inputs((6,))
    apply = compiled(model)
    out, other = apply(params, x, c_noise), apply(params, x, changed(c_noise, 1, 0.9))
    change = np.abs(out - other).max(1)
    assert change[1] > 1e-3
    assert change[[0, 2, 3]].max() < 1e-5


def test_non_scaling_norm_leaves_no_gain_anywhere():
    trees = {
        (norm, conditioning): names(shapes(build("mlp", norm=norm, time_conditioning=conditioning)))
        for norm in ("scaling", "non_scaling")
        for conditioning in ("additive", "scale_shift")
    }
    assert "norm/norm/scale" in trees["scaling", "additive"]
    for conditioning in ("additive", "scale_shift"):
        assert not [name for name in trees["non_scaling", conditioning] if "scale" in name]
        assert "norm/bias" in trees["non_scaling", conditioning]
    # The factor (1 + scale) of a modulation is a gain too.
    width = lambda norm: shapes(build("mlp", norm=norm, time_conditioning="scale_shift"))["block_0"]["modulation"]  # noqa: E731
    assert width("scaling")["dense"]["bias"].shape == (16,)
    assert width("non_scaling")["dense"]["bias"].shape == (8,)


def test_depth_is_the_number_of_blocks():
    tree = shapes(build("mlp", depth=3))
    assert {name for name in tree if name.startswith("block")} == {"block_0", "block_1", "block_2"}


def test_class_condition():
    model = build("mlp", (6,), class_condition=True)
    params, given = weights(model), inputs((6,))
    assert names(params) - names(shapes(build("mlp", (6,)))) == {"embed/classes/embedding"}
    apply = compiled(model)
    out, other = (apply(params, *given, labels=np.array(labels)) for labels in ([1, 2, 3, 4], [1, 2, 3, 9]))
    np.testing.assert_array_equal(out[:3], other[:3])
    assert np.abs(out[3] - other[3]).max() > 1e-3


def test_target_condition():
    told, plain = build("mlp", (6,), target_condition=True), build("mlp", (6,))
    params, given, c_target = weights(told), inputs((6,)), np.linspace(-1, 1, 4)
    assert names(params) - names(shapes(plain)) == {
        "target/kernel",
        *(f"embed_target/{layer}/{leaf}" for layer in ("first", "second") for leaf in ("kernel", "bias")),
    }
    apply = compiled(told)
    out, other = apply(params, *given, c_target=c_target), apply(params, *given, c_target=changed(c_target, 1, 0.9))
    change = np.abs(out - other).max(1)
    assert change[1] > 1e-3
    assert change[[0, 2, 3]].max() < 1e-5
    # Untrained it is the network without; unless told, a trained one is too.
    target = quickly(lambda key: told.init(key)["target"])(jax.random.key(0))
    expected = compiled(plain)({name: params[name] for name in shapes(plain)}, *given)
    np.testing.assert_allclose(apply({**params, "target": target}, *given, c_target=c_target), expected, rtol=1e-6)
    np.testing.assert_allclose(apply(params, *given), expected, rtol=1e-6)


def test_dropout():
    model, plain = build("mlp", (6,), dropout=0.5), build("mlp", (6,))
    params, (x, c_noise) = weights(model), inputs((6,))
    mine, others = keys(4), keys(4, seed=1)
    apply = compiled(model)
    first, again, other = (apply(params, x, c_noise, keys=k) for k in (mine, mine, others))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    part = apply(params, x[1:3], c_noise[1:3], keys=mine[1:3])
    np.testing.assert_allclose(part, first[1:3], rtol=1e-5, atol=1e-6)
    # Without keys it is the network without dropout.
    assert primitives(model.apply, params, x, c_noise) == primitives(plain.apply, params, x, c_noise)


def test_two_passes_with_the_same_keys_share_their_masks():
    # Weights that turn the output into the mask of the one block: silu(inner) = silu(1), all else passes it on.
    model = build("mlp", (8,), depth=1, norm="none", dropout=0.5)
    params = jax.tree.map(np.zeros_like, weights(model))
    params["block_0"]["first"]["bias"] = np.ones(8, np.float32)
    params["block_0"]["second"]["kernel"] = params["last"]["kernel"] = np.eye(8, dtype=np.float32)
    apply = compiled(model)
    student, teacher = (apply(params, *inputs((8,), seed=seed), keys=keys(4)) for seed in (0, 1))
    np.testing.assert_array_equal(student, teacher)
    dropped = silu(2 * silu(np.array(1.0)))
    np.testing.assert_allclose(np.unique(np.round(student, 4)), np.round([0, dropped], 4), atol=1e-6)


def test_bfloat16():
    half, full = build("mlp", dtype="bfloat16"), build("mlp")
    params, given = weights(full), inputs((8, 8, 1))
    out, exact = compiled(half)(params, *given), compiled(full)(params, *given)
    assert out.dtype == np.float32
    assert np.abs(out - exact).max() > 0  # computed in fewer digits
    np.testing.assert_allclose(out, exact, atol=0.1)
