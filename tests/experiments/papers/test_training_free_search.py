"""One program for all students is each of them, sizes by hand, what scores look at, and what a search may find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import convolution
from experiments.papers import training
from experiments.papers import training_free_search as study
from tests.experiments.papers.smoke import smoke

NARROW, BROAD = 0, 1


def images(number=6, side=5, channels=1):
    return jax.random.uniform(jax.random.key(1), (number, side, side, channels))


def test_the_space_holds_every_architecture_once():
    assert study.SPACE.shape == (128, 4)
    assert len(np.unique(study.SPACE, axis=0)) == 128


def test_parameters_by_hand():
    ends = 32 * 8 + 64 + 330  # head and classifier, of width 8
    assert study.parameters(np.array([study.SKIP, study.POOL, study.SKIP, NARROW])) == 72 + 16 + ends
    assert study.parameters(np.array([study.POINT, study.WIDE, study.SKIP, NARROW]), 3) == (
        3 * 72 + 16 + (64 + 16) + (9 * 64 + 16) + ends
    )


def test_a_pool_is_the_convolution_with_ninths():
    x = images(channels=2)
    kernel = jnp.tile(jnp.eye(2) / 9, (3, 3, 1, 1))
    np.testing.assert_allclose(study.pooled(x), convolution.convolve(x, kernel, 1), rtol=1e-5, atol=1e-6)


def test_a_narrow_student_is_the_network_of_its_channels_alone():
    params = study.first_student(jax.random.key(0), 1)
    x, width = images(), study.WIDTHS[NARROW]
    found = study.student(params, x, jnp.array([study.WIDE, study.POINT, study.SKIP, NARROW]), 6)

    def cut(layer, inputs, outputs=width):
        return {name: value[..., :outputs] for name, value in layer.items()} | {
            "kernel": layer["kernel"][:, :, :inputs, :outputs]
        }

    h = study.block(cut(params["stem"], 1), x, 6)
    wide, point, _ = (cut(jax.tree.map(lambda leaf: leaf[place], params["cells"]), width) for place in range(3))  # noqa: B023
    h = study.block(wide, h, 6)
    h = study.block(point | {"kernel": point["kernel"][1:2, 1:2]}, h, 6)
    expected = study.read(params, study.block(cut(params["head"], width, study.FEATURES), h, 6))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-4)
    # What it does not use gets no gradient.
    gradients = jax.grad(lambda params: jnp.sum(study.student(params, x, jnp.array([2, 1, 0, 0]), 6)["logits"] ** 2))(
        params
    )
    wide, _, skipped = np.asarray(gradients["cells"]["kernel"])
    assert np.abs(skipped).max() == np.abs(wide[..., width:]).max() == 0
    assert np.abs(wide[..., :width]).max() > 0


def test_batch_norm_goes_by_the_first_images():
    layer = study.layer(jax.random.key(0), 1, 1, 3)
    x = images()
    alone = study.block(layer, x[:4], 4)
    np.testing.assert_allclose(study.block(layer, x, 4)[:4], alone, rtol=1e-5, atol=1e-6)
    assert not np.allclose(study.block(layer, x, 6)[:4], alone, atol=1e-3)


def test_training_starts_from_a_variance_of_one_over_the_inputs():
    params = study.first_student(jax.random.key(0), 3)
    number = study.student_inputs(params, jnp.array([study.WIDE, study.POINT, study.SKIP, NARROW]))
    wanted = {"stem": [27], "cells": [72, 8, 8], "head": [8], "last": [32]}
    assert {name: np.ravel(value).tolist() for name, value in number.items()} == wanted
    kernel = study.scaled(params, number)["cells"]["kernel"]
    np.testing.assert_allclose(kernel[0] * 72**0.5, params["cells"]["kernel"][0], rtol=1e-5)


def test_the_score_is_the_sum_of_its_parts_and_highest_for_the_teacher_itself():
    x, y = images(8), jnp.arange(8) % 10
    keys = jax.random.split(jax.random.key(2), (2, 2))
    views = study.teacher_views(keys[0], x, y)
    assert (views[0].shape, views[1].shape) == ((2, 8, 32), (2, 10, 32))
    found = study.scores(keys[1], jnp.array([2, 2, 2, 1]), x, y, views)
    np.testing.assert_allclose(found["both"], found["relations"] + found["semantics"], rtol=1e-5)
    assert float(found["both"]) < 0


def test_a_search_keeps_to_the_budget_and_finds_the_best_it_can():
    size = np.arange(128.0)[::-1]
    score = np.sin(np.arange(128.0))
    found = study.search(jax.random.key(0), score, size, population_size=20, num_evaluations=200)
    place = study.SPACE.tolist().index(list(found))
    affordable = np.flatnonzero(size <= np.median(size))
    assert place in affordable
    # 200 of 64 architectures: among the best tenth of them.
    assert score[place] >= np.quantile(score[affordable], 0.9)


def test_ranking_by_hand():
    reached = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    told = study.ranking(reached * 2, reached)
    assert told["spearman"] == pytest.approx(1)
    assert told["top_five_over_median"] == pytest.approx(0.5 - 0.4)
    assert study.ranking(-reached, reached)["top_five_over_median"] == pytest.approx(0.3 - 0.4)


def test_a_student_learns_from_the_teacher_alone_or_labels_alone():
    train, test = training.image_splits("digits", jax.random.key(0), (40, 20))
    settings = {"batch": 10, "steps": 2, "peak": 1e-2, "temperature": 4.0}
    answers = jax.random.normal(jax.random.key(3), (40, 10))

    def after(weight, answers):
        given = (jnp.array([2, 0, 3, 0]), jnp.float32(weight), train, test, answers)
        return study.student_accuracy(jax.random.key(4), *given, **settings)

    assert float(after(0.0, answers)) == float(after(0.0, -answers))
    assert 0 <= float(after(0.9, answers)) <= 1


def test_smoke(tmp_path):
    smoke("training_free_search", tmp_path)
