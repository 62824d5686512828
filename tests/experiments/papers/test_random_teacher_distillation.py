"""Random networks, what probes read, and a student that starts at its teacher and stays there."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs.papers import random_teacher_distillation as configs
from experiments.papers import digits_noise
from experiments.papers import random_teacher_distillation as study
from mlfuncs import distillation
from tests.experiments.papers.smoke import smoke


def config(**changed):
    given = configs.get_config()
    made = ml_collections.ConfigDict(given.settings.to_dict())
    made.update(given.smoke.to_dict())
    made.update(changed)
    return made


def test_heads_start_with_small_weights_no_biases_and_logits_within_one():
    made = config()
    made.shared.head_widths = (200,)
    params = study.initial(made.shared, jax.random.key(0))
    kernel = params["head"]["layer_0"]["kernel"]
    # 1,600 values cut off at two deviations, whose own is 0.88 of 0.02: within 6 % in more than 99.9 % of draws.
    assert abs(float(jnp.std(kernel)) / (0.02 * 0.8796) - 1) < 0.06
    assert float(jnp.abs(kernel).max()) <= 0.04
    assert float(jnp.abs(params["head"]["last"]["bias"]).max()) == 0
    found = study.logits(made.shared, params, jax.random.normal(jax.random.key(1), (5, 64)))
    assert found.shape == (5, 32)
    assert float(jnp.abs(found).max()) <= 1 + 1e-6


def test_a_linear_probe_separates_what_is_separable():
    labels = jnp.arange(30) % 3
    x = jnp.eye(3)[labels] + 0.1 * jax.random.normal(jax.random.key(0), (30, 3))
    made = config(shared={"probe_steps": 60})
    np.testing.assert_array_equal(jnp.argmax(study.linear_probe(made.shared, x, labels, x), -1), labels)


def test_noise_has_the_mean_and_the_deviation_of_the_data():
    data = 3 + 2 * jax.random.normal(jax.random.key(0), (100, 64))
    noise = study.noise_inputs(jax.random.key(1), data)
    # 6,400 values each: their mean is within 0.1 and their deviation within 4 % in more than 99.9 % of draws.
    assert abs(float(noise.mean() - data.mean())) < 0.1
    assert abs(float(noise.std() / data.std()) - 1) < 0.04
    assert abs(np.corrcoef(noise.ravel(), data.ravel())[0, 1]) < 0.05


def test_a_student_at_its_teacher_has_no_gradient():
    made = config()
    teacher = study.initial(made.shared, jax.random.key(0))
    train, _ = digits_noise.splits(48, 24, 10)
    taught = study.logits(made.shared, teacher, train.x)

    def loss(params):
        return jnp.mean(distillation.soft_cross_entropy(study.logits(made.shared, params, train.x), taught))

    def size(fraction):
        other = study.initial(made.shared, jax.random.key(1))
        student = distillation.interpolate_parameters(teacher, other, fraction=fraction)
        gradients = jax.grad(loss)(student)
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))

    assert size(0.2) > 0
    assert size(0.0) < 1e-3 * size(0.2)  # rounding


def test_smoke(tmp_path):
    records = smoke("random_teacher_distillation", tmp_path)["near, noise"]["0"]
    gain = records["neighbour_accuracy"] - records["teacher_neighbour_accuracy"]
    np.testing.assert_allclose(records["neighbour_accuracy_gain"], gain, atol=1e-6)
