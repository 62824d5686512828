"""The classes of pictures, a rate chosen by validation, and heads of few features."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import dual_head_few_features as study
from experiments.reproducing import catalogue
from tests.experiments.papers.smoke import smoke

NAME = "dual_head_few_features"


def settings(**changed):
    config = catalogue.load(NAME)
    made = catalogue.settings(config, "CE", smoke=True)
    catalogue.merge(made, changed, "the test")
    return made


def test_classes_are_combinations_of_shape_color_and_size():
    config = settings(shared={"train": 400, "validation": 10, "test": 10}).shared
    train, _, test = study.parts(config, jax.random.key(0))
    assert train.x.shape == (400, study.SIZE**2 * 3)
    assert np.abs(train.x).max() <= 1
    assert len(np.unique(train.y)) > 0.9 * study.CLASSES
    assert np.asarray(train.y).max() < study.CLASSES
    # Colour is the middle digit of the class: its pictures have the same mean sign of saturation.
    colors = np.asarray(train.y) // 2 % 6
    means = np.asarray(train.x).reshape(400, -1, 3).mean(1)
    red, green, blue = (means[colors == color].mean(0) for color in range(3))
    assert [np.argmax(mean) for mean in (red, green, blue)] == [0, 1, 2]
    assert len(test.y) == 10


def test_every_arm_has_fewer_features_than_classes():
    config = catalogue.load(NAME)
    for arm in catalogue.arms(config):
        assert catalogue.settings(config, arm, smoke=False).widths[-1] < study.CLASSES


def test_the_rate_is_the_one_best_in_validation():
    key = jax.random.key(3)
    config = settings(shared={"train": 256, "validation": 64}, examples=256, steps=60, widths=(16,))
    shared = study.prepare(config.shared, key)

    def reached(*rates):
        with config.ignore_type():
            config.learning_rates = rates
        return study.run(config, key, shared)

    low, high, chosen = reached(1e-7), reached(1e-2), reached(1e-7, 1e-2)
    assert high["validation_accuracy"] > low["validation_accuracy"]
    np.testing.assert_allclose(chosen["learning_rate"], 1e-2)
    for name in ("test_accuracy", "validation_accuracy"):
        np.testing.assert_allclose(chosen[name], high[name], atol=0.05)
    assert 16 >= float(chosen["feature_rank"]) >= 1


def test_smoke(tmp_path):
    arms = smoke("dual_head_few_features", tmp_path)
    one, two = (records["0"] for records in arms.values())
    assert two["head_cosine"] == 0 != one["head_cosine"]
    assert two["lowest_aligned_cosine"] >= -1e-6
    assert jnp.isfinite(one["feature_rank"])
