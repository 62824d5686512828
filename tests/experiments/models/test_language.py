"""The language model: by hand, what a token may see, distances alone matter, the cache changes nothing, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import mesh as meshes
from experiments.models import layers
from tests.experiments.models.helpers import build, changed, compiled, keys, quickly, weights

LENGTH, WORDS, WIDTH = 6, 7, 8
TOKENS = np.random.default_rng(0).integers(0, WORDS, (3, LENGTH))


def model(**fields):
    return build("language", (LENGTH,), num_classes=WORDS, **fields)


def turned(x, places):
    """Rotations as products of complex numbers."""
    half = x.shape[-1] // 2
    angles = places[:, None] * 10_000.0 ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)


def by_hand(p, tokens, *, tied):
    def norm(layer, h):
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"]

    h, places = p["words"]["embedding"][tokens], np.arange(tokens.shape[1])
    for index in range(2):
        block = p[f"block_{index}"]
        by_head = (norm(block["norm_attention"], h) @ block["attend"]["kernel"]).reshape(*tokens.shape, 2, -1)
        q, k, v = np.split(by_head, 3, axis=-1)
        scores = np.einsum("bqhd,bkhd->bhqk", turned(q, places), turned(k, places)) / np.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones((tokens.shape[1],) * 2, bool)), scores, -np.inf)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        h = h + np.einsum("bhqk,bkhd->bqhd", attention, v).reshape(h.shape) @ block["project"]["kernel"]
        inner = np.asarray(jax.nn.gelu(norm(block["norm_dense"], h) @ block["first"]["kernel"]))
        h = h + inner @ block["second"]["kernel"]
    features = norm(p["norm"], h)
    last = p["words"]["embedding"].T if tied else p["last"]["kernel"]
    return {"logits": features @ last, "features": features}


@pytest.mark.parametrize("tied", [True, False])
def test_by_hand(tied):
    network = model(tie_weights=tied)
    params = weights(network)
    assert ("last" in params) is not tied
    out, expected = compiled(network)(params, TOKENS), by_hand(jax.tree.map(np.asarray, params), TOKENS, tied=tied)
    assert out.keys() == expected.keys()
    for name in out:
        np.testing.assert_allclose(out[name], expected[name], rtol=1e-4, atol=1e-5)


def test_no_token_sees_later_ones():
    network = model()
    params, apply = weights(network), compiled(network)
    later = changed(TOKENS, (slice(None), 3), (TOKENS[:, 3] + 1) % WORDS)
    one, other = (apply(params, tokens)["logits"] for tokens in (TOKENS, later))
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    assert np.all(np.abs(one[:, 3:] - other[:, 3:]).max((0, 2)) > 1e-4)


def test_only_the_distance_of_two_places_matters():
    x = np.random.default_rng(0).standard_normal((2, 1, 5, 2, 4)).astype(np.float32)

    def products(shift):
        query, key = (np.asarray(layers.rotary(jnp.asarray(half), jnp.arange(5) + shift)) for half in x)
        return np.einsum("bqhd,bkhd->bhqk", query, key)

    np.testing.assert_allclose(products(0), products(7), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(layers.rotary(x[0], jnp.arange(5)), axis=-1), np.linalg.norm(x[0], axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(layers.rotary(x[0][:, :1], jnp.zeros(1)), x[0][:, :1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_changes_nothing(dtype):
    """All at once, in two parts, and token by token, in a cache with room to spare."""
    network = model(dtype=dtype)
    params = weights(network)
    whole = compiled(network)(params, TOKENS)

    @quickly
    def in_parts(params, tokens):
        cache, logits, first = network.apply(params, 3, LENGTH + 2, method="empty_cache"), [], 0
        for size in (3, 1, 1, 1):
            part = tokens[:, first : first + size]
            out = network.apply(params, part, cache, first, method="extend")
            cache, first = out["cache"], first + size
            logits.append(out["logits"])
        return jnp.concatenate(logits, axis=1)

    exact = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.1, "atol": 0.1}
    np.testing.assert_allclose(in_parts(params, TOKENS), whole["logits"], **exact)


def test_dropout_is_a_function_of_each_examples_key():
    network = model(dropout=0.5)
    params, apply, drawn = weights(network), compiled(network), keys(3)
    dropped = apply(params, TOKENS, keys=drawn)["logits"]
    np.testing.assert_allclose(apply(params, TOKENS[1:], keys=drawn[1:])["logits"], dropped[1:], rtol=1e-4, atol=1e-5)
    assert np.abs(dropped - apply(params, TOKENS)["logits"]).max() > 1e-2


def test_two_devices_of_the_model_axis_give_the_logits_of_one():
    network = model(width=64, heads=4)
    params = weights(network)
    mesh = meshes.make({"data": 1, "model": 2}, "jit", 3, devices=jax.devices()[:2])
    split = jax.device_put(params, meshes.state_sharded(mesh, params, network.axes))
    for layer, part in (("attend", (64, 96)), ("project", (32, 64)), ("first", (64, 64)), ("second", (64, 64))):
        assert {shard.data.shape for shard in split["block_0"][layer]["kernel"].addressable_shards} == {part}
    apply = quickly(network.apply)
    np.testing.assert_allclose(apply(split, TOKENS)["logits"], apply(params, TOKENS)["logits"], rtol=1e-4, atol=1e-4)


def test_heads_are_turned_in_pairs_of_features():
    with pytest.raises(ValueError, match=r"width must be a multiple of twice model\.heads 4, got 12"):
        model(width=12, heads=4)
