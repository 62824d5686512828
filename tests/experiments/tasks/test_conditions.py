"""Conditions of diffusion: what is dropped, how samples are guided, what they are told, mistakes in configs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import runs, tasks, worlds
from experiments.engine import configuration, randomness
from experiments.engine.errors import UserError
from experiments.tasks import common, conditions, diffusion
from experiments.worlds import scenes
from tests.experiments.helpers import batch_of, small
from tests.experiments.models.helpers import weights

TINY = {
    "data.train_size": 32,
    "data.test_size": 8,
    "evaluation.block": 4,
    "evaluation.samples": 6,
    "evaluation.steps": (2,),
    "evaluation.features": {},
    "model.width": 8,
    "model.depth": 1,
    "model.heads": 2,
    "model.patch": 8,
    "model.expansion": 1,
    "model.token_width": 4,
    "model.token_depth": 0,
}
LABELS = {"model.token_condition": False, "model.class_condition": True}


def config(**overrides):
    return tasks.resolve(small("diffusion/scenes_transformer", **{**TINY, **overrides}))


@functools.cache
def world():
    return worlds.build(config().data)


def settings(**overrides):
    return conditions.settings(config(**overrides), world())


@functools.cache
def ready(*overrides):
    """A run whose network has parameters none of which is 0."""
    run = runs.prepare(config(**dict(overrides)))
    params = weights(diffusion.network(run.config, run.world))
    return run._replace(state=common.TrainState(jnp.int32(0), params, (), params))


@pytest.mark.parametrize("kind", ["labels", "tokens"])
def test_conditions_are_dropped_at_their_rate_and_by_their_own_key(kind):
    told = {"labels": np.arange(4000) % 30, "tokens": world().train.examples["tokens"][np.arange(4000) % 32]}
    given = {kind: told[kind]}
    nothing = conditions.empty(world(), given)
    keys = randomness.per_example_keys(jax.random.key(0), jnp.arange(4000))
    out = np.asarray(conditions.drop(keys, given, nothing, 0.1)[kind]).reshape(4000, -1)
    silent, kept = (np.asarray(part[kind]).reshape(4000, -1) for part in (nothing, given))
    dropped = (out == silent).all(1)
    np.testing.assert_array_equal(out[~dropped], kept[~dropped])
    # 4000 coins of 0.1: outside 400 +- 5 standard deviations of 19 with probability below 1e-6.
    assert 305 < dropped.sum() < 495
    part = {kind: given[kind][7:9]}
    again = conditions.drop(keys[7:9], part, conditions.empty(world(), part), 0.1)[kind]
    np.testing.assert_array_equal(np.asarray(again).reshape(2, -1), out[7:9])
    assert conditions.drop(keys, given, nothing, 0.0) is given


def test_nothing_is_the_empty_prompt_and_no_class():
    nothing = conditions.empty(world(), {"tokens": np.ones((2, scenes.length(1)), np.int32)})
    np.testing.assert_array_equal(nothing["tokens"], [scenes.encode("", scenes.length(1))] * 2)
    np.testing.assert_array_equal(conditions.empty(world(), {"labels": np.arange(3)})["labels"], [-1] * 3)


def test_what_samples_are_told():
    test = world().test.examples["tokens"]
    told = conditions.of_samples(settings(), world())
    np.testing.assert_array_equal(told(6, 4)["tokens"], test[[6, 7, 0, 1]])
    one = conditions.of_samples(settings(**{"condition.prompt": "large red circle"}), world())(3, 2)
    assert [scenes.decode(line) for line in one["tokens"]] == ["large red circle"] * 2
    classes = conditions.of_samples(settings(**LABELS), world())
    np.testing.assert_array_equal(classes(28, 4)["labels"], [28, 29, 0, 1])


def test_guidance_by_hand():
    def denoise(x, sigma, tokens):
        return x * sigma[:, None] + tokens[:, :1]

    x, sigma = np.arange(6.0).reshape(3, 2), np.array([1.0, 2.0, 3.0])
    given, nothing = ({"tokens": np.full((3, 4), value)} for value in (5, 2))
    for scale in (0.0, 1.0, 3.0, np.array([0.0, 1.0, 3.0])):
        out = conditions.guided(denoise, given, nothing, scale)(x, sigma)
        np.testing.assert_allclose(out, x * sigma[:, None] + 2 + 3 * np.reshape(scale, (-1, 1)))
    np.testing.assert_allclose(conditions.guided(denoise, given, nothing, 1.0)(x, 2.0), 2 * x + 5)


@pytest.mark.parametrize("overrides", [(), tuple(LABELS.items())])
def test_guided_samples(overrides):
    run = ready(*overrides)
    draw = diffusion.sampler(run.config, run.world)
    told = conditions.of_samples(conditions.settings(run.config, run.world), run.world)(0, 4)
    params, key = run.state.average, jax.random.key(0)
    drawn = {scale: np.asarray(draw(params, key, told, jnp.float32(scale), 4, 2)) for scale in (0.0, 1.0, 3.0)}
    assert draw._cache_size() == 1
    assert np.abs(drawn[3.0] - drawn[1.0]).max() > 1e-3
    # Scale 1 is the network that is told, 0 the one that is not, both without guidance.
    plain = config(**dict(overrides))
    with plain.unlocked():
        del plain.condition
    unguided = diffusion.sampler(plain, run.world)
    for scale, given in ((1.0, told), (0.0, conditions.empty(run.world, told))):
        expected = np.asarray(unguided(params, key, given, jnp.float32(7), 4, 2))
        np.testing.assert_allclose(drawn[scale], expected, atol=1e-4 * np.abs(expected).max())


def test_samples_do_not_depend_on_how_many_are_drawn():
    run = ready()
    many, few = (run.task.sample(run.state, jax.random.key(0), num, 2) for num in (6, 3))
    assert many.shape == (6, 16, 16, 3)
    np.testing.assert_array_equal(many[:3], few)


def test_training_and_evaluation():
    run = runs.prepare(config(evaluate_every=2, **{"checkpoint.best": "accuracy_color_2"}))
    update, batch = jax.jit(run.task.update), batch_of(run.world, np.arange(16))
    state = jax.jit(run.task.init)(jax.random.key(0))
    # Rows as they come: an example does not know its place, only its index.
    turned = {name: value[::-1] for name, value in batch.items()}
    (after, metrics), (_, same) = (update(state, given, jax.random.key(1)) for given in (batch, turned))
    assert int(after.step) == 1
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-5)
    measured, pictures = run.task.evaluate(after, jax.random.key(0))
    accuracies = {"accuracy_2", *(f"accuracy_{aspect}_2" for aspect in scenes.ASPECTS)}
    assert measured.keys() == {"frechet_distance_2", "frechet_distance_floor", *accuracies}
    assert all(0 <= measured[name] <= measured["accuracy_color_2"] <= 1 for name in ("accuracy_2",))
    assert [title for title, _ in pictures["samples"]] == ["2 steps", "real"]


def test_conditional_denoiser_of_a_run():
    run = ready()
    denoise = jax.jit(diffusion.conditional_denoiser(run), static_argnames="read")
    x, sigma, tokens = (
        np.ones((2, 16, 16, 3), np.float32),
        np.full(2, 0.5, np.float32),
        world().test.examples["tokens"][:2],
    )
    out, readings = denoise(x, sigma, tokens, read=True)
    assert out.shape == x.shape
    assert readings.maps["block_0"].shape == (2, 2, 4, scenes.length(1))


def test_a_restored_run_takes_another_prompt_and_scale(tmp_path):
    given = config(steps=2, **{"checkpoint.every": 2})
    state = runs.train(given, tmp_path).state
    asked = {"prompt": "small red circle", "guidance": 3.0}
    run = runs.restore(tmp_path, evaluate=False, chosen=asked)
    assert run.config.condition.to_dict() == {"dropout": 0.1, **asked}
    drawn = run.task.sample(run.state, jax.random.key(0), 3, 1)
    told = {"tokens": np.stack([run.world.captions.encode("small red circle")] * 4)}
    expected = diffusion.sampler(given, run.world)(
        state.average, jax.random.fold_in(jax.random.key(0), 0), told, 3.0, 4, 1
    )
    np.testing.assert_array_equal(drawn, common.pixels(run.world, expected)[:3])


def test_a_run_without_a_condition_takes_none(tmp_path):
    configuration.save(tasks.resolve(small("diffusion/digits")), tmp_path)
    with pytest.raises(UserError, match=r"has no config\.condition, so there is no guidance to choose"):
        runs.restore(tmp_path, evaluate=False, chosen={"guidance": 2.0})


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"condition.dropout": 1.0}, r"config\.condition\.dropout must be in \[0, 1\), got 1\.0"),
        ({"condition.guidance": float("nan")}, r"config\.condition\.guidance must be finite"),
        ({"condition.prompt": "large purple circle"}, r"config\.condition\.prompt .*purple"),
        ({"condition.scale": 2.0}, r"config\.condition\.scale is no field .* dropout, guidance, prompt"),
        ({**LABELS, "condition.prompt": "red"}, r"config\.condition\.prompt needs"),
        ({"model.class_condition": True}, "choose one of class_condition and token_condition"),
        ({"model.token_condition": False}, r"config\.condition needs a network"),
        (
            {"data": {"name": "digits", "held_out": 0}},
            r"token_condition needs captions, and config\.data 'digits' has none",
        ),
        (
            {"evaluate_every": 1, "checkpoint.best": "accuracy_weight_2"},
            "accuracy_weight_2'; known: accuracy_2, accuracy_b",
        ),
    ],
)
def test_mistakes_in_a_config_are_named(overrides, says):
    with pytest.raises(UserError, match=says):
        runs.prepare(config(**overrides))
