"""The U-Net: sizes, attention, conditions, norms, dropout, half precision, recomputed blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def blocks_that_attend(**fields):
    return {path.split("/")[0] for path in names(shapes(build("unet", **fields))) if "attend" in path}


@pytest.mark.parametrize(
    ("shape", "blocks"), [((8, 8, 1), 1), ((28, 28, 1), 1), ((33, 33, 3), 2), ((64, 64, 3), 1), ((5, 7, 1), 1)]
)
def test_keeps_the_shape(shape, blocks):
    model = build("unet", shape, channel_multipliers=(1, 2, 2), blocks_per_level=blocks, attention_resolutions=(8, 9))
    out = jax.eval_shape(model.apply, shapes(model), *inputs(shape, batch=2))
    assert (out.shape, out.dtype) == ((2, *shape), jnp.float32)


def passing_on(tree, skip):
    """Parameters that copy one channel through and add 1 after the first skip, which `skip` gives back at the end."""
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
    for name in ("first", "shrink_0", "grow_1", "last"):
        params[name]["kernel"][1, 1, 0, 0] = 1
    for name in ("up_1_0", "up_1_1", "up_0_0", "up_0_1"):
        params[name]["shortcut"]["kernel"][0, 0, 4 if skip and name == "up_0_1" else 0, 0] = 1
    params["down_0_0"]["second"]["bias"][0] = 1
    return params


@pytest.mark.parametrize(("shape", "offset"), [((9, 7, 1), 0), ((4, 6, 1), 1)])
def test_wiring_by_hand(shape, offset):
    model = build("unet", shape, channel_multipliers=(1, 1), norm="none")
    apply, (x, c_noise) = compiled(model), inputs(shape, batch=2)
    # A stride of 2 keeps the pixels 0, 2, ... of an odd side and 1, 3, ... of an even one; growing repeats them.
    rows, columns = (2 * (np.arange(side) // 2) + offset for side in shape[:2])
    expected = silu(1 + x[:, rows][:, :, columns])
    np.testing.assert_allclose(apply(passing_on(shapes(model), False), x, c_noise), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(passing_on(shapes(model), True), x, c_noise), silu(x), rtol=1e-5, atol=1e-6)


def test_untrained_output_is_zero():
    model = build("unet")
    last = quickly(lambda key: model.init(key)["last"])(jax.random.key(0))
    out = compiled(model)({**weights(model), "last": last}, *inputs((8, 8, 1)))
    np.testing.assert_array_equal(out, np.zeros((4, 8, 8, 1)))


def test_parameter_tree():
    tree = shapes(build("unet", (8, 8, 3), channel_multipliers=(1, 2), blocks_per_level=2))
    down = {"down_0_0", "down_0_1", "shrink_0", "down_1_0", "down_1_1"}
    up = {"up_1_0", "up_1_1", "up_1_2", "grow_1", "up_0_0", "up_0_1", "up_0_2"}
    assert tree.keys() == {"embed", "first", *down, "middle", *up, "norm", "last"}
    assert tree["first"]["kernel"].shape == (3, 3, 3, 4)
    assert tree["up_1_0"]["first"]["kernel"].shape == (3, 3, 8 + 8, 8)
    assert tree["up_1_2"]["first"]["kernel"].shape == (3, 3, 8 + 4, 8)  # the skip of shrink_0
    assert tree["up_0_0"]["first"]["kernel"].shape == (3, 3, 8 + 4, 4)
    assert tree["last"]["kernel"].shape == (3, 3, 4, 3)


def test_attention_at_chosen_resolutions():
    fields = {"shape": (28, 28, 1), "channel_multipliers": (1, 2, 2)}  # sizes 28, 14, 7
    assert blocks_that_attend(**fields, attention_resolutions=(14,)) == {"down_1_0", "up_1_0", "up_1_1"}
    assert blocks_that_attend(**fields, attention_resolutions=(7,)) == {"down_2_0", "middle", "up_2_0", "up_2_1"}
    assert blocks_that_attend(**fields, attention_resolutions=(8,)) == set()
    odd = {"shape": (33, 33, 1), "channel_multipliers": (1, 2)}  # sizes 33, 17
    assert blocks_that_attend(**odd, attention_resolutions=(17,)) == {"down_1_0", "middle", "up_1_0", "up_1_1"}


def test_attention_reaches_across_the_image():
    # Without norms (which see the whole image) convolutions alone reach 10 pixels here, of 24.
    reached = []
    for resolutions in ((), (24,)):
        model = build("unet", (24, 24, 1), norm="none", attention_resolutions=resolutions)
        params, (x, c_noise) = weights(model), inputs((24, 24, 1), batch=1)
        apply = compiled(model)
        change = apply(params, changed(x, (0, 0, 0), 4.0), c_noise) - apply(params, x, c_noise)
        assert np.abs(change[0, 0, 0]).max() > 1e-3
        reached.append(np.abs(change[0, 12:, 12:]).max() > 0)
    assert reached == [False, True]


def test_heads_share_one_set_of_parameters():
    one, two = (build("unet", attention_resolutions=(8,), head_channels=channels) for channels in (0, 2))
    params, given = weights(one), inputs((8, 8, 1))
    assert jax.tree.map(jnp.shape, shapes(one)) == jax.tree.map(jnp.shape, shapes(two))
    assert not np.allclose(compiled(one)(params, *given), compiled(two)(params, *given))


@pytest.mark.parametrize(
    ("norm", "conditioning"), [("scaling", "scale_shift"), ("non_scaling", "scale_shift"), ("none", "additive")]
)
def test_hears_noise_level_and_class(norm, conditioning):
    model = build("unet", (4, 4, 1), norm=norm, time_conditioning=conditioning, class_condition=True)
    params, (x, c_noise), labels = weights(model), inputs((4, 4, 1)), np.array([1, 2, 3, 4])
    apply = compiled(model)
    out = apply(params, x, c_noise, labels=labels)
    level = apply(params, x, changed(c_noise, 0, 0.9), labels=labels)
    other = apply(params, x, c_noise, labels=changed(labels, 0, 9))
    for another in (level, other):
        assert np.abs(out[0] - another[0]).max() > 1e-3
        np.testing.assert_allclose(out[1:], another[1:], rtol=1e-4, atol=1e-5)


def test_class_condition_adds_a_table():
    conditional, plain = shapes(build("unet", class_condition=True)), shapes(build("unet"))
    assert names(conditional) - names(plain) == {"embed/classes/embedding"}
    assert conditional["embed"]["classes"]["embedding"].shape == (10, 16)


@pytest.mark.parametrize("conditioning", ["additive", "scale_shift"])
def test_norm_kinds_in_the_parameter_tree(conditioning):
    trees = {
        norm: shapes(build("unet", norm=norm, time_conditioning=conditioning, attention_resolutions=(8,)))
        for norm in ("scaling", "non_scaling", "none")
    }
    assert {"norm/scale", "norm/bias", "middle/norm_attention/scale"} <= names(trees["scaling"])
    assert not [name for name in names(trees["non_scaling"]) if "scale" in name]
    assert {"norm/bias", "middle/norm_attention/bias"} <= names(trees["non_scaling"])
    assert not [name for name in names(trees["none"]) if "norm" in name]
    # The factor (1 + scale) of a modulation is a gain too.
    widths = {norm: tree["middle"]["modulation"]["dense"]["bias"].shape[0] for norm, tree in trees.items()}
    wide = 8 if conditioning == "scale_shift" else 4
    assert widths == {"scaling": wide, "non_scaling": 4, "none": wide}


def test_dropout():
    model, plain = build("unet", (4, 4, 1), dropout=0.5), build("unet", (4, 4, 1))
    params, (x, c_noise) = weights(model), inputs((4, 4, 1))
    mine, others = keys(4), keys(4, seed=1)
    apply = compiled(model)
    first, again, other = (apply(params, x, c_noise, keys=k) for k in (mine, mine, others))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    # Keys of the others changed, and their order: the mask of an example is its own.
    mixed = apply(params, x, c_noise, keys=changed(others, [0, 2], mine[[0, 2]]))
    np.testing.assert_allclose(mixed[::2], first[::2], rtol=1e-5, atol=1e-6)
    turned = apply(params, x[::-1], c_noise[::-1], keys=mine[::-1])
    np.testing.assert_allclose(turned[::-1], first, rtol=1e-4, atol=1e-5)
    # Without keys it is the network without dropout.
    assert primitives(model.apply, params, x, c_noise) == primitives(plain.apply, params, x, c_noise)


def test_bfloat16():
    half, full = (
        build("unet", (4, 4, 1), dtype=dtype, attention_resolutions=(4,)) for dtype in ("bfloat16", "float32")
    )
    params, given = weights(full), inputs((4, 4, 1))
    out, exact = (compiled(model)(params, *given) for model in (half, full))
    assert out.dtype == np.float32
    assert np.abs(out - exact).max() > 0  # computed in fewer digits
    np.testing.assert_allclose(out, exact, atol=0.15)
    program = jax.jit(half.apply).lower(params, *given).as_text().splitlines()
    products = [line for line in program if "stablehlo.convolution" in line or "stablehlo.dot_general" in line]
    assert len(products) > 10
    assert [line for line in products if "bf16" not in line] == []


def test_recomputed_blocks_have_the_same_gradients():
    gradients = []
    for remat in (False, True):
        model = build("unet", (4, 4, 1), remat=remat, dropout=0.3)
        params, (x, c_noise) = weights(model), inputs((4, 4, 1), batch=2)
        loss = lambda params, x, model=model, c=c_noise: jnp.sum(model.apply(params, x, c, keys=keys(2)) ** 2)  # noqa: E731
        assert sum("remat" in name for name in primitives(loss, params, x)) == (4 if remat else 0)
        gradients.append(quickly(jax.grad(loss, argnums=(0, 1)))(params, x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *gradients)
    assert np.abs(gradients[0][1]).max() > 0.01
