"""What the masked autoencoder sees, what it says of the rest, and that its decoders share the encoder alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiments.models.helpers import build, changed, compiled, inputs, quickly, weights

IMAGES = inputs((8, 8, 1))[0]  # four patches of 4 x 4 pixels
MASK = np.array(
    [[False, True, True, False], [True, False, False, True], [True, True, False, False], [False, False, True, True]]
)


def half_hidden(network):
    """`apply` where two of four patches are hidden, with arrays of NumPy out."""
    apply = quickly(functools.partial(network.apply, hidden=2))
    return lambda *given: jax.tree.map(np.asarray, apply(*given))


def test_shapes():
    network = build("masked_autoencoder")
    out = half_hidden(network)(weights(network), IMAGES, MASK)
    assert {name: value.shape for name, value in out.items()} == {
        "pixels": (4, 4, 16),
        "difficulty": (4, 4),
        "features": (4, 2, 8),
    }


def test_hidden_patches_are_not_seen_and_others_are():
    network = build("masked_autoencoder")
    params, apply = weights(network), half_hidden(network)
    base = apply(params, IMAGES, MASK)
    top_right = (0, slice(0, 4), slice(4, 8))  # hidden in the first image
    other = apply(params, changed(IMAGES, top_right, 3.0), MASK)
    jax.tree.map(np.testing.assert_array_equal, other, base)
    seen = apply(params, changed(IMAGES, (0, slice(0, 4), slice(0, 4)), 3.0), MASK)
    for name, value in base.items():
        assert np.abs(seen[name][0] - value[0]).max() > 1e-4
        np.testing.assert_array_equal(seen[name][1:], value[1:])


def test_features_stand_at_their_places():
    network = build("masked_autoencoder")
    params = weights(network)
    features = jnp.arange(4 * 2 * 8.0).reshape(4, 2, 8)
    seen = jnp.array([[0, 3], [1, 2], [2, 3], [0, 1]])
    spread = network.apply(params, features, seen, method="spread") - params["decoder_places"]["embedding"]
    np.testing.assert_allclose(jnp.take_along_axis(spread, seen[..., None], axis=1), features, atol=1e-5)
    np.testing.assert_allclose(spread[MASK], jnp.tile(params["unseen"], (8, 1)), atol=1e-5)


def test_difficulty_of_whole_images_is_that_without_a_mask():
    network = build("masked_autoencoder")
    params, apply = weights(network), compiled(network)
    none = network.apply(params, IMAGES, np.zeros((4, 4), bool), hidden=0)["difficulty"]
    np.testing.assert_allclose(apply(params, IMAGES, method="difficulty"), none, rtol=1e-5, atol=1e-6)


def test_each_decoder_learns_from_its_own_output():
    network = build("masked_autoencoder")
    params = weights(network)

    def gradient(name):
        loss = lambda params: jnp.sum(network.apply(params, IMAGES, MASK, hidden=2)[name] ** 2)  # noqa: E731
        return quickly(jax.grad(loss))(params)

    largest = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))  # noqa: E731
    for name, own, other in (("pixels", "reconstructor", "predictor"), ("difficulty", "predictor", "reconstructor")):
        found = gradient(name)
        assert largest(found["encoder"]) > 0
        assert largest(found[own]) > 0
        assert largest(found[other]) == 0


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"width must be a multiple of model\.heads 3, got 8"):
        build("masked_autoencoder", heads=3)
    with pytest.raises(ValueError, match=r"model\.patch must divide images of 8 x 8, got 3"):
        build("masked_autoencoder", patch=3)
    with pytest.raises(ValueError, match=r"'masked_autoencoder' needs images .*\(6,\)"):
        build("masked_autoencoder", shape=(6,))
