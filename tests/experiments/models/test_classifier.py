"""The classifier: shapes, the last layer by hand, dropout, half precision."""

import jax
import numpy as np
import pytest

from tests.experiments.models.helpers import build, changed, compiled, inputs, keys, names, primitives, shapes, weights


@pytest.mark.parametrize(
    ("shape", "channels", "flat"),
    [((8, 8, 1), (4, 6), 4 * 4 * 6), ((9, 9, 3), (4, 6, 2), 3 * 3 * 2), ((6, 4, 1), (5,), 6 * 4 * 5)],
)
def test_shapes(shape, channels, flat):
    model = build("classifier", shape, num_classes=7, channels=channels)
    params = shapes(model)
    assert params["dense"]["kernel"].shape == (flat, 5)
    out = jax.eval_shape(model.apply, params, inputs(shape)[0])
    assert {name: out[name].shape for name in ("logits", "features")} == {"logits": (4, 7), "features": (4, 5)}
    assert [maps.shape[-1] for maps in out["hidden"]] == list(channels)
    assert out["hidden"][-1].size == 4 * flat


def test_logits_are_linear_in_the_features():
    model = build("classifier")
    params, (x, _) = weights(model), inputs((8, 8, 1))
    out = compiled(model)(params, x)
    assert float(out["features"].min()) >= 0
    assert float(out["features"].max()) > 0
    expected = out["features"] @ params["last"]["kernel"] + params["last"]["bias"]
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-5, atol=1e-6)


def test_dropout_needs_keys():
    model, plain = build("classifier", dropout=0.5), build("classifier")
    params, (x, _) = weights(model), inputs((8, 8, 1))
    assert names(params) == names(shapes(plain))
    mine, others = keys(4), keys(4, seed=1)
    apply = compiled(model)
    first, again, other = (apply(params, x, keys=k)["logits"] for k in (mine, mine, others))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    mixed = apply(params, x, keys=changed(others, 1, mine[1]))["logits"]
    np.testing.assert_allclose(mixed[1], first[1], rtol=1e-5, atol=1e-6)
    # Without keys it is the network without dropout.
    assert primitives(model.apply, params, x) == primitives(plain.apply, params, x)


def test_bfloat16():
    half, full = build("classifier", dtype="bfloat16"), build("classifier")
    params, (x, _) = weights(full), inputs((8, 8, 1))
    out, exact = compiled(half)(params, x), compiled(full)(params, x)
    for name in ("logits", "features"):
        value = out[name]
        assert value.dtype == np.float32
        assert np.abs(value - exact[name]).max() > 0  # computed in fewer digits
        np.testing.assert_allclose(value, exact[name], atol=0.05)
