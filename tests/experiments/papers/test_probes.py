"""Which examples keep their labels, and that both probes find what there is to find and no more."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import probes, training


def examples(key, size, *, apart):
    label_key, noise_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (size,), 0, 3)
    return training.Labelled(apart * jax.nn.one_hot(labels, 4) + jax.random.normal(noise_key, (size, 4)), labels)


def test_the_first_of_every_class_keep_their_labels():
    labels = jnp.array([1, 1, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(probes.few_labels(labels, 2, classes=4), [1, 1, 0, -1, 2, 0, -1])


def test_both_probes_tell_classes_that_stand_apart():
    train, test = examples(jax.random.key(0), 90, apart=9.0), examples(jax.random.key(1), 60, apart=9.0)
    assert float(probes.linear_accuracy(train, test, classes=3)) == 1.0
    few = train._replace(y=probes.few_labels(train.y, 5, classes=3))
    assert float(probes.neighbour_accuracy(few, test, classes=3)) == 1.0


def test_noise_tells_nothing():
    train, test = examples(jax.random.key(2), 300, apart=0.0), examples(jax.random.key(3), 300, apart=0.0)
    # Three classes alike: of 300 guesses fewer than 0.46 are right, in all but one of 10^5 draws.
    assert float(probes.linear_accuracy(train, test, classes=3)) < 0.46
    assert float(probes.neighbour_accuracy(train, test, classes=3)) < 0.46
