"""Prompts, levels, an adapter that begins as the base, and what its loss reaches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import worlds
from experiments.papers import negative_offset_adapter as study
from experiments.reproducing import catalogue
from experiments.worlds import scenes
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def shared():
    return catalogue.settings(catalogue.load("negative_offset_adapter"), "adapter, 4 steps", smoke=True).shared


@pytest.fixture(scope="module")
def base(shared):
    """World, network, denoiser and random parameters, those that are zero at first too."""
    world = worlds.describe(shared.teacher.data, None)
    model, denoise = study.denoiser(shared, world)
    leaves, structure = jax.tree.flatten(jax.jit(model.init)(KEY))
    keys = jax.random.split(KEY, len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return world, model, denoise, jax.tree.unflatten(structure, moved)


def encoded(world, *texts):
    return jnp.asarray(np.stack([world.captions.encode(text) for text in texts]))


def test_questions_ask_for_everything_and_forbid_every_colour(base):
    asked = study.questions(base[0], 120)
    said, forbidden = scenes.read(asked.tokens), scenes.read(asked.negative)
    bare = np.asarray(asked.open)
    assert np.mean(bare) == 0.5
    for rows in (bare, ~bare):
        assert len({*zip(said.shape[rows, 0].tolist(), np.asarray(asked.color)[rows].tolist(), strict=True)}) == 30
    np.testing.assert_array_equal(said.color[:, 0], np.where(bare, -1, asked.color))
    np.testing.assert_array_equal(forbidden.color[:, 0], np.where(bare, asked.color, -1))
    assert np.all(forbidden.shape == -1)


def test_judged_by_hand(base):
    """Two squares of the colours asked for and forbidden; of each kind of prompt one sample is as it should be."""
    world, shapes = base[0], [scenes.SHAPES.index("square")] * 4
    colors = [scenes.COLORS.index(color) for color in ("red", "blue", "red", "blue")]
    drawn = scenes.Scene(
        *(jnp.asarray(x)[:, None] for x in (shapes, colors, [1] * 4, [0] * 4)),
        jnp.full((4, 1, 2), 0.5),
        jnp.ones((4, 1), bool),
        jnp.ones(4, int),
    )
    asked = study.Asked(
        encoded(world, "red square", "red square", "square", "square"),
        encoded(world, "", "", "red", "red"),
        jnp.zeros(4, int),
        jnp.array([False, False, True, True]),
    )
    found = study.judged(world, 2 * scenes.render(drawn, 16) - 1, asked)
    assert found == {"accuracy": 0.5, "negative_rate": 0.5}


def test_levels_of_few_steps_are_on_the_grid(shared):
    grid = np.asarray(study.level_grid(shared))
    assert len(grid) == shared.steps * shared.substeps + 1
    assert grid[0] == pytest.approx(80.0)
    assert grid[-1] == 0
    assert len(grid[:: shared.substeps]) == shared.steps + 1


def test_an_adapter_begins_as_the_base_where_both_prompts_are_the_same(base):
    world, model, denoise, params = base
    tokens = encoded(world, "red square", "blue", "")
    x, sigma = jax.random.normal(KEY, (3, *world.example_shape)), jnp.array([0.1, 1.0, 5.0])
    adapter = study.initial_adapter(params)

    @jax.jit
    def both(negative):
        attend = study.adapted(model, params, adapter, tokens, negative)
        return denoise(params, x, sigma, tokens), denoise(params, x, sigma, tokens, attention=attend)

    plain, found = both(tokens)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    plain, found = both(encoded(world, "green", "green", "green"))
    assert jnp.min(jnp.max(jnp.abs(found - plain), axis=(1, 2, 3))) > 1e-4


def test_the_loss_teaches_every_part_of_the_adapter(shared, base):
    world, model, denoise, params = base
    tokens, negative = encoded(world, *["red square"] * 8), encoded(world, *["blue", ""] * 4)
    data = jax.random.normal(KEY, (8, *world.example_shape))
    losses = partial(study.adapter_loss, shared, model, denoise, params)
    mean = lambda adapter: jnp.mean(losses(adapter, data, tokens, negative, KEY))  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(mean))(study.initial_adapter(params))
    assert value > 0
    assert all(jnp.all(jnp.isfinite(x)) and jnp.any(x != 0) for x in jax.tree.leaves(gradients))


def test_an_unknown_sampler_is_refused(shared):
    config = catalogue.settings(catalogue.load("negative_offset_adapter"), "adapter, 4 steps", smoke=True)
    config.sampler = "other"
    with pytest.raises(ValueError, match="sampler must be one of adapter, unguided, guided, reference, got 'other'"):
        study.run(config, KEY, {})


def test_smoke(tmp_path):
    found = smoke("negative_offset_adapter", tmp_path)
    assert found["guided base, 25 steps"]["0"]["squared_error"] == 0
    assert found["base, 4 steps"]["0"]["gain"] == 0
