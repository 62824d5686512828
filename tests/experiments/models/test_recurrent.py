"""The gated recurrent unit against a loop in NumPy, and its mask."""

import numpy as np
import pytest

from tests.experiments.models.helpers import build, compiled, inputs, weights


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_recurrence():
    model = build("recurrent", shape=(5, 3), num_classes=2, width=4)
    params, (x, _) = weights(model), inputs((5, 3))
    found = compiled(model)(params, x)
    h = np.zeros((4, 4))
    for t in range(5):
        heard = x[:, t] @ params["heard"]["kernel"] + params["heard"]["bias"]
        recalled = h @ params["recalled"]["kernel"] + params["recalled"]["bias"]
        reset, update = sigmoid(heard[:, :4] + recalled[:, :4]), sigmoid(heard[:, 4:8] + recalled[:, 4:8])
        h = (1 - update) * np.tanh(heard[:, 8:] + reset * recalled[:, 8:]) + update * h
    np.testing.assert_allclose(found["features"], h, rtol=1e-4, atol=1e-5)
    expected = h @ params["last"]["kernel"] + params["last"]["bias"]
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)


def test_mask():
    model = build("recurrent", shape=(5, 3), num_classes=2, width=4)
    params, (x, _) = weights(model), inputs((5, 3))
    mask = np.array([[0, 2, 0.5, 1]], np.float32)
    found = compiled(model)(params, x, mask=mask)
    np.testing.assert_allclose(found["features"], compiled(model)(params, x)["features"])  # what is masked is the head
    np.testing.assert_allclose(found["logits"], model.apply(params, found["features"] * mask, method="head"), rtol=1e-5)


def test_features_of_a_step_are_flattened():
    model = build("recurrent", shape=(8, 4, 2), num_classes=2, width=4)
    flat = build("recurrent", shape=(8, 8), num_classes=2, width=4)
    params, (x, _) = weights(model), inputs((8, 4, 2))
    np.testing.assert_array_equal(
        compiled(model)(params, x)["logits"], compiled(flat)(params, x.reshape(4, 8, 8))["logits"]
    )


def test_examples_without_time_are_refused():
    with pytest.raises(ValueError, match=r"needs series .*\(64,\)"):
        build("recurrent", shape=(64,))
