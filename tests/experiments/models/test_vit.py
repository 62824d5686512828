"""The vision transformer: inner features as results, places of patches, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiments.models.helpers import build, changed, compiled, inputs, quickly, weights

IMAGES = inputs((8, 8, 1))[0]


def test_inner_features_are_results():
    network = build("vit")
    params = weights(network)
    out = compiled(network)(params, IMAGES)
    assert [h.shape for h in out["hidden"]] == [(4, 16, 8)] * 2
    np.testing.assert_allclose(out["features"], out["hidden"][-1].mean(1), rtol=1e-5, atol=1e-6)
    last = params["last"]
    np.testing.assert_allclose(out["logits"], out["features"] @ last["kernel"] + last["bias"], rtol=1e-4, atol=1e-5)
    # The first block's result is that of a network without the second.
    shallow = build("vit", depth=1)
    first = compiled(shallow)({name: value for name, value in params.items() if name != "block_1"}, IMAGES)
    np.testing.assert_allclose(first["hidden"][0], out["hidden"][0], rtol=1e-4, atol=1e-5)


def test_tokens_are_patches_row_by_row_and_see_all_others():
    network = build("vit", depth=1, patch=4)
    params, apply = weights(network), compiled(network)
    base = apply(params, IMAGES)["hidden"][0]
    other = apply(params, changed(IMAGES, (slice(None), slice(0, 4), slice(4, 8)), 3.0))["hidden"][0]
    moved = np.abs(other - base).max((0, 2))
    assert moved.shape == (4,)
    assert np.argmax(moved) == 1
    assert np.all(moved > 1e-4)  # attention is not causal
    # Places count: exchanging two patches is not exchanging two tokens.
    mirrored = apply(params, IMAGES[:, ::-1])["features"]
    assert np.abs(mirrored - apply(params, IMAGES)["features"]).max() > 1e-3


def test_gradients_reach_inner_layers_from_inner_features_alone():
    network = build("vit")
    params = weights(network)
    loss = lambda params: jnp.sum(network.apply(params, IMAGES)["hidden"][0] ** 3)  # noqa: E731
    gradient = quickly(jax.grad(loss))(params)
    assert float(jnp.abs(gradient["block_0"]["first"]["kernel"]).max()) > 0
    np.testing.assert_array_equal(gradient["block_1"]["first"]["kernel"], 0)


def test_repeats_run_the_same_blocks_again():
    shared, once = build("vit", depth=1, repeats=2), build("vit", depth=2)
    params = weights(shared)
    out = compiled(shared)(params, IMAGES)
    twice = compiled(once)(params | {"block_1": params["block_0"]}, IMAGES)
    for found, expected in zip(out["hidden"], twice["hidden"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"width must be a multiple of model\.heads 3, got 8"):
        build("vit", heads=3)
    with pytest.raises(ValueError, match="needs images"):
        build("vit", (8, 8))
