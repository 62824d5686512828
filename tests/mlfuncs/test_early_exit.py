"""Early exits: distributions and exits by hand, limits, statistics of sampled exits, gradients, sharding, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import early_exit

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
HALTING = np.random.default_rng(0).uniform(size=(16, 5)).astype(np.float32)


def textbook_exits(halting, epsilon):
    """One example in float64, layer by layer: what leaves, and the constant once more than 1 - epsilon has left."""
    exits, left, reached = [], 0.0, 1.0
    for probability in np.asarray(halting, np.float64):
        exits.append(epsilon / len(halting) if left > 1 - epsilon else probability * reached)
        reached *= 1 - probability
        left += exits[-1]
    return exits


def test_exit_distribution_by_hand():
    exits = early_exit.exit_distribution([[0.5, 0.5, 1.0]], epsilon=0.0)
    np.testing.assert_array_equal(exits, [[0.5, 0.25, 0.25]])
    # 0.99 has left before the second layer, more than 0.95: constants of 0.05 / 4 from there on.
    exits = early_exit.exit_distribution([[0.99, 0.3, 0.0, 1.0]])
    np.testing.assert_allclose(exits, [[0.99, 0.0125, 0.0125, 0.0125]], rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.4])
def test_exit_distribution_agrees_with_a_loop(epsilon):
    expected = [textbook_exits(row, epsilon) for row in HALTING]
    np.testing.assert_allclose(early_exit.exit_distribution(HALTING, epsilon=epsilon), expected, rtol=1e-5, atol=1e-7)


def test_plain_exits_and_what_stays_sum_to_one():
    exits = early_exit.exit_distribution(HALTING, epsilon=0.0)
    np.testing.assert_allclose(exits.sum(1) + np.prod(1 - HALTING, axis=1), 1, rtol=1e-6)
    surely = early_exit.exit_distribution(np.concatenate([HALTING, np.ones((16, 1))], axis=1), epsilon=0.0)
    np.testing.assert_allclose(surely.sum(1), 1, rtol=1e-6)
    assert np.all(early_exit.exit_distribution(HALTING, epsilon=0.4).sum(1) <= 1.4)


def test_constants_have_no_gradient_and_certain_layers_finite_ones():
    total = lambda halting: jnp.sum(early_exit.exit_distribution(halting) * jnp.arange(1.0, 5))  # noqa: E731
    late = jax.grad(total)(jnp.array([[0.99, 0.3, 0.2, 0.7]]))
    np.testing.assert_allclose(late, [[1, 0, 0, 0]])
    for halting in ([[0.0, 0, 0, 0]], [[1.0, 1, 1, 1]], [[1.0, 0, 1, 0]]):
        assert np.all(np.isfinite(jax.grad(total)(jnp.array(halting))))
    # p_1 = a, p_2 = (1 - a) b, p_3 = (1 - a)(1 - b) c with a = b = c = 0: slopes 1, 1, 1, not 0 / 0.
    plain = jax.grad(lambda x: early_exit.exit_distribution(x, epsilon=0.0).sum())(jnp.zeros((1, 3)))
    np.testing.assert_allclose(plain, [[1, 1, 1]])


@pytest.mark.parametrize("num_layers", [1, 2, 12])
def test_prior_is_a_truncated_geometric_distribution(num_layers):
    prior = early_exit.geometric_prior(num_layers, rate=0.3)
    assert prior.shape == (num_layers,)
    np.testing.assert_allclose(prior.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(prior[:-1], 0.3 * 0.7 ** np.arange(num_layers - 1), rtol=1e-5)
    # Exits of constant halting probabilities, certain at the last layer, are that prior.
    halting = np.full((1, num_layers), 0.3)
    halting[0, -1] = 1
    np.testing.assert_allclose(early_exit.exit_distribution(halting, epsilon=0.0)[0], prior, rtol=1e-5)


def test_pondering_by_hand():
    losses, exits, prior = [[1.0, 3.0]], [[0.25, 0.75]], [0.5, 0.5]
    divergence = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(early_exit.pondering(losses, exits, prior), [2.5 + 0.5 * divergence], rtol=1e-6)
    np.testing.assert_allclose(early_exit.pondering(losses, exits, prior, beta=0.0), [2.5])
    np.testing.assert_allclose(early_exit.pondering(losses, exits, exits[0], beta=7.0), [2.5], rtol=1e-6)
    # An entry of 0 in the prior asks nothing: 1 * log(1 / 0.25).
    np.testing.assert_allclose(early_exit.pondering(losses, exits, [1.0, 0.0], beta=1.0), [2.5 + np.log(4)], rtol=1e-6)


def test_pondering_is_finite_where_nothing_exits():
    # KL = 0.5 log(0.5 / 1e-12) + 0.5 log 0.5.
    expected = 0.5 * (0.5 * np.log(0.5 / 1e-12) + 0.5 * np.log(0.5))
    arguments = jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]]), jnp.array([0.5, 0.5])
    np.testing.assert_allclose(early_exit.pondering(*arguments), [expected], rtol=1e-6)
    slopes = jax.grad(lambda *a: early_exit.pondering(*a).sum(), argnums=(0, 1, 2))(*arguments)
    none = jax.grad(lambda p: early_exit.pondering(*arguments[:2], p).sum())(jnp.array([0.0, 1.0]))
    for slope in (*slopes, none):
        assert np.all(np.isfinite(slope))
    assert slopes[1][0, 0] == 0  # the floor of the logarithm
    assert (
        early_exit.pondering(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 3)) / 3, jnp.ones(3) / 3).dtype == jnp.float32
    )


def test_quantile_exit_by_hand():
    # Left by layer: 0.5, 0.75, 0.875. Exactly the threshold is not beyond it.
    halting = np.full((1, 3), 0.5)
    for threshold, layer in ((0.3, 0), (0.5, 1), (0.74, 1), (0.75, 2), (0.9, 2)):
        assert early_exit.quantile_exit(halting, threshold=threshold) == layer
    assert early_exit.quantile_exit([[0.3, 1.0]], threshold=0.3) == 1  # a tie that float32 keeps
    assert early_exit.quantile_exit([[0.3, 1.0]]).dtype == jnp.int32


def test_quantile_exit_at_its_limits():
    """Never halting is the last layer, certain halting the first; later layers for larger thresholds."""
    np.testing.assert_array_equal(early_exit.quantile_exit(np.zeros((3, 4))), [3, 3, 3])
    np.testing.assert_array_equal(early_exit.quantile_exit(np.ones((3, 4)), threshold=0.999), [0, 0, 0])
    np.testing.assert_array_equal(early_exit.quantile_exit(HALTING * 0.5, threshold=0.9999), np.full(16, 4))
    np.testing.assert_array_equal(early_exit.quantile_exit(np.full((2, 1), 0.1)), [0, 0])
    assert early_exit.quantile_exit([[np.nan, 1.0]]) == 1
    layers = [early_exit.quantile_exit(HALTING, threshold=q) for q in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert np.all(np.diff(layers, axis=0) >= 0)
    assert len({int(layer.sum()) for layer in layers}) > 3


def test_a_traced_threshold_is_not_compiled_in():
    traces = []

    @jax.jit
    def leave(threshold):
        traces.append(None)
        return early_exit.quantile_exit(HALTING, threshold=threshold)

    for q in (0.2, 0.5):
        np.testing.assert_array_equal(leave(q), early_exit.quantile_exit(HALTING, threshold=q))
    assert len(traces) == 1


def test_sampled_exits_follow_the_exit_distribution():
    halting = jnp.array([0.2, 0.0, 0.5, 0.3])
    expected = np.append(np.asarray(early_exit.exit_distribution(halting[None], epsilon=0.0))[0, :-1], 0.0)
    expected[-1] = 1 - expected.sum()  # the last layer takes all that is left
    count = 20_000
    layers = early_exit.sample_exit(KEY, jnp.tile(halting, (count, 1)))
    shares = np.bincount(layers, minlength=4) / count
    # Four counts, 4.5 standard deviations each: wrong for fewer than 1 in 30,000 keys.
    assert np.all(np.abs(shares - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / count))
    assert shares[1] == 0
    np.testing.assert_array_equal(early_exit.sample_exit(KEY, jnp.zeros((3, 4))), [3, 3, 3])
    np.testing.assert_array_equal(early_exit.sample_exit(KEY, jnp.ones((3, 4))), [0, 0, 0])


def test_sampled_exits_do_not_depend_on_the_batch_or_the_devices():
    halting = jnp.full((16, 5), 0.3)
    layers = early_exit.sample_exit(KEY, halting)
    np.testing.assert_array_equal(early_exit.sample_exit(KEY, halting[:6]), layers[:6])
    assert not np.array_equal(early_exit.sample_exit(jax.random.key(1), halting), layers)
    sharded = jax.shard_map(
        partial(early_exit.sample_exit, KEY, axis_name="data"), mesh=MESH, in_specs=P("data"), out_specs=P("data")
    )
    np.testing.assert_array_equal(jax.jit(sharded)(halting), layers)


def predictions(*classes):
    """[L, 1, 3] logits whose largest entries are those classes."""
    return jax.nn.one_hot(jnp.array(classes), 3)[:, None]


def test_patience_by_hand():
    # The class of the layer before is repeated at layers 2, 3, 5, 6 and 7.
    logits = predictions(0, 1, 1, 1, 2, 2, 2, 2, 0)
    for patience, layer in ((1, 2), (2, 3), (3, 7), (4, 8), (6, 8), (100, 8)):
        assert early_exit.patience_exit(logits, patience=patience) == layer
    assert early_exit.patience_exit(predictions(*[1] * 9)) == 6
    assert early_exit.patience_exit(predictions(2)) == 0
    both = jnp.concatenate([logits, predictions(*[1] * 9)], axis=1)
    np.testing.assert_array_equal(early_exit.patience_exit(both, patience=2), [3, 2])


def head(width, hidden):
    keys = iter(jax.random.split(KEY, 9))
    dense = lambda n: {"kernel": jax.random.normal(next(keys), (width, n)), "bias": jnp.full((n,), 0.1)}  # noqa: E731
    return {"hidden": [dense(width) for _ in range(hidden)], "output": dense(1)}


def test_halting_heads():
    current, previous = jax.random.normal(KEY, (2, 3, 2))
    linear = head(4, 0)
    both = np.concatenate([current, previous], axis=1)
    expected = both @ np.asarray(linear["output"]["kernel"])[:, 0] + 0.1
    np.testing.assert_allclose(early_exit.halting_logits(linear, current, previous), expected, rtol=1e-5)
    deep = head(4, 1)
    expected = np.tanh(both @ np.asarray(deep["hidden"][0]["kernel"]) + 0.1)
    expected = expected @ np.asarray(deep["output"]["kernel"])[:, 0] + 0.1
    np.testing.assert_allclose(early_exit.halting_logits(deep, current, previous), expected, rtol=1e-5)
    assert not np.allclose(early_exit.halting_logits(deep, previous, current), expected)  # the order counts


def test_training_from_logits_to_loss_has_finite_gradients():
    states = jax.random.normal(KEY, (4, 3, 2)) * 100  # saturated heads
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])

    def loss(params):
        logits = jax.vmap(partial(early_exit.halting_logits, params))(states, before)
        exits = early_exit.exit_distribution(jax.nn.sigmoid(logits).T)
        return early_exit.pondering(jnp.ones((3, 4)), exits, early_exit.geometric_prior(4)).mean()

    value, slopes = jax.jit(jax.value_and_grad(loss))(head(4, 2))
    assert np.isfinite(value)
    for slope in jax.tree.leaves(slopes):
        assert np.all(np.isfinite(slope))


ROW = jnp.full((1, 3), 0.5)
EVEN = jnp.full(3, 1 / 3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: early_exit.exit_distribution(ROW[0]), "halting_probabilities"),
        (lambda: early_exit.exit_distribution(ROW[:, :0]), "at least one layer"),
        (lambda: early_exit.exit_distribution(ROW + 1), r"in \[0, 1\]"),
        (lambda: early_exit.exit_distribution(-ROW), r"in \[0, 1\]"),
        (lambda: early_exit.exit_distribution(ROW, epsilon=1.0), "epsilon"),
        (lambda: early_exit.exit_distribution(ROW, epsilon=-0.1), "epsilon"),
        (lambda: early_exit.geometric_prior(0), "num_layers"),
        (lambda: early_exit.geometric_prior(3, rate=0.0), "rate"),
        (lambda: early_exit.geometric_prior(3, rate=1.0), "rate"),
        (lambda: early_exit.pondering(ROW, ROW, EVEN[:2]), r"prior must have shape \(3,\).*\(2,\)"),
        (lambda: early_exit.pondering(ROW, ROW, EVEN, beta=-1.0), "beta"),
        (lambda: early_exit.pondering(ROW, ROW, -EVEN), "prior"),
        (lambda: early_exit.pondering(ROW[:, :2], ROW, EVEN), "layer_losses"),
        (lambda: early_exit.pondering(ROW, ROW * 3, EVEN), "exit_probabilities"),
        (lambda: early_exit.quantile_exit(ROW, threshold=0.0), "threshold"),
        (lambda: early_exit.quantile_exit(ROW, threshold=1.0), "threshold"),
        (lambda: early_exit.quantile_exit(ROW, threshold=float("nan")), "threshold"),
        (lambda: early_exit.quantile_exit(ROW, threshold=jnp.array([0.5])), "threshold"),
        (lambda: early_exit.quantile_exit(ROW * 3), "halting_probabilities"),
        (lambda: early_exit.sample_exit(KEY, ROW * 3), "halting_probabilities"),
        (lambda: early_exit.patience_exit(predictions(0, 1), patience=0), "patience"),
        (lambda: early_exit.patience_exit(ROW), "logits"),
        (lambda: early_exit.patience_exit(jnp.ones((0, 2, 3))), "at least one layer"),
        (lambda: early_exit.halting_logits(head(4, 1), jnp.ones((2, 3)), jnp.ones((2, 3))), r"\(6, 6\)"),
        (lambda: early_exit.halting_logits(head(4, 1), jnp.ones((2, 2)), jnp.ones((3, 2))), "previous"),
        (lambda: early_exit.halting_logits({"output": {}}, ROW, ROW), r"hidden and output, got \['output'\]"),
        (lambda: early_exit.halting_logits({"hidden": [], "output": {}}, ROW, ROW), "bias and kernel, got"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
