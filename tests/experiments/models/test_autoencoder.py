"""The autoencoder: by hand, its two halves, half precision."""

import jax
import numpy as np
import pytest

from tests.experiments.models.helpers import build, compiled, inputs, silu, weights


@pytest.mark.parametrize("shape", [(7,), (8, 8, 1), (3, 5, 2)])
def test_by_hand(shape):
    model = build("autoencoder", shape)
    params, (x, _) = weights(model), inputs(shape)
    out = compiled(model)(params, x)
    p = jax.tree.map(np.asarray, params)
    layer = lambda name, h: h @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    latent = layer("encoder_out", silu(layer("encoder_in", np.asarray(x).reshape(4, -1))))
    reconstruction = layer("decoder_out", silu(layer("decoder_in", latent))).reshape(4, *shape)
    assert out.keys() == {"latent", "reconstruction"}
    np.testing.assert_allclose(out["latent"], latent, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["reconstruction"], reconstruction, rtol=1e-4, atol=1e-5)


def test_halves():
    model = build("autoencoder")
    params, (x, _) = weights(model), inputs((8, 8, 1))
    apply = compiled(model)
    whole, latent = apply(params, x), apply(params, x, method="encode")
    assert latent.shape == (4, 3)
    np.testing.assert_allclose(latent, whole["latent"], rtol=1e-6)
    np.testing.assert_allclose(apply(params, latent, method="decode"), whole["reconstruction"], rtol=1e-5, atol=1e-6)


def test_bfloat16():
    half, full = build("autoencoder", dtype="bfloat16"), build("autoencoder")
    params, (x, _) = weights(full), inputs((8, 8, 1))
    out, exact = compiled(half)(params, x), compiled(full)(params, x)
    for name, value in out.items():
        assert value.dtype == np.float32
        assert np.abs(value - exact[name]).max() > 0  # computed in fewer digits
        np.testing.assert_allclose(value, exact[name], atol=0.05)
