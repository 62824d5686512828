"""What studies share: parts of the digits that do not overlap, batches of every epoch, a loop that trains."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from experiments.papers import training
from tests.experiments.image_sets import write_image_set


def test_parts_of_the_digits_do_not_overlap_and_depend_on_the_key():
    first, second = training.digit_splits(jax.random.key(0), (1000, 797))
    assert first.x.shape == (1000, 64)
    assert second.y.shape == (797,)
    assert float(first.x.min()) == 0.0
    assert float(first.x.max()) == 1.0
    whole = np.concatenate([first.x, second.x])
    everything, _ = training._table()
    # Sorted rows agree: every digit is in exactly one part.
    np.testing.assert_array_equal(np.sort(whole.sum(1)), np.sort(everything.sum(1)))
    (other,) = training.digit_splits(jax.random.key(1), (1000,))
    assert not np.array_equal(other.y, first.y)
    (again,) = training.digit_splits(jax.random.key(0), (1000,))
    np.testing.assert_array_equal(again.x, first.x)


def test_labels_stay_with_their_pictures():
    images, labels = training._table()
    (part,) = training.digit_splits(jax.random.key(3), (50,))
    for x, y in zip(np.asarray(part.x), np.asarray(part.y), strict=True):
        (rows,) = np.nonzero((images == x).all(1))
        assert y in labels[rows]


def test_parts_are_put_together_again(monkeypatch):
    monkeypatch.setattr(training, "MOST_AT_ONCE", 4)
    x = jnp.arange(10.0)[:, None]
    np.testing.assert_array_equal(training.in_parts(lambda x: 2 * x, x), 2 * x)
    np.testing.assert_array_equal(training.in_parts(lambda x: 2 * x, x[:3]), 2 * x[:3])


def test_more_digits_than_there_are_is_refused():
    with pytest.raises(ValueError, match="the digits are 1797, fewer than the 1798 of the parts"):
        training.digit_splits(jax.random.key(0), (1000, 798))


def test_images_of_digits_are_their_rows_as_squares():
    train, test = training.image_splits("digits", jax.random.key(0), (30, 20))
    flat, _ = training.digit_splits(jax.random.key(0), (30, 20))
    np.testing.assert_array_equal(train.x.reshape(30, 64), flat.x)
    np.testing.assert_array_equal(train.y, flat.y)
    assert test.x.shape == (20, 8, 8, 1)


def test_images_of_a_prepared_set_are_drawn_from_its_two_splits(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (24, 28, 28, 1), np.uint8)
    write_image_set(tmp_path, "mnist", list(images), list(range(10)) * 2 + [0] * 4, held_out=8)
    monkeypatch.setenv("MLFUNCS_DATA", str(tmp_path))
    train, test = training.image_splits("mnist", jax.random.key(0), (10, 8))
    assert (train.x.shape, test.x.shape) == ((10, 28, 28, 1), (8, 28, 28, 1))
    whole = images.reshape(24, -1)
    for part in (train, test):
        shown = np.rint(np.asarray(part.x) * 255).astype(np.uint8).reshape(len(part.y), -1)
        assert all((whole == image).all(1).any() for image in shown)
        assert 0 <= float(part.x.min()) < 0.01 < 0.99 < float(part.x.max()) <= 1
    with pytest.raises(ValueError, match="mnist has 8 images, fewer than the 9 of a part"):
        training.image_splits("mnist", jax.random.key(0), (10, 9))


def test_an_epoch_sees_every_row_once():
    rows = np.asarray(training.batches(jax.random.key(0), size=12, batch=4, steps=6))
    assert rows.shape == (6, 4)
    assert sorted(rows[:3].ravel()) == list(range(12))
    assert sorted(rows[3:].ravel()) == list(range(12))
    assert not np.array_equal(rows[:3], rows[3:])


def test_an_incomplete_batch_is_left_out():
    rows = np.asarray(training.batches(jax.random.key(0), size=10, batch=4, steps=5))
    assert rows.shape == (5, 4)
    for epoch in (rows[:2], rows[2:4]):
        assert len(set(epoch.ravel())) == 8


@pytest.mark.parametrize("batch", [0, 11])
def test_a_batch_that_does_not_fit_is_refused(batch):
    with pytest.raises(ValueError, match=r"batch must be in \[1, 10\]"):
        training.batches(jax.random.key(0), size=10, batch=batch, steps=5)


def test_fit_is_gradient_descent():
    data = jnp.arange(4.0)
    rows = jnp.array([[0, 1], [2, 3], [0, 3]])

    def loss(params, rows, key):
        return jnp.mean((params - data[rows]) ** 2)

    params, losses, seen = training.fit(
        loss, jnp.float32(1.0), optax.sgd(0.25), rows, jax.random.key(0), probe=lambda p: p
    )
    # 1 -> 1 - 0.5 (1 - 0.5) = 0.75 -> 0.75 - 0.5 (0.75 - 2.5) = 1.625 -> 1.625 - 0.5 (1.625 - 1.5) = 1.5625
    np.testing.assert_allclose(seen, [0.75, 1.625, 1.5625])
    np.testing.assert_allclose(params, 1.5625)
    np.testing.assert_allclose(losses[0], 0.5)


def test_every_step_gets_its_own_key():
    def loss(params, rows, key):
        return params * 0 + jax.random.uniform(key)

    rows = jnp.zeros((8, 1), jnp.int32)
    _, losses, _ = training.fit(loss, jnp.float32(0.0), optax.sgd(0.1), rows, jax.random.key(0))
    assert len(np.unique(losses)) == 8


def test_accuracy_counts_the_largest_logit():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert float(training.accuracy(logits, jnp.array([1, 0, 0]))) == pytest.approx(2 / 3)
    np.testing.assert_allclose(training.cross_entropy(jnp.zeros((1, 4)), jnp.array([2])), [np.log(4)], rtol=1e-6)


def test_the_perceptron_takes_masks_of_its_hidden_layers():
    model = training.perceptron((8, 6), activation="tanh", head_bias=False)
    params = model.init(jax.random.key(0))
    assert "bias" not in params["last"]
    assert params["layer_1"]["kernel"].shape == (8, 6)
    x = jax.random.normal(jax.random.key(1), (5, 64))
    plain = model.apply(params, x)
    assert plain["logits"].shape == (5, 10)
    assert [h.shape for h in plain["hidden"]] == [(5, 8), (5, 6)]
    np.testing.assert_allclose(plain["features"] @ params["last"]["kernel"], plain["logits"], rtol=1e-5, atol=1e-6)
    masked = model.apply(params, x, masks=(None, jnp.arange(6) < 2))
    assert float(jnp.abs(masked["features"][:, 2:]).max()) == 0.0
    np.testing.assert_allclose(masked["hidden"][0], plain["hidden"][0])
    first = jnp.tanh(x @ params["layer_0"]["kernel"] + params["layer_0"]["bias"])
    np.testing.assert_allclose(first, plain["hidden"][0], rtol=1e-4, atol=1e-5)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"model.activation must be one of gelu, relu, tanh, got 'sine'"):
        training.perceptron((8,), activation="sine")


def test_what_is_asked_for_again_is_kept_by_the_values_of_all_that_is_given():
    calls = []

    @training.kept
    def function(config, key, size):
        calls.append(size)
        return object()

    def asked(rate=0.5, seed=0, size=0):
        return function(ml_collections.ConfigDict({"rate": rate}), jax.random.key(seed), size)

    first = asked()
    assert asked() is first
    assert len({first, asked(rate=0.25), asked(seed=1), asked(size=1)}) == 4
    assert asked() is first
    assert len(calls) == 4
    for size in range(1, training.KEPT + 1):  # the oldest give way
        asked(size=size)
    assert asked() is not first


def test_a_failure_is_not_kept():
    outcomes = iter([ValueError("once"), 7])

    @training.kept
    def function(size):
        outcome = next(outcomes)
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome

    with pytest.raises(ValueError, match="once"):
        function(3)
    assert function(3) == 7
