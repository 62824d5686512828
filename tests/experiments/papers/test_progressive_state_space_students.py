"""What a network costs, how weights and labels enter its training, groups by hand, and who is taught by whom."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.papers import progressive_state_space_students as configs
from experiments.papers import progressive_state_space_students as study
from experiments.papers import training
from experiments.planning import flops
from tests.experiments.papers.smoke import smoke

SMALL = study.Size(4, 2)
SHAPE = (8, 8, 1)


def config(**changed):
    given = configs.get_config()
    made = ml_collections.ConfigDict(given.settings.to_dict())
    made.update(given.smoke.to_dict())
    made.update(changed)
    return made


@pytest.mark.parametrize("size", [SMALL, study.Size(6, 3, 2)])
def test_the_cost_is_that_of_products_taps_and_recurrence(size):
    made = study.network(size, SHAPE)
    traced = jax.make_jaxpr(lambda params, x: made.apply(params, x)["logits"])(
        made.init(jax.random.key(0)), jnp.ones((1, *SHAPE))
    )
    inner = 2 * size.width
    # The trace holds products alone, two operations each, and of the recurrence its output.
    products = flops.count(traced.jaxpr) / 2
    rest = size.depth * 8 * inner * (4 + (study.SCAN - 1) * size.states)
    assert study.multiply_adds(size, SHAPE) == products + rest


def teaching(size, **changed):
    given = {"told": jnp.zeros((size, 10)), "weights": jnp.ones(size), "alpha": 1.0, "temperature": 1.0}
    return study.Teaching(**{**given, **changed})


def trained(train, taught, steps=20):
    given = {"size": SMALL, "batch": 6, "steps": steps}
    return study.trained(jax.random.key(1), train, train.x[:3], taught, 3e-2, **given)


def test_weights_labels_and_the_teacher_decide_what_is_learned():
    x = jax.random.uniform(jax.random.key(0), (6, *SHAPE))
    train = training.Labelled(x, jnp.array([0, 1, 2, 0, 1, 2]))
    start, _ = trained(train, teaching(6, weights=jnp.zeros(6)))
    plain, of_test = trained(train, teaching(6))
    assert float(jnp.mean(training.cross_entropy(plain, train.y))) < 0.7 * float(
        jnp.mean(training.cross_entropy(start, train.y))
    )
    np.testing.assert_allclose(of_test, plain[:3], rtol=1e-4, atol=1e-5)  # the test images are the first three
    # A teacher alone that says something else than the labels is followed.
    told = 10 * jax.nn.one_hot(jnp.array([5, 5, 5, 7, 7, 7]), 10)
    followed, _ = trained(train, teaching(6, told=told, alpha=0.0))
    gap = lambda said: float(jnp.mean(training.cross_entropy(said, jnp.argmax(told, -1))))  # noqa: E731
    assert gap(followed) < 0.7 * gap(start)
    # With labels alone the teacher does not matter.
    np.testing.assert_array_equal(trained(train, teaching(6, told=told))[0], plain)


def test_groups_by_hand():
    labels = jnp.array([0, 1, 1, 0])
    sure, unsure = jnp.array([[9.0, 0], [0, 9], [9, 0], [0, 9]]), jnp.array([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    found = study.measured(jnp.stack([unsure, sure]), unsure, labels, jnp.array([0.4, 0.2]))
    # The second student outvotes the first on the third example, and is wrong there.
    wanted = {
        "group_accuracy": 0.5,
        "teacher_accuracy": 0.75,
        "group_cost": 0.6,
        "smallest_accuracy": 0.5,
        "smallest_cost": 0.2,
        "first_accuracy": 0.75,
        "worst_gain": -0.25,
        "cost_enough": 0.4,
        "students_enough": 1,
        "accuracy_of_first_1": 0.75,
        "accuracy_of_first_2": 0.5,
        "accuracy_of_1_alone": 0.75,
        "accuracy_of_2_alone": 0.5,
    }
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    perfect = 5 * jax.nn.one_hot(labels, 2)
    none = study.measured(jnp.stack([unsure, sure]), perfect, labels, jnp.array([0.4, 0.2]))
    assert (int(none["students_enough"]), float(none["cost_enough"])) == (0, 1.0)


def test_what_the_students_leave_weighs_most():
    teacher = jnp.array([[5.0, 0], [5, 0]])
    weights = study.left_over([teacher, jnp.array([[5.0, 0], [0, 5]])], teacher)
    np.testing.assert_allclose(weights, [0.0, 2.0], atol=1e-6)


def test_only_progressive_students_weigh_examples(monkeypatch):
    seen = []
    plain = study.trained

    def spied(key, train, test_x, taught, *given, **named):
        seen.append(np.asarray(taught.weights))
        return plain(key, train, test_x, taught, *given, **named)

    monkeypatch.setattr(study, "trained", spied)
    shared = study.prepare(config().shared, jax.random.key(0))
    for progressive in (True, False):
        study.run(config(progressive=progressive), jax.random.key(0), shared)
    teacher, first, second, *others = seen
    for weights in (teacher, first, *others):
        np.testing.assert_array_equal(weights, 1.0)
    assert len(others) == 2
    assert np.ptp(second) > 0.01
    np.testing.assert_allclose(second.mean(), 1.0, rtol=1e-5)


def test_smoke(tmp_path):
    smoke("progressive_state_space_students", tmp_path)
