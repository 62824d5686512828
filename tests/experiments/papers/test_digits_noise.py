"""The setting that studies of distillation share: who sees which digits, noise, wrong labels and mixtures."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.papers import digits_noise as configs
from experiments.papers import digits_noise as study

KEY = jax.random.key(0)


def config(**changed):
    made = ml_collections.ConfigDict(configs.settings())
    made.update(configs.smoke())
    made.update(changed)
    return made


def given(made):
    network = study.teacher_network(made.shared)
    return study.setting(made, KEY, {"teacher": network.init(jax.random.key(7))})


def test_the_split_is_fixed_and_keeps_the_classes_asked_for():
    train, test = study.splits(1200, 597, 10)
    assert (train.x.shape, test.x.shape) == ((1200, 64), (597, 64))
    assert (float(train.x.min()), float(train.x.max())) == (-0.5, 0.5)
    few, _ = jax.jit(lambda: study.splits(1200, 597, 3))()
    np.testing.assert_array_equal(few.y, train.y[train.y < 3])
    np.testing.assert_array_equal(few.x, train.x[train.y < 3])


def test_students_get_the_first_examples_and_the_teacher_sees_their_noise():
    made = config(noise=0.3, examples=24)
    setting, rows = given(made), jnp.arange(24)
    train, _ = study.splits(64, 32, 10)
    np.testing.assert_array_equal(setting.train.x, train.x[:24])
    np.testing.assert_array_equal(setting.train.y, train.y[:24])
    batch = study.batch(made, setting, rows, jax.random.key(1))
    noise = np.asarray(batch.x - setting.train.x).ravel()
    # 1,536 normal values: their deviation is within 6 % of 0.3 in 99.9 % of draws (2 * 1536 * 0.06^2 > 3.29^2).
    assert abs(noise.std() / 0.3 - 1) < 0.06
    np.testing.assert_array_equal(batch.teacher["logits"], setting.teach(batch.x)["logits"])
    assert not np.allclose(batch.x, study.batch(made, setting, rows, jax.random.key(2)).x)
    np.testing.assert_array_equal(study.batch(config(noise=0.0), setting, rows, KEY).x, setting.train.x)


def test_no_gradient_reaches_the_teacher():
    made = config()
    network = study.teacher_network(made.shared)

    def answer(params):
        return jnp.sum(study.setting(made, KEY, {"teacher": params}).teach(jnp.ones((2, 64)))["logits"] ** 2)

    gradients = jax.grad(answer)(network.init(KEY))
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradients))


def test_a_share_of_labels_is_drawn_anew():
    clean = jnp.arange(2000) % 10
    told = study.replace_labels(KEY, clean, rate=0.3, classes=10)
    wrong = int(jnp.sum(told != clean))
    # 600 are drawn and nine tenths of them change: a binomial of mean 540 and deviation 7.3, four of them each way.
    assert 510 < wrong < 570
    np.testing.assert_array_equal(study.replace_labels(KEY, clean, rate=0.0, classes=10), clean)


def test_mixtures_hold_inputs_and_labels_in_the_same_shares():
    y = jnp.arange(10)
    x = jnp.eye(10, 64)  # a picture is its label
    mixed, shares = study.mixed(KEY, x, y, fraction=1.0, classes=10)
    np.testing.assert_allclose(mixed[:, :10], shares, atol=1e-6)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    partly = study.mixed(KEY, x, y, fraction=0.1, classes=10)[1]
    assert int(jnp.sum(jnp.max(partly, axis=1) < 1)) <= 1
    same = study.mixed(KEY, x, y, fraction=0.0, classes=10)
    assert same[0] is x
    assert same[1] is y


def test_a_student_learns_what_its_objective_says():
    made = config(steps=150, examples=64, batch=32, noise=0.0, widths=(32,))
    setting = given(made)
    # The teacher is untrained: who learns from it agrees with it, who learns from labels does not.
    for objective, agrees in (("kullback_leibler(temperature=2)", True), ("cross_entropy", False)):
        params, _ = study.distil(made, KEY, setting, study.objective_loss(setting, objective))
        logits = setting.student.apply(params, setting.train.x)["logits"]
        agreement = jnp.mean(jnp.argmax(logits, -1) == jnp.argmax(setting.teach(setting.train.x)["logits"], -1))
        right = jnp.mean(jnp.argmax(logits, -1) == setting.train.y)
        assert (agreement > 0.7) == agrees
        assert (right > 0.9) != agrees


@pytest.mark.parametrize("examples", [0, 65])
def test_more_examples_than_there_are_is_refused(examples):
    with pytest.raises(ValueError, match=rf"examples must be in \[1, 64\], the training set, got {examples}"):
        given(config(examples=examples))
