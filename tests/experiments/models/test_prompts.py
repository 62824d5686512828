"""Captions in the U-Net and the transformer: padding, maps, replaced attention, negative prompts, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.models import prompts
from mlfuncs.attention import negative_away_attention, scaled_dot_product_attention
from tests.experiments.models.helpers import build, changed, compiled, inputs, names, quickly, shapes, weights

WORDS, LENGTH = 9, 6
SHAPE = (4, 4, 1)
TOKENS = np.array([[1, 5, 6, 2, 0, 0], [1, 7, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0], [1, 8, 5, 4, 3, 2]], np.int32)
NEGATIVE = np.array([[1, 8, 2, 0]] * 4, np.int32)
HEARING = {"token_condition": True, "token_width": 8, "vocabulary": WORDS, "token_length": LENGTH}
FIELDS = {
    "unet": {**HEARING, "cross_attention_resolutions": (4,), "head_channels": 2},
    "dit": HEARING,
}
LAYERS = {"unet": ("down_0_0", "middle", "up_0_0", "up_0_1"), "dit": ("block_0", "block_1")}
MIDDLE = {"unet": "middle", "dit": "block_0"}
both = pytest.mark.parametrize("name", ["unet", "dit"])


def network(name, **fields):
    return build(name, SHAPE, **{**FIELDS[name], **fields})


def away(scale):
    return lambda layer, *arrays, **given: negative_away_attention(*arrays, scale=scale, **given)


@both
def test_reading_maps_and_features(name):
    model = network(name)
    params, given = weights(model), inputs(SHAPE)
    plain = compiled(model)(params, *given, tokens=TOKENS)
    read = quickly(lambda params, x, c, tokens: model.apply(params, x, c, tokens=tokens, read=True))
    out, readings = read(params, *given, TOKENS)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    assert set(readings.maps) == set(readings.features) == set(LAYERS[name])
    queries = 16 if name == "unet" else 4
    for weights_of_layer in readings.maps.values():
        assert weights_of_layer.shape == (4, 2, queries, LENGTH)
        np.testing.assert_allclose(weights_of_layer.sum(-1), 1, rtol=1e-5)
        padding = np.broadcast_to((TOKENS == 0)[:, None, None], weights_of_layer.shape)
        np.testing.assert_array_equal(np.asarray(weights_of_layer)[padding], 0)
        assert np.asarray(weights_of_layer)[~padding].min() > 0
        assert float(jnp.std(weights_of_layer[3], axis=-2).max()) > 1e-3  # differs between places
    assert {feature.shape[0] for feature in readings.features.values()} == {4}


@both
def test_an_example_hears_its_own_words_and_no_padding(name):
    model = network(name)
    params, (x, c_noise), apply = weights(model), inputs(SHAPE), compiled(model)
    out = apply(params, x, c_noise, tokens=TOKENS)
    for place in ((0, 1), (0, 2)):
        other = apply(params, x, c_noise, tokens=changed(TOKENS, place, 4))
        assert np.abs(out[0] - other[0]).max() > 1e-4
        np.testing.assert_allclose(out[1:], other[1:], rtol=1e-4, atol=1e-5)
    swapped = changed(TOKENS, (0, slice(1, 3)), TOKENS[0, [2, 1]])
    assert np.abs(out[0] - apply(params, x, c_noise, tokens=swapped)[0]).max() > 1e-4  # words have places
    # What is padding may as well not be there.
    np.testing.assert_allclose(apply(params, x[:3], c_noise[:3], tokens=TOKENS[:3, :4]), out[:3], rtol=1e-4, atol=1e-5)


@both
def test_replaced_attention(name):
    model = network(name)
    params, given = weights(model), inputs(SHAPE)
    called = []

    def same(layer, query, key, value, *, mask):
        called.append(layer)
        assert query.shape[:2] == key.shape[:2] == (4, 2)
        assert mask.shape == TOKENS.shape
        return scaled_dot_product_attention(query, key, value, mask[:, None, None])

    def merged(layer, query, key, value, *, mask):
        return jnp.moveaxis(same(layer, query, key, value, mask=mask), 1, 2).reshape(4, query.shape[2], -1)

    def silent(layer, query, key, value, *, mask):
        out = same(layer, query, key, value, mask=mask)
        return jnp.zeros_like(out) if layer == MIDDLE[name] else out

    def run(attention):
        return quickly(lambda params: model.apply(params, *given, tokens=TOKENS, attention=attention))(params)

    plain = run(None)
    np.testing.assert_array_equal(run(same), plain)
    assert tuple(called) == LAYERS[name]
    np.testing.assert_allclose(run(merged), plain, rtol=1e-5, atol=1e-6)
    assert np.abs(run(silent) - plain).max() > 1e-4


@both
def test_negative_away_attention(name):
    model = network(name)
    params, given = weights(model), inputs(SHAPE)

    @quickly
    def run(scale, negative):
        return model.apply(params, *given, tokens=TOKENS, negative_tokens=negative, attention=away(scale))

    plain = compiled(model)(params, *given, tokens=TOKENS)
    np.testing.assert_allclose(run(0.0, NEGATIVE), plain, rtol=1e-5, atol=1e-6)
    steered = run(0.5, NEGATIVE)
    assert np.abs(steered - plain).max() > 1e-3
    other = run(0.5, changed(NEGATIVE, (0, 1), 3))
    assert np.abs(steered[0] - other[0]).max() > 1e-4
    np.testing.assert_allclose(steered[1:], other[1:], rtol=1e-4, atol=1e-5)


@both
def test_gradients_are_finite_and_reach_the_words(name):
    model = network(name)
    params, given = weights(model), inputs(SHAPE)
    # The last caption is all padding: there is nothing to attend to.
    tokens = changed(TOKENS, 3, 0)

    def loss(params, scale):
        out = model.apply(params, *given, tokens=tokens, negative_tokens=NEGATIVE, attention=away(scale))
        return jnp.sum(out**2)

    gradients, for_scale = quickly(jax.grad(loss, argnums=(0, 1)))(params, 0.3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.isfinite(for_scale)
    words = np.abs(gradients["tokens"]["words"]["embedding"]).max(-1)
    used = np.unique(np.concatenate([tokens[tokens > 0], NEGATIVE[NEGATIVE > 0]]))
    np.testing.assert_array_equal(np.flatnonzero(words > 1e-6), used)


@both
def test_captions_add_parameters_and_change_no_others(name):
    hearing, plain = (
        shapes(network(name)),
        shapes(build(name, SHAPE, **({"head_channels": 2} if name == "unet" else {}))),
    )
    added = names(hearing) - names(plain)
    assert names(plain) < names(hearing)
    assert all("cross" in path or path.startswith("tokens/") for path in added)
    layer = MIDDLE[name]
    assert hearing[layer]["cross"].keys() == {"query", "key", "value", "project"}
    assert hearing[layer]["cross"]["key"].keys() == {"kernel"}  # linear in the states
    model = network(name)
    for path, holds in model.axes.items():
        node = hearing
        for part in path:
            node = node[part]
        assert len(holds) == len(node.shape)


@both
def test_states_of_tokens(name):
    model = network(name)
    prompt = compiled(model)(weights(model), TOKENS, method="encode")
    assert prompt.states.shape == (4, LENGTH, 8)
    np.testing.assert_array_equal(prompt.mask, TOKENS > 0)


def test_recomputed_blocks_read_the_same():
    given, found = inputs(SHAPE, batch=2), []
    for remat in (False, True):
        model = network("unet", remat=remat)
        params = weights(model)
        run = quickly(lambda params, model=model: model.apply(params, *given, tokens=TOKENS[:2], read=True))
        found.append(run(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


@both
def test_preconditioned_denoiser(name):
    model = network(name)
    params, (x, _) = weights(model), inputs(SHAPE)
    denoise = quickly(models.preconditioned(model, sigma_data=0.5), static_argnames="read")
    sigma = np.full(4, 0.7, np.float32)
    plain = denoise(params, x, sigma, TOKENS)
    scale = np.sqrt(0.7**2 + 0.25)
    network_out = compiled(model)(params, x / scale, np.full(4, np.log(0.7) / 4, np.float32), tokens=TOKENS)
    expected = 0.25 / scale**2 * x + 0.7 * 0.5 / scale * network_out
    np.testing.assert_allclose(plain, expected, rtol=1e-4, atol=1e-5)
    out, readings = denoise(params, x, sigma, TOKENS, read=True)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    assert isinstance(readings, prompts.Readings)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "tokens must be given"),
        ({"tokens": TOKENS, "negative_tokens": NEGATIVE}, "negative_tokens need an attention"),
        ({"tokens": TOKENS[0]}, r"tokens must be int \[B, L\]"),
        ({"tokens": TOKENS.astype(np.float32)}, r"tokens must be int \[B, L\]"),
        ({"tokens": np.ones((4, LENGTH + 1), np.int32)}, r"L in \[1, 6\]"),
        (
            {"tokens": TOKENS, "attention": lambda layer, query, *_, **__: query[..., :1]},
            "attention must give .* down_0_0",
        ),
    ],
)
def test_mistakes_of_callers_are_named(given, says):
    model = network("unet")
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(lambda params: model.apply(params, *inputs(SHAPE), **given), shapes(model))


def test_a_network_without_captions_refuses_tokens():
    model = build("unet", SHAPE)
    with pytest.raises(ValueError, match=r"tokens.* need a network with model\.token_condition"):
        jax.eval_shape(lambda params: model.apply(params, *inputs(SHAPE), tokens=TOKENS), shapes(model))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"cross_attention_resolutions": (8,)},
            r"model\.cross_attention_resolutions must have some of the sizes \[4\]",
        ),
        ({"vocabulary": 0}, r"model\.token_condition needs captions"),
        ({"token_depth": -1}, r"model\.token_depth must be whole and >= 0"),
        ({"token_width": 6}, r"model\.token_width must be a multiple"),
        ({"token_width": 0}, r"model\.token_width must be whole and > 0"),
        ({"cross_attention_resolutions": 4}, r"model\.cross_attention_resolutions must be a tuple"),
    ],
)
def test_mistakes_in_a_model_are_named(fields, says):
    with pytest.raises(ValueError, match=says):
        network("unet", **fields)


def test_no_class_is_the_network_without_labels():
    model = build("unet", SHAPE, class_condition=True)
    params, given, apply = weights(model), inputs(SHAPE), compiled(model)
    without = apply(params, *given)
    np.testing.assert_allclose(apply(params, *given, labels=np.full(4, -1)), without, rtol=1e-5, atol=1e-6)
    assert np.abs(apply(params, *given, labels=np.arange(4)) - without).max() > 1e-3
