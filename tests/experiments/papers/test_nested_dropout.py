"""Wrong labels as many as said, accuracies of mean logits, and who learns from whom in co-teaching."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import models
from experiments.papers import nested_dropout as study
from experiments.papers import training
from tests.experiments.papers.smoke import smoke


def test_symmetric_noise_exchanges_a_share_of_the_labels_for_other_classes():
    clean = jnp.arange(1000) % 10
    noisy = study.symmetric_noise(jax.random.key(0), clean, rate=0.4, classes=10)
    wrong = noisy != clean
    assert jnp.sum(wrong) == 400
    assert int(noisy.min()) == 0
    assert int(noisy.max()) == 9
    shifts = np.bincount(np.asarray((noisy - clean) % 10), minlength=10)[1:]
    # Nine shifts of 400 / 9 each: chi-squared with 8 degrees of freedom is below 26 in 99.9 % of draws.
    assert np.sum((shifts - 400 / 9) ** 2 / (400 / 9)) < 26


def test_accuracies_are_of_the_mean_of_the_logits():
    network = models.Model(lambda key: None, lambda params, x: {"features": x * params["gain"]}, ())
    kernels = jnp.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]])
    pair = {"gain": jnp.ones((2, 1)), "last": {"kernel": kernels}}
    examples = training.Labelled(jnp.ones((1, 2)), jnp.array([1]))
    # One feature: logits 1/2 and 0. Two: 1/2 and 3/2.
    np.testing.assert_array_equal(study.mean_prefix_accuracy(network, pair, examples), [0, 1])


def test_each_network_learns_from_what_the_other_trusts():
    config = ml_collections.ConfigDict(
        {
            "shared": {"widths": (3, 3), "batch": 4},
            "sigma": 0.01,  # one feature, always
            "weight_decay": 0.0,
            "co_teaching": {"epochs": 1, "learning_rate": 0.5, "forget_rate": 0.5, "num_gradual": 0, "halves": True},
        }
    )
    network = models.Model(lambda key: None, lambda params, x: {"features": x}, ())
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 2))
    pair = {"last": {"kernel": kernels}}
    x = jax.random.normal(jax.random.key(2), (4, 3))
    train = training.Labelled(x, jnp.array([0, 1, 1, 0]))
    # On this one a single feature is right, so that the losses are judged with it alone.
    validation = training.Labelled(x[:1], jnp.argmax(x[:1, :1] @ kernels.mean(0)[:1], -1))
    key = jax.random.key(3)
    taught = study.co_teach(config, network, pair, train, validation, key)

    order = training.batches(jax.random.split(key)[0], 4, 4, 1)[0]

    def losses(kernel, rows):
        return training.cross_entropy(x[rows, :1] @ kernel[:1], train.y[rows])

    for learner, teacher, half in ((0, 1, order[2:]), (1, 0, order[:2])):
        chosen = half[jnp.argmin(losses(kernels[teacher], half))]
        gradient = jax.grad(lambda kernel, row=chosen: losses(kernel, row[None])[0])(kernels[learner])
        expected = kernels[learner] - 0.5 * gradient
        np.testing.assert_allclose(taught["last"]["kernel"][learner], expected, rtol=1e-5)
        # The teacher and the learner would choose differently, or from another half: a swap shows.
        other = order[:2] if learner == 0 else order[2:]
        for row in (*other, *half[half != chosen]):
            wrong = jax.grad(lambda kernel, row=row: losses(kernel, row[None])[0])(kernels[learner])
            assert not np.allclose(gradient, wrong, atol=1e-3)


def test_smoke(tmp_path):
    smoke("nested_dropout", tmp_path)
