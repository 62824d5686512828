"""Sampling: the likeliest tokens are those of the whole network, draws follow its odds, prompts of different lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import generation
from tests.experiments.models.helpers import build, compiled, quickly, weights

WORDS, LENGTH = 7, 8
PROMPT = np.random.default_rng(0).integers(1, WORDS, (3, 4))
KEYS = jax.vmap(jax.random.key)(jnp.arange(3))


@functools.cache
def network():
    model = build("language", (LENGTH,), num_classes=WORDS)
    return model, jax.tree.map(lambda x: 3 * x, weights(model))


def generated(prompt, keys=KEYS, length=LENGTH, **settings):
    model, params = network()
    run = quickly(
        lambda params, keys, prompt: generation.generate(model, params, keys, prompt, length=length, **settings)
    )
    return np.asarray(run(params, keys, jnp.asarray(prompt)))


def greedily(prompt, length=LENGTH):
    """Without a cache: the whole text again for every token."""
    model, params = network()
    apply, tokens = compiled(model), np.asarray(prompt)
    while tokens.shape[1] < length:
        tokens = np.concatenate([tokens, apply(params, tokens)["logits"][:, -1:].argmax(-1)], axis=1)
    return tokens


def test_greedy_decoding_is_that_without_a_cache():
    found = generated(PROMPT, temperature=0.0)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, greedily(PROMPT))


def test_prompts_of_different_lengths():
    given = np.array([2, 4, 3])
    found = generated(PROMPT, given=jnp.asarray(given), temperature=0.0, prefill=2)
    np.testing.assert_array_equal(found, generated(PROMPT, given=jnp.asarray(given), temperature=0.0))
    for row, count in enumerate(given):
        np.testing.assert_array_equal(found[row : row + 1], greedily(PROMPT[row : row + 1, :count]))


def test_there_is_nothing_after_the_end():
    free = generated(PROMPT, temperature=0.0)
    end = int(free[0, 4])
    found = generated(PROMPT, temperature=0.0, end=end)
    # An end within the prompt ends nothing.
    for row, (ours, all_of_it) in enumerate(zip(found, free, strict=True)):
        stops = [place for place in range(4, LENGTH) if all_of_it[place] == end]
        last = stops[0] if stops else LENGTH
        np.testing.assert_array_equal(ours[: last + 1], all_of_it[: last + 1], err_msg=str(row))
        np.testing.assert_array_equal(ours[last + 1 :], generation.PAD)


def test_a_sample_depends_on_its_key_alone():
    every = generated(PROMPT)
    np.testing.assert_array_equal(generated(PROMPT[1:], KEYS[1:]), every[1:])
    np.testing.assert_array_equal(generated(PROMPT, length=6), every[:, :6])
    assert not np.array_equal(generated(PROMPT, KEYS[::-1]), every)


def test_draws_follow_the_odds():
    """20,000 draws: a share is farther than 0.02 from its odds with probability below 1e-7 (Hoeffding)."""
    logits = jnp.array([0.0, 1.0, 2.0, -1.0])
    draw = functools.partial(generation.choose, jax.random.split(jax.random.key(0), 20_000))
    many = jnp.broadcast_to(logits, (20_000, 4))
    for temperature, top_k in ((1.0, 0), (0.5, 0), (1.0, 2), (2.0, 3), (1.0, 1)):
        shares = np.bincount(draw(many, temperature=temperature, top_k=top_k), minlength=4) / 20_000
        odds = np.exp(np.asarray(logits) / temperature)
        odds[np.argsort(odds)[: 4 - (top_k or 4)]] = 0
        np.testing.assert_allclose(shares, odds / odds.sum(), atol=0.02)
        assert np.all(shares[odds == 0] == 0)


def test_no_gradient_passes():
    model, params = network()

    def total(params):
        tokens = generation.generate(model, params, KEYS, jnp.asarray(PROMPT), length=6)
        return jnp.sum(tokens.astype(jnp.float32)) + jnp.sum(params["norm"]["scale"])

    gradients = jax.grad(total)(params)
    np.testing.assert_array_equal(gradients["norm"]["scale"], 1)
    np.testing.assert_array_equal(gradients["words"]["embedding"], 0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"temperature": -1.0}, "temperature must be >= 0, got -1"),
        ({"top_k": 8}, r"top_k must be in \[0, 7\], the vocabulary, got 8"),
        ({"length": 3}, "prefill <= prompt <= length must hold, got 4, 4 and 3"),
        ({"prefill": 5}, "must hold, got 5, 4 and 8"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(ValueError, match=match):
        generated(PROMPT, **settings)
