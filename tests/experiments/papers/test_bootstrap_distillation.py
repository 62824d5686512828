"""Trajectories of a Gaussian teacher, the student that starts as the teacher's first estimate, what each loss asks."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models, runs
from experiments.papers import bootstrap_distillation as study
from experiments.reproducing import catalogue
from experiments.tasks import diffusion as task
from mlfuncs import consistency
from tests.experiments.helpers import small
from tests.experiments.papers.smoke import smoke

VARIANCE, TOP = 0.25, 80.0  # of the data of the Gaussian teacher, and its highest level
NOISE = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))


def gaussian(steps):
    config = SimpleNamespace(diffusion=SimpleNamespace(sigma_min=0.002, sigma_max=TOP, sigma_data=0.5))

    def denoise(x, sigma):
        return x * VARIANCE / (VARIANCE + sigma[:, None, None, None] ** 2)

    grid = consistency.karras_levels(steps + 1)[::-1]
    return study.Teacher(SimpleNamespace(config=config), denoise, grid)


@pytest.fixture(scope="module")
def network():
    """A teacher whose network is not trained but not zero either, and its parameters."""
    run = runs.prepare(small("diffusion/digits", **{"model.width": 16, "model.depth": 1}))
    model = task.network(run.config, run.world)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten(
        [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )
    denoise = partial(models.preconditioned(model, sigma_data=run.config.diffusion.sigma_data), params)
    return study.Teacher(run, denoise, consistency.karras_levels(9)[::-1]), params


def settings(**student):
    config = catalogue.load("bootstrap_distillation").settings.student
    config.update({"batch": 3, **student})
    return config


def test_signals_follow_the_exact_trajectories():
    teacher = gaussian(256)
    sigma = teacher.grid[1:, None, None, None, None]
    # From sigma eps and the estimate that it gives, points keep their ratio to sqrt(v + sigma^2).
    start = TOP * (1 + VARIANCE / (VARIANCE + TOP**2))
    exact = NOISE * (start * jnp.sqrt((VARIANCE + sigma**2) / (VARIANCE + TOP**2)) - sigma)
    np.testing.assert_allclose(teacher.signals(NOISE), exact, atol=5e-4)


def test_few_steps_are_euler_steps_from_the_top():
    teacher, levels = gaussian(8), np.asarray(consistency.karras_levels(4))[::-1]
    expected, lower = TOP * np.asarray(NOISE), [*levels[1:], 0.0]
    for sigma, sigma_next in zip(levels, lower, strict=True):
        denoised = expected * VARIANCE / (VARIANCE + sigma**2)
        expected = denoised + sigma_next / sigma * (expected - denoised)
    np.testing.assert_allclose(teacher.few_steps(NOISE, 4), expected, rtol=1e-4, atol=1e-6)
    # From pure noise one step is all there is to know at the top.
    np.testing.assert_allclose(teacher.few_steps(NOISE, 1), teacher.one_step(NOISE), rtol=1e-5)


def test_a_student_starts_as_the_first_estimate_of_its_teacher(network):
    teacher, params = network
    student = teacher.student(params)
    first = student(NOISE, jnp.full(3, TOP))
    # But for the skip connection at the top, sigma_data^2 / sigma_max of the noise.
    np.testing.assert_allclose(first + 0.25 / TOP * NOISE, teacher.one_step(NOISE), atol=5e-4)
    # What it is told is heard.
    assert np.max(np.abs(student(NOISE, jnp.full(3, 1.0)) - first)) > 5e-3


def test_what_the_losses_ask_of_a_student(network):
    teacher, params = network
    rows, key = jnp.arange(3), jax.random.key(3)
    noise = study._noise(teacher, rows, jax.random.split(key)[0])
    student = teacher.student(params)
    loss = partial(study._bootstrap_loss, teacher=teacher, params=params, rows=rows, key=key)
    boundary = consistency.bootstrap_boundary_loss(student, teacher.denoise, noise, sigma_max=TOP)
    alone = loss(settings(boundary_weight=0.0))
    np.testing.assert_allclose(loss(settings(boundary_weight=5.0)), alone + 5 * jnp.mean(boundary), rtol=1e-4)
    # The regression asks for the few steps from the noise that the student sees.
    noise = study._noise(teacher, rows, key)
    missed = student(noise, jnp.full(3, TOP)) - teacher.few_steps(noise, 4)
    found = study._regression_loss(settings(), teacher, params, rows, key)
    np.testing.assert_allclose(found, jnp.mean(missed**2), rtol=1e-4)


@pytest.mark.parametrize("method", ["bootstrap", "regression"])
def test_gradients_reach_all_that_a_student_uses(network, method):
    teacher, params = network
    loss = {"bootstrap": study._bootstrap_loss, "regression": study._regression_loss}[method]
    gradients = jax.grad(lambda params: loss(settings(), teacher, params, jnp.arange(3), jax.random.key(4)))(params)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("sampler", "none", r"sampler must be one of .*, got 'none'"),
        ("steps", 12, r"steps must be a multiple of 8, .*, got 12"),
        ("steps", 0, r"steps must be a multiple of 8, .*, got 0"),
    ],
)
def test_what_is_refused(field, value, says):
    config = catalogue.load("bootstrap_distillation").settings.copy_and_resolve_references()
    config[field] = value
    with pytest.raises(ValueError, match=says):
        study.run(config, jax.random.key(0))


def test_a_smoke_run(tmp_path):
    found = smoke("bootstrap_distillation", tmp_path)
    first, last = found["teacher, 1 step"]["0"], found["teacher, 64 Heun steps"]["0"]
    assert first["worst_error_ratio"] == 1
    assert last["squared_error"] < 1e-9
