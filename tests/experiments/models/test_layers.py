"""Shared parts: dropout by keys, embeddings, norms, modulation and attention by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models import layers
from tests.experiments.models.helpers import layer, names, quickly, silu

EMBEDDING = {"features": 6, "scale": 1.0, "dtype": jnp.dtype("float32")}
drop = quickly(layers.dropout, static_argnums=(2, 3))


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def linear(dense, x):
    return x @ np.asarray(dense.kernel[...]) + np.asarray(dense.bias[...])


def parameters(module):
    return names(nnx.to_pure_dict(nnx.state(module)))


def test_dropout_is_a_function_of_key_and_layer():
    x = jnp.ones((3, 4, 50))
    first, again, other_layer, other_keys = (
        drop(x, k, 0.5, number) for k, number in ((keys(3), 2), (keys(3), 2), (keys(3), 3), (keys(3, 1), 2))
    )
    np.testing.assert_array_equal(first, again)
    # 200 coins agree with probability 2^-200.
    for other in (other_layer, other_keys):
        assert np.all(np.any(np.asarray(first) != np.asarray(other), axis=(1, 2)))
    assert np.any(first[0] != first[1])


def test_dropout_of_an_example_does_not_depend_on_the_rest_of_the_batch():
    x, order = normal(4, 60), np.array([3, 1, 1, 0])
    whole = drop(x, keys(4), 0.3, 0)
    np.testing.assert_array_equal(drop(x[order], keys(4)[order], 0.3, 0), np.asarray(whole)[order])


def test_dropout_without_keys_or_rate_is_the_identity():
    x = jnp.ones((2, 3))
    assert layers.dropout(x, None, 0.5, 0) is x
    assert layers.dropout(x, keys(2), 0.0, 0) is x


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_dropout_rate_and_expectation(rate):
    out = np.asarray(drop(jnp.full((50, 800), 3.0), keys(50), rate, 1))
    kept = out != 0
    np.testing.assert_allclose(out[kept], 3 / (1 - rate), rtol=1e-6)
    # 40,000 independent coins: beyond 5 standard deviations with probability below 1e-6.
    spread = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * spread
    assert abs(out.mean() - 3) < 3 * 5 * spread / (1 - rate)


def test_dropout_masks_of_two_layers_are_independent():
    one, two = (np.asarray(drop(jnp.ones((50, 800)), keys(50), 0.3, layer)) != 0 for layer in (0, 1))
    # Both keep with probability 0.49; 40,000 pairs: beyond 5 standard deviations with probability below 1e-6.
    assert abs(np.mean(one & two) - 0.49) < 5 * np.sqrt(0.49 * 0.51 / 40_000)


def test_dropout_keeps_half_precision():
    assert drop(jnp.ones((2, 3), jnp.bfloat16), keys(2), 0.5, 0).dtype == jnp.bfloat16


def test_fourier_features_by_hand():
    fourier = layers.FourierFeatures(8, scale=1.5)
    frequencies = np.asarray(fourier.frequencies)
    assert frequencies.shape == (4,)
    out = fourier(jnp.array([0.0, 0.7, -0.7]))
    np.testing.assert_allclose(out[0], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(out[1, :4], np.sin(0.7 * frequencies), atol=1e-5)
    np.testing.assert_allclose(out[1, 4:], np.cos(0.7 * frequencies), atol=1e-5)
    np.testing.assert_allclose(out[2], np.concatenate([-out[1, :4], out[1, 4:]]), atol=1e-6)


def test_fourier_frequencies_are_constants_of_the_scale():
    one, two = layers.FourierFeatures(2000, scale=1.0), layers.FourierFeatures(2000, scale=3.0)
    np.testing.assert_allclose(two.frequencies, 3 * np.asarray(one.frequencies), rtol=1e-6)
    assert not jax.tree.leaves(nnx.state(one))
    # The standard deviation of 1000 normals is off by 2.2% on average: by 12% with probability below 1e-6.
    np.testing.assert_allclose(np.std(one.frequencies), 2 * np.pi, rtol=0.12)


def test_time_embedding_by_hand():
    embed = layer(lambda rngs: layers.TimeEmbedding(5, **EMBEDDING, num_classes=3, rngs=rngs))
    c_noise, labels = jnp.array([0.1, -0.4]), jnp.array([2, 0])
    plain = linear(embed.second, silu(linear(embed.first, np.asarray(embed.fourier(c_noise)))))
    np.testing.assert_allclose(embed(c_noise, None), silu(plain), rtol=1e-4, atol=1e-6)
    table = np.asarray(embed.classes.embedding[...])
    assert table.shape == (3, 5)
    np.testing.assert_allclose(embed(c_noise, labels), silu(plain + table[[2, 0]]), rtol=1e-4, atol=1e-6)


def test_time_embedding_without_classes_has_no_table():
    embed = layer(lambda rngs: layers.TimeEmbedding(5, **EMBEDDING, num_classes=0, rngs=rngs))
    assert parameters(embed) == {"first/bias", "first/kernel", "second/bias", "second/kernel"}


@pytest.mark.parametrize("kind", ["scaling", "non_scaling", "none"])
def test_layer_norm(kind):
    norm = layers.LayerNorm(2, kind, nnx.Rngs(0))
    expected = {"scaling": {"norm/bias", "norm/scale"}, "non_scaling": {"bias"}, "none": set()}
    assert parameters(norm) == expected[kind]
    x = jnp.array([[1.0, 3.0], [-8.0, 8.0]])
    np.testing.assert_allclose(norm(x), x if kind == "none" else [[-1, 1], [-1, 1]], atol=1e-5)
    if kind == "scaling":
        norm.norm.scale[...], norm.norm.bias[...] = jnp.array([2.0, 3.0]), jnp.array([10.0, 20.0])
        np.testing.assert_allclose(norm(x), [[8, 23], [8, 23]], atol=1e-4)
    elif kind == "non_scaling":
        norm.bias[...] = jnp.array([10.0, 20.0])
        np.testing.assert_allclose(norm(x), [[9, 21], [9, 21]], atol=1e-4)
    assert jax.eval_shape(norm, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["scaling", "non_scaling", "none"])
def test_group_norm(kind):
    norm = layer(lambda rngs: layers.GroupNorm(8, kind, rngs))
    expected = {"scaling": {"bias", "scale"}, "non_scaling": {"bias"}, "none": set()}
    assert parameters(norm) == expected[kind]
    x = 3 + 2 * normal(2, 3, 5, 8)
    groups = np.asarray(x).reshape(2, 15, 2, 4)  # two groups of four channels
    centred = groups - groups.mean((1, 3), keepdims=True)
    normed = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True))).reshape(x.shape)
    if kind != "none":
        normed = normed * (norm.scale[...] if kind == "scaling" else 1) + norm.bias[...]
    np.testing.assert_allclose(quickly(lambda x: norm(x))(x), x if kind == "none" else normed, atol=1e-4)
    assert jax.eval_shape(norm, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (6, 1), (8, 2), (28, 7), (33, 3), (144, 24), (512, 32)])
def test_groups_divide_the_channels(channels, groups):
    assert layers.GroupNorm(channels, "scaling", nnx.Rngs(0)).groups == groups


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 5, 3)])
@pytest.mark.parametrize(
    ("kind", "norm", "scales"),
    [
        ("additive", "scaling", False),
        ("additive", "none", False),
        ("scale_shift", "scaling", True),
        ("scale_shift", "none", True),
        ("scale_shift", "non_scaling", False),
    ],
)
def test_modulation_by_hand(kind, norm, scales, shape):
    module = layer(lambda rngs: layers.Modulation(3, 6, kind=kind, norm=norm, dtype=EMBEDDING["dtype"], rngs=rngs))
    x, embedding = normal(*shape), normal(2, 6)
    vectors = linear(module.dense, np.asarray(embedding)).reshape(2, *[1] * (len(shape) - 2), -1)
    assert vectors.shape[-1] == (6 if scales else 3)
    expected = x * (1 + vectors[..., :3]) + vectors[..., 3:] if scales else x + vectors
    np.testing.assert_allclose(quickly(lambda *a: module(*a))(x, embedding), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_by_hand(heads):
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 5, 6)).astype(np.float32)
    expected, width = np.zeros((2, 5, 6)), 6 // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weights = np.exp(query[..., part] @ key[..., part].swapaxes(1, 2) / np.sqrt(width))
        expected[..., part] = weights / weights.sum(-1, keepdims=True) @ value[..., part]
    by_head = np.concatenate([part.reshape(2, 5, heads, width) for part in (query, key, value)], axis=-1)
    np.testing.assert_allclose(layers.attention(jnp.asarray(by_head)), expected, atol=1e-5)
