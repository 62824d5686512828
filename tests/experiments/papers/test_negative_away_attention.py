"""Prompts and colours by hand, and how samples are steered."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import worlds
from experiments.papers import negative_away_attention as study
from experiments.reproducing import catalogue
from experiments.tasks import diffusion
from experiments.worlds import scenes
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def student():
    """An untrained one, its parameters random."""
    config = catalogue.settings(catalogue.load("negative_away_attention"), "scale 4", smoke=True).run
    world = worlds.describe(config.data, None)
    leaves, structure = jax.tree.flatten(jax.jit(diffusion.network(config, world).init)(KEY))
    keys = jax.random.split(KEY, len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return SimpleNamespace(
        config=config, world=world, state=SimpleNamespace(average=jax.tree.unflatten(structure, moved))
    )


def test_entropy_of_colours():
    assert study.color_entropy(np.array([2, 2, -1, 2])) == 0
    assert study.color_entropy(np.array([0, 1, 2, 3, 4, 5, -1])) == pytest.approx(1.0)
    assert study.color_entropy(np.array([0, 0, 1, 1])) == pytest.approx(np.log(2) / np.log(6))
    assert study.color_entropy(np.array([-1, -1])) == 0


def test_every_shape_is_asked_for_without_every_colour(student):
    asked = study.questions(student.world, 60)
    np.testing.assert_array_equal(scenes.read(asked.tokens).shape[:, 0], asked.shape)
    np.testing.assert_array_equal(scenes.read(asked.negative).color[:, 0], asked.color)
    assert np.all(scenes.read(asked.tokens).color == -1)
    assert len({*zip(asked.shape.tolist(), asked.color.tolist(), strict=True)}) == 30


def test_steering_by_nothing_is_none(student):
    asked = study.questions(student.world, 6)
    noise = jax.random.normal(KEY, (6, *student.world.example_shape))
    draw = lambda steer, scale: study.sampler(student, steer, scale)(noise, asked.tokens, asked.negative)  # noqa: E731
    plain = draw("none", 0.0)
    np.testing.assert_allclose(draw("attention", 0.0), plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(draw("guidance", 1.0), plain, rtol=1e-4, atol=1e-5)
    for steer, scale in (("attention", 0.5), ("guidance", 2.0)):
        assert jnp.min(jnp.max(jnp.abs(draw(steer, scale) - plain), axis=(1, 2, 3))) > 1e-4


def test_an_unknown_steer_is_refused():
    with pytest.raises(ValueError, match="steer must be one of none, guidance, attention, got 'other'"):
        study.run(ml_collections.ConfigDict({"steer": "other"}), KEY)


def test_smoke(tmp_path):
    found = smoke("negative_away_attention", tmp_path)
    for seeds in found.values():
        assert seeds["0"]["obeyed"] <= 1 - seeds["0"]["negative_rate"]
