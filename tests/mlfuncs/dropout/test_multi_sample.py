"""Multi-sample dropout: identities of the paper, streaming against the direct form in value, gradient and memory, bad input.

Five-sigma bounds fail by chance with probability 6e-7 a comparison; keys are fixed.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlfuncs import dropout
from mlfuncs.dropout import multi_sample

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def squared(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=-1)


def cross_entropy(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def problem(batch=6, width=16, classes=4):
    keys = jax.random.split(jax.random.key(1), 3)
    features = jax.random.normal(keys[0], (batch, width))
    kernel = jax.random.normal(keys[1], (width, classes)) / 4
    return features, kernel, jax.random.randint(keys[2], (batch,), 0, classes)


def direct_loss(key, head, features, targets, loss_fn, *, num_samples=8, rate=0.5, shared_axes=()):
    masks = dropout.multi_sample_masks(key, num_samples, features.shape, rate=rate, shared_axes=shared_axes)
    outputs = dropout.multi_sample_outputs(head, features, masks, rate=rate)
    return dropout.multi_sample_loss(loss_fn, outputs, targets)


def test_samples_differ_and_are_the_same_for_every_number_of_samples():
    few = dropout.multi_sample_masks(KEY, 3, (5, 40), rate=0.5)
    many = dropout.multi_sample_masks(KEY, 8, (5, 40), rate=0.5)
    np.testing.assert_array_equal(few, many[:3])
    assert few.dtype == jnp.bool_
    for i, j in itertools.combinations(range(8), 2):
        assert (np.asarray(many[i]) != np.asarray(many[j])).any()
    np.testing.assert_array_equal(many[5], dropout.bernoulli_mask(jax.random.fold_in(KEY, 5), (5, 40)))
    np.testing.assert_array_equal(dropout.multi_sample_masks(KEY, 3, (5, 40), rate=0.0), np.ones((3, 5, 40)))


def test_masks_of_samples_are_uncorrelated():
    rate, count = 0.3, 1 << 14
    masks = np.asarray(dropout.multi_sample_masks(KEY, 4, (count,), rate=rate), np.float64) - (1 - rate)
    for i, j in itertools.combinations(range(4), 2):
        assert abs(np.mean(masks[i] * masks[j])) <= 5 * rate * (1 - rate) / np.sqrt(count)


def test_outputs_by_hand():
    features, masks = jnp.array([[1.0, 2.0]]), jnp.array([[[True, False]], [[True, True]]])
    outputs = dropout.multi_sample_outputs(lambda h: h @ jnp.array([[1.0], [10.0]]), features, masks, rate=0.5)
    np.testing.assert_allclose(outputs, [[[2.0]], [[42.0]]])
    losses = dropout.multi_sample_loss(squared, outputs, jnp.array([[2.0]]))
    np.testing.assert_allclose(losses, [800.0])  # (0 + 40^2) / 2: the mean of losses, not (20)^2 of the mean


def test_squared_error_is_that_of_the_mean_plus_the_spread():
    features, kernel, _ = problem()
    masks = dropout.multi_sample_masks(KEY, 8, features.shape)
    outputs = dropout.multi_sample_outputs(lambda h: h @ kernel, features, masks, rate=0.5)
    targets = jnp.ones((6, 4))
    mean = outputs.mean(0)
    expected = squared(mean, targets) + jnp.mean(jnp.sum((outputs - mean) ** 2, -1), 0)
    np.testing.assert_allclose(dropout.multi_sample_loss(squared, outputs, targets), expected, rtol=1e-5)
    # Jensen: the loss of averaged outputs is smaller.
    assert np.all(squared(mean, targets) < dropout.multi_sample_loss(squared, outputs, targets))


@pytest.mark.parametrize("num_samples", [1, 3, 8])
def test_rate_zero_is_the_plain_loss(num_samples):
    features, kernel, labels = problem()
    loss = dropout.multi_sample_dropout_loss(
        KEY, lambda h: h @ kernel, features, labels, cross_entropy, num_samples=num_samples, rate=0.0
    )
    np.testing.assert_allclose(loss, cross_entropy(features @ kernel, labels), rtol=1e-6)


def test_one_sample_is_plain_dropout():
    features, kernel, labels = problem()
    loss = dropout.multi_sample_dropout_loss(KEY, lambda h: h @ kernel, features, labels, cross_entropy, num_samples=1)
    dropped = dropout.dropout(jax.random.fold_in(KEY, 0), features)
    np.testing.assert_allclose(loss, cross_entropy(dropped @ kernel, labels), rtol=1e-6)


@pytest.mark.parametrize(("rate", "shared_axes"), [(0.3, ()), (0.8, (0,))])
@pytest.mark.parametrize("kept_bytes", [0, 8 * 6 * 16 // 8, 2**23])  # drawn again, kept as bits, kept as bytes
def test_streaming_equals_the_direct_form(rate, shared_axes, kept_bytes, monkeypatch):
    monkeypatch.setattr(multi_sample, "KEPT_BYTES", kept_bytes)
    features, kernel, labels = problem()

    def total(loss, features, kernel):
        head = lambda h: jax.nn.gelu(h) @ kernel  # noqa: E731
        return loss(KEY, head, features, labels, cross_entropy, rate=rate, shared_axes=shared_axes).mean()

    streamed = jax.jit(jax.value_and_grad(lambda f, k: total(dropout.multi_sample_dropout_loss, f, k), argnums=(0, 1)))
    value, gradients = streamed(features, kernel)
    direct = jax.jit(jax.value_and_grad(lambda f, k: total(direct_loss, f, k), argnums=(0, 1)))
    expected, expected_gradients = direct(features, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_streaming_memory_does_not_grow_with_samples():
    """Compiled only, never run: at B = D = 4096 and M = 8 the direct form would hold 0.7 GB."""
    batch, width, classes = 4096, 4096, 10
    shapes = (
        jax.ShapeDtypeStruct((batch, width), jnp.float32),
        jax.ShapeDtypeStruct((width, classes), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )

    def temporaries(loss, num_samples):
        def total(features, kernel, labels):
            return loss(KEY, lambda h: h @ kernel, features, labels, cross_entropy, num_samples=num_samples).mean()

        compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    streamed = temporaries(dropout.multi_sample_dropout_loss, 8)
    assert temporaries(direct_loss, 8) >= 3 * streamed
    assert temporaries(dropout.multi_sample_dropout_loss, 16) <= 1.1 * streamed
    assert streamed <= 8 * 4 * batch * width  # O(B D): random bits, one mask, its features and their gradients


@pytest.mark.parametrize("shape", [(5,), (2, 7), (3, 8), (2, 3, 17), (0, 8), (2, 0)])
def test_masks_survive_packing(shape):
    mask = dropout.bernoulli_mask(KEY, shape)
    bits = multi_sample._pack(mask)
    assert bits.dtype == jnp.uint8
    assert bits.shape == (*shape[:-1], -(-shape[-1] // 8))
    np.testing.assert_array_equal(multi_sample._unpack(bits, shape), mask)


def test_memory_hardly_grows_where_masks_are_kept():
    """Compiled only: 8 and 16 samples of two million units, whose masks are 2 and 4 MiB."""
    shape = jax.ShapeDtypeStruct((2048, 1024), jnp.float32)

    def temporaries(num_samples):
        def total(features):
            return dropout.multi_sample_dropout_loss(
                KEY, lambda h: h, features, jnp.zeros_like(features), squared, num_samples=num_samples
            ).mean()

        return jax.jit(jax.grad(total)).lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert 2**20 < temporaries(16) - temporaries(8) <= 1.1 * 2**21


def operations(jaxpr, name):
    """How many operations of a name there are, those inside loops and calls included."""
    inner = [getattr(value, "jaxpr", value) for equation in jaxpr.eqns for value in equation.params.values()]
    here = sum(equation.primitive.name == name for equation in jaxpr.eqns)
    return here + sum(operations(other, name) for other in inner if hasattr(other, "eqns"))


def test_small_masks_are_drawn_once_and_large_ones_again():
    """At 8 MiB of masks, a bit a unit, and just above."""

    def total(features):
        return dropout.multi_sample_dropout_loss(KEY, lambda h: h, features, features, squared, num_samples=8).mean()

    for batch, expected in ((8192, 1), (8193, 2)):
        shape = jax.ShapeDtypeStruct((batch, 1024), jnp.float32)
        assert operations(jax.make_jaxpr(jax.grad(total))(shape).jaxpr, "random_bits") == expected


@pytest.mark.parametrize(("classes", "expected"), [(256, 3), (257, 4)])
def test_outputs_of_a_head_are_computed_again_where_they_are_large(classes, expected):
    """Up to 8 MiB for all samples the head runs once; beside it there are the products of its two gradients."""

    def total(features, kernel):
        head = lambda h: h @ kernel  # noqa: E731
        return dropout.multi_sample_dropout_loss(
            KEY, head, features, 0 * features[:, :1], squared, num_samples=8
        ).mean()

    shapes = jax.ShapeDtypeStruct((1024, 16), jnp.float32), jax.ShapeDtypeStruct((16, classes), jnp.float32)
    jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(*shapes).jaxpr
    assert operations(jaxpr, "dot_general") == expected


def test_gradient_noise_of_masks_falls_as_one_over_m():
    """Var over masks of the gradient at M = 1 and M = 8, from 4096 redraws each.

    The relative error of a variance of n near-normal draws is sqrt(2 / n) = 2.2 %; summed over 64 entries and with 5 sigma
    on the ratio of two, 16 % is a bound with error probability below 1e-6.
    """
    features, kernel, labels = problem()

    def spread(num_samples):
        def gradient(key):
            loss = lambda k: dropout.multi_sample_dropout_loss(  # noqa: E731
                key, lambda h: h @ k, features, labels, cross_entropy, num_samples=num_samples, rate=0.5
            ).mean()
            return jax.grad(loss)(kernel)

        gradients = jax.jit(jax.vmap(gradient))(jax.random.split(KEY, 4096))
        return gradients.mean(0), jnp.var(gradients, axis=0)

    mean_one, one = spread(1)
    mean_eight, eight = spread(8)
    assert abs(float(one.sum() / eight.sum()) / 8 - 1) < 0.16
    # The expectation does not depend on M.
    assert np.all(np.abs(mean_one - mean_eight) <= 5 * np.sqrt((one + eight) / 4096))


def test_the_loss_does_not_depend_on_the_mesh():
    features, kernel, labels = problem(batch=16)
    loss = jax.jit(
        lambda f, y: dropout.multi_sample_dropout_loss(KEY, lambda h: h @ kernel, f, y, cross_entropy, rate=0.5)
    )
    rows = NamedSharding(MESH, P("data"))
    sharded = loss(jax.device_put(features, rows), jax.device_put(labels, rows))
    np.testing.assert_allclose(sharded, loss(features, labels), rtol=1e-6)


def test_inside_shard_map_with_a_key_for_each_shard():
    features, kernel, labels = problem(batch=16)

    def shard(features, labels):
        key = jax.random.fold_in(KEY, jax.lax.axis_index("data"))
        return dropout.multi_sample_dropout_loss(key, lambda h: h @ kernel, features, labels, cross_entropy)

    losses = jax.jit(jax.shard_map(shard, mesh=MESH, in_specs=(P("data"), P("data")), out_specs=P("data")))(
        features, labels
    )
    first = direct_loss(jax.random.fold_in(KEY, 0), lambda h: h @ kernel, features[:2], labels[:2], cross_entropy)
    np.testing.assert_allclose(losses[:2], first, rtol=1e-5)


def test_rate_may_be_traced_and_is_not_compiled_in():
    features, kernel, labels = problem()
    traces = []

    @jax.jit
    def loss(rate):
        traces.append(None)
        return dropout.multi_sample_dropout_loss(KEY, lambda h: h @ kernel, features, labels, cross_entropy, rate=rate)

    for rate in (0.1, 0.6):
        expected = direct_loss(KEY, lambda h: h @ kernel, features, labels, cross_entropy, rate=rate)
        np.testing.assert_allclose(loss(rate), expected, rtol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches_and_half_precision(batch):
    features, kernel, labels = problem(batch)
    loss = dropout.multi_sample_dropout_loss(
        KEY, lambda h: h @ kernel.astype(jnp.bfloat16), features.astype(jnp.bfloat16), labels, cross_entropy
    )
    assert loss.shape == (batch,)
    assert loss.dtype == jnp.float32
    masks = dropout.multi_sample_masks(KEY, 2, features.shape)
    assert dropout.multi_sample_outputs(lambda h: h @ kernel, features, masks, rate=0.5).shape == (2, batch, 4)


def test_masks_shared_over_the_batch():
    features, kernel, _ = problem()
    masks = dropout.multi_sample_masks(KEY, 3, (1, 16))
    outputs = dropout.multi_sample_outputs(lambda h: h @ kernel, features, masks, rate=0.5)
    full = dropout.multi_sample_outputs(lambda h: h @ kernel, features, jnp.broadcast_to(masks, (3, 6, 16)), rate=0.5)
    np.testing.assert_array_equal(outputs, full)


def test_expected_squared_loss_is_the_mean_over_all_masks():
    keys = jax.random.split(KEY, 3)
    residual, hidden, kernel = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(3, 2), (3, 4), (4, 2)], strict=True)
    )
    rate, expected = 0.3, 0.0
    for bits in itertools.product([0, 1], repeat=4):
        mask = np.array(bits)
        probability = np.prod(np.where(mask, 1 - rate, rate))
        expected += probability * np.sum((residual - (hidden * mask / (1 - rate)) @ kernel) ** 2, axis=1)
    ours = dropout.expected_squared_loss(residual, hidden, kernel, rate=rate)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    np.testing.assert_allclose(
        dropout.expected_squared_loss(residual, hidden, kernel, rate=0.0), squared(hidden @ kernel, residual), rtol=1e-5
    )
    # One unit by hand: (1 - 2)^2 + 1/1 * 2^2.
    one = dropout.expected_squared_loss(jnp.array([[1.0]]), jnp.array([[2.0]]), jnp.array([[1.0]]), rate=0.5)
    np.testing.assert_allclose(one, [5.0])
    assert dropout.expected_squared_loss(jnp.zeros((0, 2)), jnp.zeros((0, 4)), kernel, rate=0.5).shape == (0,)


def test_expected_squared_loss_against_sampled_masks():
    """10^4 masks, 5 standard errors: error probability 6e-7 for each of 3 examples."""
    keys = jax.random.split(KEY, 3)
    residual, hidden, kernel = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(3, 5), (3, 8), (8, 5)], strict=True)
    )

    @jax.jit
    def sampled(key):
        masks = dropout.multi_sample_masks(key, 10_000, hidden.shape, rate=0.4)
        outputs = dropout.multi_sample_outputs(lambda h: h @ kernel, hidden, masks, rate=0.4)
        return jnp.sum((outputs - residual) ** 2, axis=-1)

    losses = sampled(jax.random.key(5))
    expected = dropout.expected_squared_loss(residual, hidden, kernel, rate=0.4)
    assert np.all(np.abs(losses.mean(0) - expected) <= 5 * losses.std(0) / 100)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_bad_rates(rate):
    features, kernel, labels = problem()
    for call in (
        lambda: dropout.multi_sample_masks(KEY, 2, (3,), rate=rate),
        lambda: dropout.multi_sample_outputs(lambda h: h, features, jnp.ones((2, 6, 16), bool), rate=rate),
        lambda: dropout.multi_sample_dropout_loss(
            KEY, lambda h: h @ kernel, features, labels, cross_entropy, rate=rate
        ),
        lambda: dropout.expected_squared_loss(features[:, :2], features[:, :3], kernel[:3, :2], rate=rate),
    ):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
            call()


def test_bad_input():
    features, kernel, labels = problem()
    for count in (0, -1, 1.5):
        with pytest.raises(ValueError, match="num_samples"):
            dropout.multi_sample_masks(KEY, count, (3,))
        with pytest.raises(ValueError, match="num_samples"):
            dropout.multi_sample_dropout_loss(KEY, lambda h: h, features, labels, cross_entropy, num_samples=count)
    with pytest.raises(ValueError, match="shared_axes"):
        dropout.multi_sample_masks(KEY, 2, (3, 4), shared_axes=(2,))
    for shape in ((2, 3, 16), (6, 16), (0, 6, 16)):
        with pytest.raises(ValueError, match="masks must have shape"):
            dropout.multi_sample_outputs(lambda h: h, features, jnp.ones(shape, bool), rate=0.5)
    with pytest.raises(ValueError, match="mask of shape"):
        dropout.multi_sample_outputs(lambda h: h, features, jnp.ones((2, 6, 15), bool), rate=0.5)
    mean_loss = lambda z, y: cross_entropy(z, y).mean()  # noqa: E731
    with pytest.raises(ValueError, match="loss_fn must give one loss per example"):
        dropout.multi_sample_loss(mean_loss, jnp.zeros((2, 6, 4)), labels)
    with pytest.raises(ValueError, match="loss_fn must give one loss per example"):
        dropout.multi_sample_dropout_loss(KEY, lambda h: h @ kernel, features, labels, mean_loss)
    with pytest.raises(ValueError, match="sample_outputs"):
        dropout.multi_sample_loss(cross_entropy, jnp.zeros((0, 6, 4)), labels)
    with pytest.raises(ValueError, match="do not fit"):
        dropout.expected_squared_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros((5, 3)), rate=0.5)
    with pytest.raises(ValueError, match="hidden"):
        dropout.expected_squared_loss(jnp.zeros((2, 3)), jnp.zeros(4), jnp.zeros((4, 3)), rate=0.5)
