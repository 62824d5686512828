"""Divergences over tokens: sums, lengths, padding that does not leak; coins for each example; bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation
from mlfuncs.distillation import _rows

KEY = jax.random.key(0)
STUDENT, TEACHER = 2 * jax.random.normal(KEY, (2, 3, 4, 5))
MASK = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
TOKENS = {
    "forward": distillation.kullback_leibler,
    "reverse": distillation.reverse_kullback_leibler,
    "jensen_shannon": partial(distillation.jensen_shannon, mixture=0.3),
}


@pytest.mark.parametrize("divergence", list(TOKENS))
def test_sums_over_tokens(divergence):
    tokens = TOKENS[divergence](STUDENT, TEACHER, temperature=2.0) / 4  # no factor T^2
    run = partial(distillation.sequence_divergence, divergence=divergence, mixture=0.3, temperature=2.0)
    expected = np.sum(np.asarray(MASK) * np.asarray(tokens), axis=1)
    for mask in (MASK, MASK.astype(bool), MASK.astype(jnp.float32)):
        np.testing.assert_allclose(run(STUDENT, TEACHER, mask), expected, rtol=1e-5)
    by_length = run(STUDENT, TEACHER, MASK, normalize_by_length=True)
    np.testing.assert_allclose(by_length, expected / np.array([2, 4, 1]), rtol=1e-5)
    assert by_length[2] == 0


@pytest.mark.parametrize("divergence", list(TOKENS))
def test_padding_does_not_leak(divergence, monkeypatch):
    garbage = jnp.where(MASK[..., None] == 1, STUDENT, jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1e9, 0.0]))
    run = lambda s, t: jax.value_and_grad(  # noqa: E731
        lambda *x: distillation.sequence_divergence(*x, MASK, divergence=divergence).sum(), argnums=(0, 1)
    )(s, t)
    expected = jax.jit(run)(STUDENT, TEACHER)
    ours = jax.jit(run)(garbage, jnp.where(MASK[..., None] == 1, TEACHER, jnp.nan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, expected)
    for side in ours[1]:
        np.testing.assert_array_equal(side[2], np.zeros((4, 5)))
    monkeypatch.setattr(_rows, "BLOCK", 20)
    blocked = jax.jit(lambda s, t: run(s, t))(garbage, TEACHER)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), blocked, expected)


def test_edges():
    run = distillation.sequence_divergence
    np.testing.assert_array_equal(run(STUDENT[:, :0], TEACHER[:, :0], MASK[:, :0]), np.zeros(3))
    np.testing.assert_array_equal(
        run(STUDENT[:, :0], TEACHER[:, :0], MASK[:, :0], normalize_by_length=True), np.zeros(3)
    )
    np.testing.assert_array_equal(run(STUDENT[..., :1], TEACHER[..., :1], MASK), np.zeros(3))
    assert np.isfinite(run(STUDENT, TEACHER.at[..., 0].set(-jnp.inf), MASK)).all()


def test_sequence_divergence_of_samples_is_the_chain_rule():
    """Two tokens of two letters: the expectation over all four sequences is the KL of the joint distributions."""
    teacher = jax.random.normal(KEY, (3, 2))  # first token, then the second after letter 0 and after letter 1
    student = jax.random.normal(jax.random.key(1), (3, 2))
    letters = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    at = lambda table: jnp.stack([jnp.broadcast_to(table[0], (4, 2)), table[1 + letters[:, 0]]], axis=1)  # noqa: E731

    def joint(table):
        log = jax.nn.log_softmax(table)
        return log[0, letters[:, 0]] + log[1 + letters[:, 0], letters[:, 1]]

    exact = jnp.sum(jnp.exp(joint(teacher)) * (joint(teacher) - joint(student)))
    values = distillation.sequence_divergence(at(student), at(teacher), jnp.ones((4, 2)))
    np.testing.assert_allclose(jnp.sum(jnp.exp(joint(teacher)) * values), exact, rtol=1e-5)


def test_sources_are_chosen_example_by_example():
    fresh = {"tokens": jnp.ones((4000, 3), jnp.int32), "mask": jnp.ones(4000, bool)}
    stored = jax.tree.map(jnp.zeros_like, fresh)
    mixed = distillation.choose_source(KEY, fresh, stored, fresh_fraction=0.3)
    chosen = np.asarray(mixed["mask"])
    np.testing.assert_array_equal(mixed["tokens"], np.repeat(chosen[:, None], 3, 1))  # whole examples
    assert mixed["tokens"].dtype == jnp.int32
    # 4000 coins: within 5 standard errors, wrong alarms in fewer than 1 of 10^6 runs.
    assert abs(chosen.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)
    some = distillation.choose_source(KEY, jnp.ones(10), jnp.zeros(10), fresh_fraction=0.3)
    np.testing.assert_array_equal(some, chosen[:10])  # the coin of an example does not depend on the batch
    for fraction in (0.0, 1.0):
        ends = distillation.choose_source(KEY, jnp.ones(100), jnp.zeros(100), fresh_fraction=fraction)
        np.testing.assert_array_equal(ends, np.full(100, fraction))


def test_sources_of_split_batches():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = partial(distillation.choose_source, KEY, fresh_fraction=0.5)
    split = jax.shard_map(partial(run, axis_name="data"), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_array_equal(jax.jit(split)(jnp.ones(32), jnp.zeros(32)), run(jnp.ones(32), jnp.zeros(32)))


run, choose = distillation.sequence_divergence, distillation.choose_source


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: run(STUDENT[0], TEACHER[0], MASK[0]), "student_logits"),
        (lambda: run(STUDENT, TEACHER[:1], MASK), "teacher_logits"),
        (lambda: run(STUDENT, TEACHER, MASK[:1]), "mask"),
        (lambda: run(STUDENT, TEACHER, 0.5 * MASK), "mask"),
        (lambda: run(STUDENT, TEACHER, MASK, divergence="backward"), "divergence"),
        (lambda: run(STUDENT, TEACHER, MASK, divergence="jensen_shannon", mixture=1.0), "mixture"),
        (lambda: run(STUDENT, TEACHER, MASK, temperature=0.0), "temperature"),
        (lambda: choose(KEY, {"a": MASK}, {"b": MASK}, fresh_fraction=0.5), "stored"),
        (lambda: choose(KEY, MASK, MASK[:1], fresh_fraction=0.5), "stored"),
        (lambda: choose(KEY, [MASK, MASK[:1]], [MASK, MASK[:1]], fresh_fraction=0.5), "one batch"),
        (lambda: choose(KEY, MASK, MASK, fresh_fraction=1.5), "fresh_fraction"),
        (lambda: choose(KEY, jnp.float32(1), jnp.float32(1), fresh_fraction=0.5), "fresh"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
