"""The decoder-only transformer: by hand, what a word may see, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiments.models.helpers import build, changed, compiled, quickly, weights

LENGTH, WORDS, WIDTH = 5, 7, 8


def model(**fields):
    return build("transformer", (LENGTH,), num_classes=WORDS, **{"width": WIDTH, "heads": 2, "expansion": 2, **fields})


TOKENS = np.random.default_rng(0).integers(0, WORDS, (3, LENGTH))


def by_hand(p, tokens, masks):
    linear = lambda layer, h: h @ layer["kernel"] + layer.get("bias", 0)  # noqa: E731

    def norm(layer, h):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        return h * layer["scale"] + layer["bias"]

    h = p["words"]["embedding"][tokens] + p["places"]["embedding"][: tokens.shape[1]]
    states = [h]
    for index, mask in enumerate(masks):
        block = p[f"block_{index}"]
        qkv = linear(block["attend"], norm(block["norm_attention"], h)).reshape(*tokens.shape, 2, -1)
        q, k, v = np.split(qkv, 3, axis=-1)
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones((tokens.shape[1],) * 2, bool)), scores, -np.inf)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        h = h + linear(block["project"], np.einsum("bhqk,bkhd->bqhd", attention, v).reshape(h.shape))
        inner = np.asarray(jax.nn.gelu(linear(block["first"], norm(block["norm_dense"], h))))
        h = (h + linear(block["second"], inner)) * mask
        states.append(h)
    features = norm(p["norm"], h)
    return {
        "logits": linear(p["last"], features),
        "features": features,
        "penultimate": states[-2],
        "hidden": states[1:],
    }


@pytest.mark.parametrize("masked", [False, True])
def test_by_hand(masked):
    network = model()
    params = weights(network)
    masks = [np.arange(WIDTH) % 3 > 0, None] if masked else None
    out = compiled(network)(params, TOKENS, masks=masks)
    expected = by_hand(jax.tree.map(np.asarray, params), TOKENS, [masks[0] if masked else 1, 1])
    assert out.keys() == expected.keys()
    for name in out:
        np.testing.assert_allclose(np.stack(out[name]), np.stack(expected[name]), rtol=1e-4, atol=1e-5)
    if masked:
        np.testing.assert_array_equal(out["penultimate"][..., ::3], 0)


def test_no_word_sees_later_ones():
    network = model()
    params, apply = weights(network), compiled(network)
    later = changed(TOKENS, (slice(None), 3), (TOKENS[:, 3] + 1) % WORDS)
    one, other = (apply(params, tokens)["logits"] for tokens in (TOKENS, later))
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    assert np.all(np.abs(one[:, 3:] - other[:, 3:]).max((0, 2)) > 1e-4)
    np.testing.assert_allclose(apply(params, TOKENS[:, :2])["logits"], one[:, :2], rtol=1e-4, atol=1e-5)


def test_masked_units_get_no_gradient():
    network = model()
    params, keep = weights(network), jnp.arange(WIDTH) != 2
    loss = lambda params: jnp.sum(network.apply(params, TOKENS, masks=[keep, None])["logits"] ** 2)  # noqa: E731
    kernel = np.asarray(quickly(jax.grad(loss))(params)["block_0"]["second"]["kernel"])
    np.testing.assert_array_equal(kernel[:, 2], 0)
    assert np.all(np.abs(np.delete(kernel, 2, axis=1)).max(0) > 0)


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match=r"width must be a multiple of model\.heads 3, got 8"):
        model(heads=3)
