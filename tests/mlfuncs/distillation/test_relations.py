"""Relations inside a layer: by hand and head by head, invariances, gradients, one batch over devices, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import architecture_search, distillation
from mlfuncs.distillation import _rows

KEY = jax.random.key(0)
MAPS = jax.random.normal(KEY, (4, 3, 2, 5))


def test_relations_of_examples_by_hand():
    # Gram matrices: the identity, and all ones, whose rows are (1, 1) / sqrt 2.
    apart, alike = jnp.eye(2), jnp.ones((2, 3))
    off = 1 / np.sqrt(2)
    expected = 2 * ((1 - off) ** 2 + off**2) / 4
    np.testing.assert_allclose(distillation.similarity_preserving(apart, alike), expected, rtol=1e-6)


def test_correlations_of_channels_by_hand():
    # Channels of the first example never meet, those of the second always do.
    student = jnp.array([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 2.0]]])
    teacher = jnp.array([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [2.0, 2.0]]])
    off = 1 / np.sqrt(2)
    expected = [0.0, ((1 - off) ** 2 + off**2) * 2 / 2]
    np.testing.assert_allclose(distillation.channel_correlation(student, teacher), expected, atol=1e-6)


def test_scale_rotation_and_order_do_not_matter():
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (30, 30)))[0]
    flat = MAPS.reshape(4, 30)
    other = jax.random.normal(jax.random.key(2), (4, 7))
    base = distillation.similarity_preserving(flat, other)
    for changed in (3 * flat, flat @ rotation, 1e18 * flat):
        np.testing.assert_allclose(distillation.similarity_preserving(changed, other), base, rtol=1e-4)
        np.testing.assert_allclose(distillation.similarity_preserving(changed, flat), 0, atol=1e-6)
    np.testing.assert_allclose(architecture_search.relation_similarity(other, flat), -base, rtol=1e-6)
    turned = MAPS.transpose(0, 2, 1, 3)[:, ::-1]
    np.testing.assert_allclose(distillation.channel_correlation(MAPS, 2 * turned), 0, atol=1e-6)
    assert np.all(np.asarray(distillation.channel_correlation(MAPS, MAPS[::-1, :2])) <= 4)


@pytest.mark.parametrize("loss", [distillation.similarity_preserving, distillation.channel_correlation])
def test_gradients_pass_to_the_student_alone_and_are_finite(loss):
    other = MAPS[::-1]
    student, teacher = jax.grad(lambda s, t: jnp.sum(loss(s, t)), argnums=(0, 1))(MAPS, other)
    assert float(jnp.abs(student).max()) > 0
    np.testing.assert_array_equal(teacher, 0)
    for features in (jnp.zeros_like(MAPS), MAPS.at[0].set(0), MAPS[..., :1] * jnp.ones(5)):
        value, gradient = jax.value_and_grad(lambda s: jnp.sum(loss(s, other)))(features)
        assert np.isfinite(float(value))
        assert np.all(np.isfinite(np.asarray(gradient)))


def test_a_batch_over_devices_is_one_batch():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    student, teacher = jax.random.normal(KEY, (8, 6)), jax.random.normal(jax.random.key(3), (8, 3, 2))
    loss = partial(distillation.similarity_preserving, axis_name="data")
    split = jax.shard_map(loss, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P())
    np.testing.assert_allclose(
        jax.jit(split)(student, teacher), distillation.similarity_preserving(student, teacher), rtol=1e-5
    )


OWN, GIVEN = jax.random.normal(KEY, (3, 2, 4, 5)), jax.random.normal(jax.random.key(4), (3, 2, 4, 7))
MASK = jnp.array([[True] * 4, [True, False, True, False]])


def TOKENS(*projections, relation_heads=2, **more):
    return distillation.self_attention_relation(*projections, relation_heads=relation_heads, **more)


def loop_over_heads(own, given, mask, divergence):
    """Token by token in float64, without the columns that remain and without padding."""
    totals = np.zeros(2)
    for kind in range(3):
        for example in range(2):
            held = np.asarray(mask[example])
            for head in range(2):
                scores = []
                for x in (own, given):
                    width = x.shape[-1] // 2
                    rows = np.asarray(x[kind, example], np.float64)[held, head * width : (head + 1) * width]
                    scores.append(rows @ rows.T / np.sqrt(width))
                if divergence == "mse":
                    totals[example] += np.mean((scores[0] - scores[1]) ** 2) / 2
                else:
                    q, p = (np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in scores)
                    totals[example] += np.mean(np.sum(p * np.log(p / q), 1)) / 2
    return totals


@pytest.mark.parametrize("divergence", ["kl", "mse"])
def test_relations_of_tokens_head_by_head(divergence):
    own, run = np.asarray(OWN), jax.jit(partial(TOKENS, divergence=divergence))
    for mask in (None, MASK):
        expected = loop_over_heads(own, GIVEN, np.ones((2, 4), bool) if mask is None else mask, divergence)
        value = run(own, GIVEN, mask=mask)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    # Padding has no say, and no gradient.
    other = own.copy()
    other[:, 1, 1] = 9.0
    np.testing.assert_allclose(run(other, GIVEN, mask=MASK), value, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda s, t: run(s, t, mask=MASK).sum(), argnums=(0, 1)))
    student, teacher = map(np.asarray, gradient(own, GIVEN))
    np.testing.assert_array_equal(teacher, 0)
    np.testing.assert_array_equal(student[:, 1, [1, 3]], 0)
    np.testing.assert_array_equal(student[..., 4:], 0)  # a column that is dropped
    for features in (own, np.zeros_like(own), 1e3 * own):
        assert np.all(np.isfinite(gradient(features, GIVEN)[0]))


def test_relations_of_tokens_a_few_examples_at_a_time(monkeypatch):
    own, given = (tuple(jax.random.normal(jax.random.key(seed), (3, 6, 5, 8))) for seed in (0, 1))
    mask = jnp.arange(5) < jnp.array([5, 3, 1, 4, 2, 5])[:, None]
    run = lambda: jax.jit(  # noqa: E731
        jax.value_and_grad(lambda s, w: TOKENS(s, given, mask=mask, weights=w).sum(), argnums=(0, 1))
    )(own, jnp.array([1.0, 2.0, 0.5]))
    expected = run()
    monkeypatch.setattr(_rows, "BLOCK", 120)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), run(), expected)


def test_scores_of_all_examples_are_never_held():
    # Compiled, not run: one set of scores at 197 tokens, 12 heads and 256 examples takes 455 MiB, and there are six.
    given = tuple(jax.ShapeDtypeStruct((256, 197, 384), jnp.float32) for _ in range(3))
    loss = lambda s, t: distillation.self_attention_relation(s, t).mean()  # noqa: E731
    memory = jax.jit(jax.value_and_grad(loss)).lower(given, given).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 3 * 256 * 197 * 384 * 4 + 200 * 2**20


def test_relations_of_tokens_at_the_edges():
    np.testing.assert_allclose(TOKENS(OWN, OWN), 0, atol=1e-6)
    one = [x[:, :1] for x in OWN], [x[:, :1] for x in GIVEN]
    np.testing.assert_allclose(TOKENS(*one), 0, atol=1e-6)
    parts = [TOKENS(OWN, GIVEN, weights=jnp.eye(3)[kind]) for kind in range(3)]
    np.testing.assert_allclose(
        TOKENS(OWN, GIVEN, weights=(1, 2, 0.5)), parts[0] + 2 * parts[1] + parts[2] / 2, rtol=1e-5
    )
    nothing = jax.jit(lambda mask: TOKENS(OWN, GIVEN, mask=mask))(jnp.zeros((2, 4), bool))
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: TOKENS(OWN[:2], GIVEN), "student_projections must be three"),
        (lambda: TOKENS([*OWN[:2], OWN[2][:, :3]], GIVEN), "student_projections must have one shape"),
        (lambda: TOKENS(OWN, [x[:, :3] for x in GIVEN]), "2 x 4 tokens"),
        (lambda: TOKENS(OWN, GIVEN, relation_heads=6), "width of student_projections, 5, got 6"),
        (lambda: TOKENS(OWN, GIVEN, divergence="js"), "divergence must be one of kl, mse"),
        (lambda: TOKENS(OWN, GIVEN, mask=jnp.zeros((2, 4), bool)), "at least one token"),
        (lambda: TOKENS(OWN, GIVEN, mask=jnp.ones((2, 4))), "mask must be bool"),
        (lambda: TOKENS(OWN, GIVEN, weights=(1.0, 1.0)), "weights must be three"),
        (lambda: distillation.similarity_preserving(jnp.ones((2, 3)), jnp.ones((3, 3))), "2 and 3 examples"),
        (lambda: distillation.similarity_preserving(jnp.ones((0, 3)), jnp.ones((0, 3))), "at least one example"),
        (lambda: distillation.similarity_preserving(MAPS, MAPS, eps=0.0), "eps"),
        (lambda: distillation.channel_correlation(MAPS, MAPS[..., :4]), "5 and 4"),
        (lambda: distillation.channel_correlation(jnp.ones(3), jnp.ones(3)), "N, ..., K"),
        (lambda: distillation.channel_correlation(MAPS, MAPS[:3]), "4 and 3 examples"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
