"""Attention: hand-worked values, masks and rows without keys, what steering promises, edges, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mlfuncs import attention


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def tokens(count, *, batch=2, heads=3, width=4, seed=0):
    """Keys and values [batch, heads, count, width]."""
    return normal(batch, heads, count, width, seed=seed), normal(batch, heads, count, width, seed=seed + 100)


QUERY = normal(2, 3, 5, 4, seed=50)
KEY, VALUE = tokens(6, seed=1)
NEGATIVE_KEY, NEGATIVE_VALUE = tokens(2, seed=2)
EXTRA_KEY, EXTRA_VALUE = tokens(6, seed=3)


def test_attention_by_hand():
    # Logits (log 3, 0) of width 1: weights 3/4 and 1/4.
    query, key = jnp.array([[jnp.log(3.0)]]), jnp.array([[1.0], [0.0]])
    value = jnp.array([[4.0, 0.0], [0.0, 8.0]])
    np.testing.assert_allclose(attention.scaled_dot_product_attention(query, key, value), [[3.0, 2.0]], rtol=1e-6)
    # Width 4 divides logits by 2.
    wide = attention.scaled_dot_product_attention(
        jnp.full((1, 4), jnp.log(3.0) / 2), jnp.array([[1.0] * 4, [0.0] * 4]), value
    )
    np.testing.assert_allclose(wide, [[3.0, 2.0]], rtol=1e-6)


def test_attention_is_that_of_jax():
    mask = jax.random.bernoulli(jax.random.key(4), 0.6, (2, 3, 5, 6)).at[..., 0].set(True)
    to_front = functools.partial(jnp.swapaxes, axis1=-3, axis2=-2)
    for given in (None, mask):
        theirs = jax.nn.dot_product_attention(to_front(QUERY), to_front(KEY), to_front(VALUE), mask=given)
        ours = attention.scaled_dot_product_attention(QUERY, KEY, VALUE, given)
        np.testing.assert_allclose(ours, to_front(theirs), rtol=1e-5, atol=1e-6)


def test_masked_keys_do_not_count_and_rows_without_keys_are_zero():
    mask = jnp.array([True, False, True, True, False, False])
    ours = attention.scaled_dot_product_attention(QUERY, KEY, VALUE, mask)
    kept = attention.scaled_dot_product_attention(QUERY, KEY[..., mask, :], VALUE[..., mask, :])
    np.testing.assert_allclose(ours, kept, rtol=1e-5, atol=1e-6)
    rows = jnp.ones((5, 6), bool).at[2].set(False)
    some = attention.scaled_dot_product_attention(QUERY, KEY, VALUE, rows)
    np.testing.assert_array_equal(some[..., 2, :], np.zeros((2, 3, 4)))
    assert np.all(np.abs(some[..., 3, :]).max(-1) > 0)
    gradient = jax.grad(lambda args: attention.scaled_dot_product_attention(*args, rows).sum(), allow_int=True)(
        (QUERY, KEY, VALUE)
    )
    assert all(bool(jnp.all(jnp.isfinite(part))) for part in gradient)
    np.testing.assert_array_equal(gradient[0][..., 2, :], np.zeros((2, 3, 4)))


def test_large_logits_stay_finite():
    value = jnp.array([[1.0], [2.0]])
    out = attention.scaled_dot_product_attention(jnp.array([[1e4]]), jnp.array([[1e4], [-1e4]]), value)
    np.testing.assert_allclose(out, [[1.0]])
    assert np.isnan(attention.scaled_dot_product_attention(jnp.array([[jnp.nan]]), value, value)[0, 0])


def test_results_have_the_precision_of_the_values():
    halves = [x.astype(jnp.bfloat16) for x in (QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE)]
    wide = [x.astype(jnp.float32) for x in halves]
    for ours, exact in (
        (attention.scaled_dot_product_attention(*halves[:3]), attention.scaled_dot_product_attention(*wide[:3])),
        (
            attention.negative_away_attention(*halves, scale=0.9),
            attention.negative_away_attention(*wide, scale=0.9),
        ),
        (attention.negative_offset_attention(*halves), attention.negative_offset_attention(*wide)),
    ):
        assert ours.dtype == jnp.bfloat16
        # One rounding, at the end.
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


# --- negative-away ---


def test_negative_away_by_hand():
    # One token each: attention gives its value whatever the query.
    given = jnp.ones((2, 1, 3, 1)), jnp.ones((2, 1, 1, 1)), jnp.full((2, 1, 1, 1), 5.0)
    out = attention.negative_away_attention(
        *given, jnp.ones((2, 1, 1, 1)), jnp.full((2, 1, 1, 1), 2.0), scale=jnp.array([0.5, -1.0])
    )
    np.testing.assert_allclose(out[:, 0, :, 0], [[4.0] * 3, [7.0] * 3])


def test_without_scale_it_is_plain_attention():
    out = attention.negative_away_attention(QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE, scale=0.0)
    np.testing.assert_array_equal(out, attention.scaled_dot_product_attention(QUERY, KEY, VALUE))


def test_it_is_not_attention_to_both_prompts_at_once():
    out = attention.negative_away_attention(QUERY, KEY, VALUE, KEY, VALUE, scale=1.0)
    np.testing.assert_allclose(out, np.zeros_like(out), atol=1e-6)
    both = [jnp.concatenate(pair, axis=2) for pair in ((KEY, NEGATIVE_KEY), (VALUE, -NEGATIVE_VALUE))]
    away = attention.negative_away_attention(QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE, scale=1.0)
    assert np.abs(away - attention.scaled_dot_product_attention(QUERY, *both)).max() > 0.1


def test_a_shared_attribute_is_taken_away():
    """Both prompts contain the same token: what it adds to the features shrinks with the scale, and the rest stays."""
    query = jnp.zeros((1, 1, 1, 2))
    value = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])  # shape and colour
    for scale in (0.0, 0.25, 0.5):
        out = attention.negative_away_attention(
            query, jnp.zeros((1, 1, 2, 2)), value, jnp.zeros((1, 1, 1, 2)), value[:, :, 1:], scale=scale
        )
        np.testing.assert_allclose(out[0, 0, 0], [0.5, 0.5 - scale], rtol=1e-6)


def test_padding_of_either_prompt():
    mask = jnp.array([[True, True, True, False, False, False], [True] * 6])
    negative_mask = jnp.array([[True, False], [False, False]])
    out = attention.negative_away_attention(
        QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE, scale=0.7, mask=mask, negative_mask=negative_mask
    )
    short = attention.negative_away_attention(
        QUERY[:1], KEY[:1, :, :3], VALUE[:1, :, :3], NEGATIVE_KEY[:1, :, :1], NEGATIVE_VALUE[:1, :, :1], scale=0.7
    )
    np.testing.assert_allclose(out[:1], short, rtol=1e-5, atol=1e-6)
    plain = attention.scaled_dot_product_attention(QUERY[1:], KEY[1:], VALUE[1:])
    np.testing.assert_allclose(out[1:], plain, rtol=1e-6)  # a prompt of padding takes nothing away

    def loss(args):
        named = {"mask": jnp.zeros((2, 6), bool), "negative_mask": jnp.zeros((2, 2), bool)}
        return attention.negative_away_attention(*args, scale=0.5, **named).sum()

    value, gradient = jax.value_and_grad(loss)((QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE))
    assert float(value) == 0.0
    assert all(bool(jnp.all(jnp.isfinite(part))) for part in gradient)


def test_scale_per_example_and_traced():
    scales = jnp.array([0.2, 0.9])
    given = QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE
    each = [attention.negative_away_attention(*(x[i : i + 1] for x in given), scale=float(scales[i])) for i in range(2)]
    out = jax.jit(lambda scale: attention.negative_away_attention(*given, scale=scale))(scales)
    np.testing.assert_allclose(out, jnp.concatenate(each), rtol=1e-5, atol=1e-6)


# --- negative-offset ---


def merged(x):
    return np.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)


def plain(key, value):
    return merged(np.asarray(attention.scaled_dot_product_attention(QUERY, key, value)))


def test_negative_offset_in_numpy():
    base, away, extra = plain(KEY, VALUE), plain(NEGATIVE_KEY, NEGATIVE_VALUE), plain(EXTRA_KEY, EXTRA_VALUE)
    gains, biases = np.linspace(0.5, 1.5, 12), np.linspace(-1, 1, 12)
    norm = lambda x: np.sqrt(np.sum(x**2, axis=(1, 2), keepdims=True))  # noqa: E731
    expected_away = gains * norm(base) * away / norm(away) + biases
    expected_extra = 2 * norm(base) * extra / norm(extra) - biases
    named = {"negative_gain": gains, "negative_bias": biases, "extra_gain": 2.0, "extra_bias": -biases}
    given = QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE
    out = attention.negative_offset_attention(*given, EXTRA_KEY, EXTRA_VALUE, **named, strength=jnp.array([1.0, 0.3]))
    strength = np.array([1.0, 0.3])[:, None, None]
    np.testing.assert_allclose(out, base + strength * (expected_extra - expected_away), rtol=1e-4, atol=1e-4)
    alone = attention.negative_offset_attention(*given, negative_gain=gains, negative_bias=biases, strength=0.3)
    np.testing.assert_allclose(alone, base - 0.3 * expected_away, rtol=1e-4, atol=1e-4)


def test_at_the_start_of_training_it_is_the_base_layer():
    out = attention.negative_offset_attention(QUERY, KEY, VALUE, EXTRA_KEY, EXTRA_VALUE, EXTRA_KEY, EXTRA_VALUE)
    np.testing.assert_allclose(out, plain(KEY, VALUE), rtol=1e-5, atol=1e-6)
    off = attention.negative_offset_attention(
        QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE, EXTRA_KEY, EXTRA_VALUE, strength=0.0
    )
    np.testing.assert_allclose(off, plain(KEY, VALUE), rtol=1e-6)


def test_offsets_have_the_norm_of_the_base_whatever_theirs():
    base = plain(KEY, VALUE)
    for scale in (1e-6, 1.0, 1e6):
        out = attention.negative_offset_attention(QUERY, KEY, VALUE, NEGATIVE_KEY, scale * NEGATIVE_VALUE)
        norms = np.linalg.norm((base - np.asarray(out)).reshape(2, -1), axis=1)
        np.testing.assert_allclose(norms, np.linalg.norm(base.reshape(2, -1), axis=1), rtol=1e-5)


def test_examples_do_not_mix():
    """Norms are per example: neighbours in the batch change nothing (those of the official code would)."""
    given = QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE, EXTRA_KEY, EXTRA_VALUE
    together = attention.negative_offset_attention(*given)
    alone = [attention.negative_offset_attention(*(x[i : i + 1] for x in given)) for i in range(2)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-6)
    eight = [np.concatenate([x] * 4) for x in given]
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("batch")
    sharded = jax.shard_map(attention.negative_offset_attention, mesh=mesh, in_specs=(rows,) * 7, out_specs=rows)
    np.testing.assert_allclose(jax.jit(sharded)(*eight), np.concatenate([together] * 4), rtol=1e-5, atol=1e-6)


def test_padding_of_prompts_takes_no_part_in_offsets():
    mask = jnp.arange(6) < jnp.array([[4], [6]])
    negative_mask = jnp.arange(2) < jnp.array([[1], [2]])
    out = attention.negative_offset_attention(
        QUERY,
        KEY,
        VALUE,
        NEGATIVE_KEY,
        NEGATIVE_VALUE,
        EXTRA_KEY,
        EXTRA_VALUE,
        mask=mask,
        negative_mask=negative_mask,
    )
    short = attention.negative_offset_attention(
        *(x[:1] for x in (QUERY, KEY[:, :, :4], VALUE[:, :, :4], NEGATIVE_KEY[:, :, :1], NEGATIVE_VALUE[:, :, :1])),
        *(x[:1, :, :4] for x in (EXTRA_KEY, EXTRA_VALUE)),
    )
    whole = attention.negative_offset_attention(
        *(x[1:] for x in (QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE, EXTRA_KEY, EXTRA_VALUE))
    )
    np.testing.assert_allclose(out, jnp.concatenate([short, whole]), rtol=1e-5, atol=1e-6)
    # A negative prompt that is all padding is a branch of zeros.
    silent = attention.negative_offset_attention(
        QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE, negative_mask=jnp.zeros((2, 2), bool)
    )
    np.testing.assert_allclose(silent, plain(KEY, VALUE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["negative", "extra", "base"])
def test_a_branch_of_zeros_gives_its_bias_and_finite_gradients(which):
    zero = {"negative": 4, "extra": 6, "base": 2}[which]
    given = [QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE, EXTRA_KEY, EXTRA_VALUE]
    given[zero] = jnp.zeros_like(given[zero])
    named = {"negative_bias": 0.25, "extra_bias": 0.5}
    out = attention.negative_offset_attention(*given, **named)
    base, away, extra = (plain(given[i], given[i + 1]) for i in (1, 3, 5))
    norm = lambda x: np.sqrt(np.sum(x**2, axis=(1, 2), keepdims=True))  # noqa: E731
    away, extra = (norm(base) * x / np.maximum(norm(x), 1e-30) for x in (away, extra))
    np.testing.assert_allclose(out, base + extra + 0.5 - away - 0.25, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda args: jnp.sum(attention.negative_offset_attention(*args, **named) ** 2))(given)
    assert all(bool(jnp.all(jnp.isfinite(part))) for part in gradient)


# --- bad input ---


def test_tokens_that_do_not_fit():
    call = attention.scaled_dot_product_attention
    with pytest.raises(ValueError, match="query must be"):
        call(jnp.zeros(4), jnp.zeros(4), jnp.zeros(4))
    with pytest.raises(ValueError, match="key must have the leading axes and the width of query"):
        call(QUERY, KEY[..., :3], VALUE)
    with pytest.raises(ValueError, match="key must have the leading axes and the width of query"):
        call(QUERY, KEY[:, :2], VALUE[:, :2])
    with pytest.raises(ValueError, match="value must have the leading axes and the tokens of key"):
        call(QUERY, KEY, VALUE[..., :5, :])
    with pytest.raises(ValueError, match="key must have at least one token"):
        call(QUERY, KEY[..., :0, :], VALUE[..., :0, :])
    with pytest.raises(ValueError, match="mask of shape"):
        call(QUERY, KEY, VALUE, jnp.ones((5, 5), bool))
    with pytest.raises(ValueError, match="mask must be bool"):
        call(QUERY, KEY, VALUE, jnp.ones((5, 6)))


@pytest.mark.parametrize("function", [attention.negative_away_attention, attention.negative_offset_attention])
def test_negative_prompts_that_do_not_fit(function):
    named = {"scale": 0.5} if function is attention.negative_away_attention else {}
    with pytest.raises(ValueError, match="negative_key must have the leading axes"):
        function(QUERY, KEY, VALUE, NEGATIVE_KEY[:, :1], NEGATIVE_VALUE[:, :1], **named)
    with pytest.raises(ValueError, match="negative_value must have the leading axes and the tokens of negative_key"):
        function(QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE[..., :1, :], **named)
    with pytest.raises(ValueError, match="negative_value must have the width of value, 4, got 3"):
        function(QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE[..., :3], **named)
    with pytest.raises(ValueError, match="negative_key must have at least one token"):
        function(QUERY, KEY, VALUE, NEGATIVE_KEY[..., :0, :], NEGATIVE_VALUE[..., :0, :], **named)
    with pytest.raises(ValueError, match="value must have the leading axes and the tokens of key"):
        function(QUERY, KEY, VALUE[..., :2, :], NEGATIVE_KEY, NEGATIVE_VALUE, **named)
    with pytest.raises(ValueError, match="query must"):
        function(QUERY[0, 0], KEY[0, 0], VALUE[0, 0], NEGATIVE_KEY[0, 0], NEGATIVE_VALUE[0, 0], **named)


def test_what_negative_away_attention_refuses():
    given = QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE
    call = functools.partial(attention.negative_away_attention, *given)
    with pytest.raises(ValueError, match="scale must be a scalar or have shape"):
        call(scale=jnp.ones(3))
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 6\)"):
        call(scale=1.0, mask=jnp.ones((2, 2), bool))
    with pytest.raises(ValueError, match=r"negative_mask must have shape \(2, 2\)"):
        call(scale=1.0, negative_mask=jnp.ones((2, 6), bool))
    with pytest.raises(ValueError, match="negative_mask must be bool"):
        call(scale=1.0, negative_mask=jnp.ones((2, 2)))


def test_what_negative_offset_attention_refuses():
    given = QUERY, KEY, VALUE, NEGATIVE_KEY, NEGATIVE_VALUE
    call = functools.partial(attention.negative_offset_attention, *given)
    with pytest.raises(ValueError, match="together, got no extra_value"):
        call(EXTRA_KEY)
    with pytest.raises(ValueError, match="together, got no extra_key"):
        call(None, EXTRA_VALUE)
    with pytest.raises(ValueError, match="extra_value must have the width of value"):
        call(EXTRA_KEY, EXTRA_VALUE[..., :2])
    with pytest.raises(ValueError, match="extra_key must have the leading axes"):
        call(EXTRA_KEY[..., :2], EXTRA_VALUE)
    for name in ("negative_gain", "negative_bias", "extra_gain", "extra_bias"):
        with pytest.raises(ValueError, match=rf"{name} must be a scalar or have shape \(12,\)"):
            call(**{name: jnp.ones(4)})
    with pytest.raises(ValueError, match="strength must be a scalar or have shape"):
        call(strength=jnp.ones(3))
    with pytest.raises(ValueError, match=r"negative_mask must have shape \(2, 2\)"):
        call(negative_mask=jnp.ones((2, 3), bool))
    with pytest.raises(ValueError, match="mask must be bool"):
        call(mask=jnp.ones((2, 6)))
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 5\)"):
        call(EXTRA_KEY[:, :, :5], EXTRA_VALUE[:, :, :5], mask=jnp.ones((2, 6), bool))


def gate_params(key, features, width):
    layer = lambda key, n, m: {  # noqa: E731
        "kernel": jax.random.normal(key, (n, m)) / n**0.5,
        "bias": jax.random.normal(key, (m,)) / 4,
    }
    keys = jax.random.split(key, 6)
    inner = {name: layer(k, width, width) for name, k in zip(("query", "key", "value", "out"), keys, strict=False)}
    return {"embed": layer(keys[4], features, features * width), **inner, "score": layer(keys[5], width, 1)}


def test_feature_gate_in_numpy():
    params, features = gate_params(jax.random.key(0), 5, 4), jax.random.normal(jax.random.key(1), (3, 5))
    dense = lambda name, x: x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])  # noqa: E731
    expected = []
    for row in np.asarray(features):
        x = dense("embed", row).reshape(5, 4)
        q, k, v = (dense(name, x) for name in ("query", "key", "value"))
        heads = []
        for own in (slice(0, 2), slice(2, 4)):
            weights = np.exp(q[:, own] @ k[:, own].T / np.sqrt(2))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, own])
        expected.append(1 / (1 + np.exp(-dense("score", dense("out", np.concatenate(heads, 1)))[:, 0])))
    gate = attention.feature_gate(params, features, heads=2)
    np.testing.assert_allclose(gate, expected, rtol=1e-4)
    np.testing.assert_allclose(attention.feature_gate(params, features[1:2], heads=2), gate[1:2], rtol=1e-5)
    assert attention.feature_gate(params, features.astype(jnp.bfloat16), heads=2).dtype == jnp.bfloat16
    zeros = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(attention.feature_gate(zeros, features, heads=1), 0.5)


def test_what_feature_gates_refuse():
    params, features = gate_params(jax.random.key(0), 5, 4), jnp.ones((3, 5))
    for changed, given, heads, match in (
        (params, features, 3, "heads must divide"),
        (params, features[0], 2, "features"),
        (params, features[:, :4], 2, "embed"),
        ({**params, "out": {"kernel": jnp.ones((4, 4))}}, features, 2, "'out' with a kernel and a bias"),
        ({**params, "key": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}, features, 2, r"\(4, 3\)"),
        ({name: layer for name, layer in params.items() if name != "value"}, features, 2, "'value'"),
        ({}, features, 2, "heads must divide"),
    ):
        with pytest.raises(ValueError, match=match):
            attention.feature_gate(changed, given, heads=heads)
