"""The reward, the digits it chooses, trajectories and densities by hand, and where losses move a model."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments.papers import pairwise_sample_optimization as study
from tests.experiments.papers.smoke import smoke

SHAPE = (2, 2, 1)
SETTINGS = ml_collections.ConfigDict({"beta": 50.0, "clip": 0.1, "run": {"teacher": {"diffusion": {}}}})
SETTINGS.run.teacher.diffusion = {"mean": -1.2, "std": 1.2, "sigma_data": 0.5}


def problem(levels=(4.0, 2.0, 1.0, 0.0), start=0.1, chosen=0.9):
    """A model that draws one grey, its only parameter, whatever it is given."""
    return study.Problem(
        lambda params: lambda x, sigma: jnp.full(x.shape, params),
        jnp.float32(start),
        jnp.asarray(levels),
        jnp.full((8, *SHAPE), chosen),
    )


def responsive(levels=(4.0, 2.0, 1.0, 0.0)):
    """A model that keeps a share of what it is given, so that samples differ."""
    given = problem(levels)
    return given._replace(function=lambda params: lambda x, sigma: params + 0.1 * x)


def test_ink_is_the_mean_darkness():
    images = jnp.array([[-1.0, 1.0], [0.0, 0.0], [-5.0, 5.0]])[..., None, None]
    np.testing.assert_allclose(study.ink(images), [0.5, 0.5, 0.5])
    np.testing.assert_allclose(study.ink(jnp.full((1, *SHAPE), 0.5)), [0.75])


def test_the_most_inked_images_are_chosen():
    values = jnp.array([0.3, -0.2, 0.9, 0.1, 0.5])
    images = values[:, None, None, None] * jnp.ones((5, *SHAPE))
    np.testing.assert_allclose(study.most_inked(images, 0.6)[:, 0, 0, 0], [0.9, 0.5, 0.3])
    assert len(study.most_inked(images, 0.01)) == 2  # a covariance needs two


def test_states_lie_at_their_levels_and_the_last_is_the_models_own():
    states = study.trajectory(problem(), jnp.float32(0.1), jax.random.key(0), 4096)
    assert states.shape == (4, 4096, *SHAPE)
    np.testing.assert_allclose(states[-1], 0.1, rtol=1e-6)
    # 16,384 values: the standard error of a standard deviation is 0.55 %, and 4 % is seven of them.
    for state, level in zip(states, (4.0, 2.0, 1.0), strict=False):
        np.testing.assert_allclose(jnp.std(state - 0.1), level, rtol=0.04)


def test_log_probs_by_hand():
    # From 4 to 2: the mean is 0.5 + (2 * 2 / 4) / 4 * (x - 0.5), the deviation 2 sqrt(1 - 1/4); the last step has none.
    states = jnp.stack([jnp.full((1, *SHAPE), value) for value in (2.5, 1.0, 7.0)])
    found = study.transition_log_probs(problem((4.0, 2.0, 0.0)), jnp.float32(0.5), states)
    assert found.shape == (1, 1)
    np.testing.assert_allclose(found[0, 0], -np.log(np.sqrt(3)) - 0.5 * np.log(2 * np.pi), rtol=1e-6)
    moved = study.transition_log_probs(problem((4.0, 2.0, 0.0)), jnp.float32(0.5), states.at[1].add(3.0))
    np.testing.assert_allclose(found - moved, [[1.5]], rtol=1e-6)


def test_each_transition_is_at_its_own_level_and_of_its_own_trajectory():
    given = responsive()
    states = study.trajectory(given, given.start, jax.random.key(1), 3)
    together = study.transition_log_probs(given, given.start, states)
    assert together.shape == (2, 3)
    for step in range(2):
        alone = given._replace(levels=jnp.array([*given.levels[step : step + 2], 0.0]))
        part = jnp.concatenate([states[step : step + 2], states[-1:]])
        np.testing.assert_allclose(
            study.transition_log_probs(alone, given.start, part)[0], together[step], rtol=1e-5, atol=1e-6
        )


def test_pairs_give_log_two_at_the_start_and_then_more_ink():
    given, rows = responsive(), jnp.arange(256) % 8

    def loss(params, key):
        return study.online_loss(SETTINGS, given, params, rows, key)

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(
        given.start, jax.random.split(jax.random.key(2), 8)
    )
    np.testing.assert_allclose(values, np.log(2), rtol=1e-5)
    assert jnp.all(jnp.isfinite(gradients))
    # Eight gradients of one sign: the mean is far from 0 by any test.
    assert jnp.max(gradients) < 0


def test_clipped_ratios_stop_the_online_loss_far_from_the_reference():
    given, rows, key = responsive(), jnp.arange(64) % 8, jax.random.key(3)

    def gradient(params, clip):
        config = SETTINGS.copy_and_resolve_references()
        with config.ignore_type():
            config.clip = clip
        return jax.grad(lambda params: study.online_loss(config, given, params, rows, key))(jnp.float32(params))

    # At level 1 a shift of 5 makes ratios of about exp(5^2 / 2) on the model's own samples.
    assert gradient(5.0, 0.1) == 0
    assert gradient(5.0, None) != 0


def test_denoising_pulls_towards_the_chosen_digits():
    given, rows = problem(), jnp.arange(16) % 8
    loss = lambda params: study.denoising_loss(SETTINGS, given, params, rows, jax.random.key(4))  # noqa: E731
    assert jax.grad(loss)(given.start) < 0
    np.testing.assert_allclose(loss(jnp.float32(0.9)), 0, atol=1e-6)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method must be one of none, denoising, .*got 'other'"):
        study.run(ml_collections.ConfigDict({"method": "other"}), jax.random.key(0))


def test_smoke(tmp_path):
    found = smoke("pairwise_sample_optimization", tmp_path)
    assert found["few-step model"]["0"]["gap_closed"] == 0
