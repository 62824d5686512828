"""Reading captions from pictures: it learns, says its errors, reads only what there is to say, and judges samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import runs, tasks
from experiments.engine.errors import UserError
from experiments.tasks import captioning
from experiments.worlds import scenes
from tests.experiments.helpers import batch_of, small

TINY = {
    "data.train_size": 256,
    "data.test_size": 48,
    "model.channels": (8, 16),
    "model.features": 64,
    "model.dropout": 0.0,
}


def config(**overrides):
    fields = {**TINY, "evaluation.blurs": (0.0, 1.0), "batch_size": 64, **overrides}
    return small("captioning/scenes", **fields)


@pytest.fixture(scope="module")
def learnt():
    run = runs.prepare(
        tasks.resolve(config(ema_decay=0.9, **{"optimizer.schedule": "constant", "optimizer.learning_rate": 3e-3}))
    )
    update, state = jax.jit(run.task.update), jax.jit(run.task.init)(jax.random.key(0))
    losses = []
    for step in range(100):
        rows = (np.arange(64) + 64 * step) % 256
        state, metrics = update(state, batch_of(run.world, rows), jax.random.fold_in(jax.random.key(1), step))
        losses.append(float(metrics["loss"]))
    return run._replace(state=state), losses


def test_it_learns_and_says_its_errors(learnt):
    run, losses = learnt
    assert losses[-1] < 0.6 * losses[0]
    measured, pictures = run.task.evaluate(run.state, jax.random.key(0))
    names = {f"{who}error_blur_{blur}" for who in ("", "exact_") for blur in (0, 1)}
    assert measured.keys() == names | {f"{name}_{aspect}" for name in names for aspect in scenes.ASPECTS}
    assert all(0 <= value <= 1 for value in measured.values())
    # The exact detector makes no mistake on clean pictures and many on blurred ones.
    assert measured["exact_error_blur_0"] == 0 < measured["exact_error_blur_1"]
    # One of six colours, one of five grounds: better than chance.
    assert measured["error_blur_0_color"] < 0.6
    assert measured["error_blur_0_background"] < 0.6
    assert [title for title, _ in pictures["blurred"]] == ["blur 0", "blur 1"]


def test_only_captions_are_read(learnt):
    run, _ = learnt
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3)).astype(np.uint8)
    tokens = captioning._reader(run.config, run.world)(run.state.average, noise)
    scene = scenes.read(tokens)
    np.testing.assert_array_equal(scenes.caption(scene), tokens)
    assert scene.present.all()


def test_blur_of_a_point_is_a_gaussian():
    image = np.zeros((2, 31, 31, 1), np.float32)
    image[:, 15, 15] = 1
    smooth = np.asarray(captioning.blurred(jnp.asarray(image), jnp.array([0.0, 2.0])))
    np.testing.assert_allclose(smooth[0], image[0], atol=1e-6)
    apart = np.arange(31) - 15
    line = np.exp(-(apart**2) / 8)
    line /= line.sum()
    np.testing.assert_allclose(smooth[1, 8:23, 8:23, 0], np.outer(line, line)[8:23, 8:23], atol=1e-6)
    # A constant stays constant, at the border too.
    np.testing.assert_allclose(captioning.blurred(jnp.ones((1, 9, 5, 3)), jnp.array([3.0])), 1, rtol=1e-6)


def test_samples_are_held_against_captions_by_either():
    world = runs.prepare(tasks.resolve(config())).world
    rows = world.test.read(np.arange(24))
    given = config(cache_dir="unused")
    exact = captioning.Accuracy(given, world, lambda _: None)
    assert exact(rows["image"], rows["tokens"]) == [1.0] * (1 + len(scenes.ASPECTS))

    run = runs.prepare(tasks.resolve(config()))
    run = run._replace(state=jax.jit(run.task.init)(jax.random.key(0)))
    with given.unlocked():
        given.evaluation.reader = config()
    guessed = captioning.Accuracy(given, world, lambda _: run)(rows["image"], rows["tokens"])
    assert dict(zip(captioning.Accuracy.names(world), guessed, strict=True))["accuracy_count"] == 1
    assert guessed[0] < 0.5


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"corruption.blur": -1.0}, "config.corruption.blur must be >= 0, got -1"),
        ({"corruption.noise": -0.5}, "config.corruption.noise must be >= 0, got -0.5"),
        ({"evaluation.blurs": (0.0, -2.0)}, "config.evaluation.blurs must be >= 0"),
        ({"checkpoint.best": "error_blur_7", "evaluate_every": 4}, "metric in config.checkpoint.best"),
    ],
)
def test_mistakes_in_a_config_are_named(overrides, match):
    with pytest.raises(UserError, match=match):
        runs.prepare(tasks.resolve(config(**overrides)))


def test_a_world_without_captions_is_refused():
    given = config()
    given.data = small("classification/digits").data
    with pytest.raises(UserError, match="captioning needs captions, and 'digits' has none"):
        runs.prepare(tasks.resolve(given))
