"""Controls by hand, pairs and levels of the student, a student on a known trajectory, and calls that are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import worlds
from experiments.papers import distilled_latent_optimization as study
from experiments.reproducing import catalogue
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def config():
    return catalogue.settings(catalogue.load("distilled_latent_optimization"), "no search", smoke=True)


def picture(rows):
    return jnp.asarray(rows, jnp.float32)[None, ..., None]


def test_controls_by_hand():
    empty, x = picture(-np.ones((2, 4))), picture([[1, -1, 0, -1], [1, -1, -1, 1]])
    np.testing.assert_allclose(study.curve(x), [[2.0, 0.0, 0.5, 1.0]])
    np.testing.assert_allclose(study.intensity_error(x, empty), [(4 + 0.25 + 1) / 4])
    # The curve does not know in which row the ink is.
    np.testing.assert_allclose(study.intensity_error(x, x[:, ::-1]), [0.0])
    # Two of four given values are off by 2 each.
    np.testing.assert_allclose(study.outpainting_error(x, empty), [(4 + 4) / 4])
    np.testing.assert_allclose(study.outpainting_error(x.at[:, :, 2:].set(0.0), x), [0.0])


def test_jumps_lead_down_the_grid():
    first, second, last = study.jump_places(KEY, 3000, 5)
    assert set(np.asarray(first).tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(second, first + 1)
    assert np.all((last >= second) & (last <= 4))
    # From the highest level each of the four others is as likely; 5 deviations of a share.
    shares = np.bincount(last[first == 0], minlength=5)[1:] / np.sum(first == 0)
    np.testing.assert_allclose(shares, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / np.sum(first == 0)))


def test_a_student_starts_as_its_teacher(config):
    world = worlds.build(config.shared.teacher.data, None)
    networks = {model: study.network_of(config.shared, world, model) for model in ("teacher", "student")}
    teacher = jax.jit(networks["teacher"].init)(KEY)
    student = {**jax.jit(networks["student"].init)(KEY), **teacher}
    x, sigma = jax.random.normal(KEY, (3, 8, 8, 1)), jnp.array([0.1, 1.0, 5.0])
    jump = study.caller(config.shared, world, "student")(student, x, sigma, 0.5 * sigma)
    np.testing.assert_allclose(jump, study.caller(config.shared, world, "teacher")(teacher, x, sigma), rtol=1e-5)


@pytest.mark.parametrize(("model", "calls"), [("teacher", 1), ("teacher", 6), ("student", 1), ("student", 3)])
def test_samplers_ask_as_often_as_they_say_and_at_known_levels(config, model, calls):
    asked, grid = [], np.asarray(study.level_grid(config.shared))

    def network(params, x, sigma, *sigma_to):
        jax.debug.callback(lambda *levels: asked.append([float(level[0]) for level in levels]), sigma, *sigma_to)
        return 0.25 * x / (0.25 + sigma[:, None, None, None] ** 2)

    sample = study.sampler(config.shared, network, model, calls)
    latent = jax.random.normal(KEY, (2, 8, 8, 1))
    assert sample(None, latent).shape == latent.shape
    jax.effects_barrier()
    assert len(asked) == calls
    assert asked[0][0] == pytest.approx(80.0)
    if model == "student":
        assert all(np.isclose(grid, level).any() for levels in asked for level in levels)
        assert asked[-1][1] == pytest.approx(grid[-1])


def test_a_search_asks_so_often_a_step(config):
    asked = []

    def network(params, x, sigma, sigma_to):
        jax.debug.callback(lambda level: asked.append(level), sigma)
        return 0.25 * x / (0.25 + sigma[:, None, None, None] ** 2)

    with config.unlocked():
        given = config.copy_and_resolve_references()
    given.update({"search_steps": 3, "search_calls": 2})
    target = jnp.zeros((2, 8, 8, 1))
    search = study.search(given, network, None, study.outpainting_error, KEY)
    found = search(target, 1, 0.1)
    jax.effects_barrier()
    assert len(asked) == 3 * 2
    # Where nothing is searched the start is given, another in every draw.
    given.search_steps = 0
    start = study.search(given, network, None, study.outpainting_error, KEY)
    np.testing.assert_array_equal(start(target, 1, 0.0), start(target, 1, 0.1))
    assert not np.array_equal(start(target, 1, 0.0), start(target, 2, 0.0))
    assert np.all(study.outpainting_error(found, target) < study.outpainting_error(start(target, 1, 0.0), target))


def test_a_smoke_run_of_all_arms(tmp_path):
    found = smoke("distilled_latent_optimization", tmp_path)
    assert found["through 20 steps"]["0"]["search_evaluations"] == 1400
    assert found["no search"]["0"]["search_evaluations"] == 0
    assert all(seeds["0"]["intensity_error"] > 0 for seeds in found.values())
