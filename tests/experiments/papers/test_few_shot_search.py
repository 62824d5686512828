"""A masked student is the network cut to its size, its relations are its own, and what a choice among students is worth."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments.papers import few_shot_search as study
from mlfuncs import distillation, sparsity
from tests.experiments.papers.smoke import smoke

FORM = study.Form(head_width=4, relation_heads=4, divergence="kl")
SHARED = ml_collections.ConfigDict(
    {"depth": 3, "heads": 4, "width": 16, "expansion": 4, "length": 6, "relation_heads": 4}
)
CHOICES = ml_collections.ConfigDict({"layers": (1, 2), "heads": (1, 3), "hidden": (6, 12), "ratio": (1.5, 2)})


@pytest.fixture(scope="module")
def teacher():
    return study.initial(jax.random.key(0), 9, SHARED)


def tokens(rows=5):
    return jax.random.randint(jax.random.key(1), (rows, 6), 0, 9)


def test_students_are_all_combinations_by_size():
    students = study.students_of(CHOICES, heads=4)
    assert students.shape == (16, 4)
    assert len(np.unique(students, axis=0)) == 16
    assert np.all(np.diff(study.sizes(students, 4)) >= 0)
    assert students[0].tolist() == [1, 1, 6, 1.5]
    # 6 wide, one of four heads: 36 + 3 * 36 / 4 + 36, then 2 * 36 * 1.5 + 9 + 18, then 36.
    assert study.sizes(students, 4)[0] == 36 + 27 + 36 + 108 + 9 + 18 + 36


def test_layers_are_spread_evenly_from_the_first():
    assert [study.layers_of(count, 4) for count in (1, 2, 3, 4)] == [[0], [0, 2], [0, 1, 2], [0, 1, 2, 3]]
    network = study.network_of(study.students_of(CHOICES, heads=4), depth=3)
    assert network == study.Network(heads=3, hidden=12, inner=24, layers=(0, 1))


def test_a_masked_student_is_the_network_cut_to_its_size(teacher):
    students = study.students_of(CHOICES, heads=4)
    network = study.network_of(students, depth=3)
    shared = study.inherited(teacher, network, FORM.head_width)
    used = study.masks(students, network, 3, FORM)
    for index in (0, 7, 15):
        layers, heads, hidden, ratio = students[index]
        alone = study.network_of(students[index : index + 1], depth=3)
        assert alone[:3] == (heads, hidden, int(hidden * ratio))
        assert len(alone.layers) == layers
        own = study.inherited(teacher, alone, FORM.head_width)
        whole = study.some(study.masks(students[index : index + 1], alone, 3, FORM), 0)
        expected, wanted = study.apply(own, tokens(), whole, 4)
        states, projections = study.apply(shared, tokens(), study.some(used, index), 4)
        np.testing.assert_allclose(states[..., : int(hidden)], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(states[..., int(hidden) :], 0)
        np.testing.assert_allclose(projections[..., : wanted.shape[-1]], wanted, rtol=1e-4, atol=1e-5)
        # The loss is that of the student's own columns, split among relation heads.
        given = study.answers(teacher, tokens(), study.teacher_masks(SHARED, FORM), head_width=4)
        loss = study.relation_loss(shared, tokens(), given, study.some(used, index), FORM)
        by_hand = distillation.self_attention_relation(tuple(wanted), tuple(given), relation_heads=4)
        np.testing.assert_allclose(loss, jnp.mean(by_hand), rtol=1e-4)


def test_the_shared_network_starts_as_a_corner_of_the_teacher(teacher):
    shared = study.inherited(teacher, study.Network(2, 10, 12, (0, 2)), 4)
    np.testing.assert_array_equal(shared["blocks"]["block_1"]["query"], teacher["blocks"]["block_2"]["query"][:10, :8])
    np.testing.assert_array_equal(
        shared["blocks"]["block_1"]["second"], teacher["blocks"]["block_2"]["second"][:12, :10]
    )
    assert shared["words"].shape == (9, 10)
    assert len(sparsity.leading_slice(shared, jax.tree.map(np.shape, shared))["blocks"]) == 2


def test_the_teacher_has_no_loss_against_itself(teacher):
    used = study.teacher_masks(SHARED, FORM)
    given = study.answers(teacher, tokens(), used, head_width=4)
    assert float(study.relation_loss(teacher, tokens(), given, used, FORM)) == pytest.approx(0, abs=1e-6)


def test_the_teacher_does_not_see_what_comes_later(teacher):
    used = study.teacher_masks(SHARED, FORM)
    states, _ = study.apply(teacher, tokens(), used, 4)
    changed, _ = study.apply(teacher, tokens().at[:, 4].add(1), used, 4)
    np.testing.assert_allclose(states[:, :4], changed[:, :4], rtol=1e-5)
    assert not np.allclose(states[:, 4:], changed[:, 4:], atol=1e-3)


def test_students_alone_learn_each_for_itself(teacher):
    students = study.students_of(CHOICES, heads=4)[[0, 15]]
    network = study.network_of(students, depth=3)
    shared = study.inherited(teacher, network, 4)
    used = study.masks(students, network, 3, FORM)
    given = study.answers(teacher, tokens(), study.teacher_masks(SHARED, FORM), head_width=4)

    def after(used):
        key = jax.random.key(5)
        return study.trained_alone(key, shared, tokens(), given, used, 1e-2, form=FORM, batch=2, steps=10)

    both, first = after(used), after(study.some(used, slice(1)))
    np.testing.assert_allclose(both["words"][0], first["words"][0], rtol=1e-4, atol=1e-5)
    before = study.losses_of(shared, tokens(), given, used, form=FORM, alone=False)
    assert np.all(study.losses_of(both, tokens(), given, used, form=FORM, alone=True) < before)


def test_texts_hold_the_next_token_and_keep_the_held_out_apart():
    given = study.texts("", 8, 4, 0.2)
    np.testing.assert_array_equal(given.train[1, :5], given.train[0, 4:])
    assert given.train.shape[1] == given.test.shape[1] == 9
    assert given.words > int(given.train.max())


def test_a_choice_is_compared_with_students_of_its_size():
    size = np.array([1.0, 9, 10, 11, 12])
    before = np.array([5.0, 1, 3, 2, 4])
    after = np.array([9.0, 2, 4, 8, 6])
    told = study.chosen(size, before, after)
    # Budgets 10, 11 and 12: always the second student; peers are [2], [2, 3] and [2, 3, 4].
    assert told["chosen_loss"] == 2
    assert told["random_loss"] == pytest.approx((4 + 6 + 6) / 3)
    assert told["on_front"] == 2
    assert told["rank_correlation"] == pytest.approx(0.7)


def test_smoke(tmp_path):
    smoke("few_shot_search", tmp_path)
