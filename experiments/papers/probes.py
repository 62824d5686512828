"""What frozen features know, as studies of representations measure it: linear probes and neighbours from few examples."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from experiments.papers import training
from mlfuncs import representation

STEPS, LEARNING_RATE = 150, 0.05  # of a linear probe, on the whole training set at once
NEIGHBOURS = 5


def linear_accuracy(train: training.Labelled, test: training.Labelled, *, classes: int = training.CLASSES) -> Array:
    """Accuracy on `test` of a logistic regression on `train`; x are features [N, D], standardised as the training set is."""
    mean, deviation = jnp.mean(train.x, axis=0), jnp.std(train.x, axis=0) + 1e-6
    seen, unseen = ((part.x - mean) / deviation for part in (train, test))

    def loss(params: tuple[Array, Array], rows: Array, key: Array) -> Array:
        del rows, key
        return jnp.mean(training.cross_entropy(seen @ params[0] + params[1], train.y))

    start = jnp.zeros((seen.shape[1], classes)), jnp.zeros(classes)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))
    (kernel, bias), _, _ = training.fit(loss, start, optimizer, jnp.zeros((STEPS, 1)), jax.random.key(0))
    return training.accuracy(unseen @ kernel + bias, test.y)


def few_labels(labels: Array, shots: int, *, classes: int = training.CLASSES) -> Array:
    """Labels [N] of the first `shots` examples of every class, -1 for all others."""
    shares = jax.nn.one_hot(labels, classes, dtype=jnp.int32)
    earlier = jnp.sum((jnp.cumsum(shares, axis=0) - shares) * shares, axis=1)
    return jnp.where(earlier < shots, labels, -1)


def neighbour_accuracy(
    train: training.Labelled, test: training.Labelled, *, classes: int = training.CLASSES, k: int = NEIGHBOURS
) -> Array:
    """Accuracy on `test` of the k nearest features of `train` that have a label, which -1 is not."""
    votes = representation.neighbour_class_probabilities(test.x, train.x, train.y, num_classes=classes, k=k)
    return training.accuracy(votes, test.y)
