"""What a view does to an image, that views differ, and which network is trained."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs.papers import embedding_dynamics as configs
from experiments.papers import embedding_dynamics as study
from experiments.papers import training
from tests.experiments.papers.smoke import smoke


def test_a_view_without_motion_and_noise_hides_a_square_and_nothing_else():
    image = jnp.arange(1.0, 65.0).reshape(8, 8, 1)
    seen = study.view(jax.random.key(0), image, shift=0.0, degrees=0.0, noise=0.0)[..., 0]
    hidden = np.asarray(seen) == 0
    assert hidden.sum() == 9
    rows, columns = np.nonzero(hidden)
    assert np.ptp(rows) == np.ptp(columns) == 2
    np.testing.assert_allclose(np.asarray(seen)[~hidden], np.asarray(image)[..., 0][~hidden], rtol=1e-4)


def test_motion_keeps_the_middle_of_a_large_patch():
    image = jnp.zeros((8, 8, 1)).at[1:7, 1:7].set(1.0)
    draw = lambda key: study.view(key, image, shift=1.0, degrees=15.0, noise=0.0)  # noqa: E731
    every = jax.vmap(draw)(jax.random.split(jax.random.key(1), 50)).reshape(50, 8, 8)
    middle = np.asarray(every[:, 3:5, 3:5])
    assert np.all((middle > 0.999) | (middle == 0))  # 0 where it is hidden
    assert np.asarray(every).std(0).max() > 0.1


def test_views_differ_by_view_and_image_and_follow_the_order_of_images():
    images = jnp.stack([jnp.zeros((8, 8, 1)), 10 + jnp.ones((8, 8, 1))])
    seen = study.views(jax.random.key(2), images, 4, shift=1.0, degrees=15.0, noise=0.1)
    assert seen.shape == (4, 2, 8, 8, 1)
    assert len(np.unique(np.asarray(seen[:, 0, 0, 0]))) == 4
    assert np.all(np.asarray(seen[:, 0]).mean((1, 2, 3)) < 1)
    assert np.all(np.asarray(seen[:, 1]).mean((1, 2, 3)) > 3)


def test_views_of_larger_images_move_and_hide_as_much_of_them_in_every_channel_alike():
    image = jnp.ones((16, 16, 3)) * jnp.array([1.0, 2.0, 3.0])
    still = np.asarray(study.view(jax.random.key(0), image, shift=0.0, degrees=0.0, noise=0.0))
    assert (still[..., 0] == 0).sum() == 36
    np.testing.assert_allclose(still[..., 2], 3 * still[..., 0], rtol=1e-5)
    # An eighth of the side is two pixels here: by 1 up to 2, one row of black comes in (half of the draws).
    draw = lambda key: study.view(key, image, shift=1.0, degrees=0.0, noise=0.0)  # noqa: E731
    moved = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(1), 50)))[..., 0]
    assert (moved.max(2) == 0).sum(1).max() == 1


def test_singular_values_keep_the_embedding_from_collapse():
    config = ml_collections.ConfigDict(configs.get_config().settings)
    config.update({"train": 64, "test": 64, "widths": (16,), "dimension": 8, "batch": 64, "steps": 60})
    config.update({"learning_rate": 3e-2, "views": 2})
    network = training.perceptron(config.widths, classes=8, norm="scaling")
    assert {"layer_0", "norm_0", "last"} == set(network.init(jax.random.key(1)))
    assert {"layer_0", "last"} == set(training.perceptron((4,)).init(jax.random.key(1)))

    def rank(weight):
        config.singular_weight = weight
        return float(study.run(config, jax.random.key(1))["effective_rank"])

    assert rank(10.0) > rank(0.0) + 1


def test_smoke(tmp_path):
    smoke("embedding_dynamics", tmp_path)
