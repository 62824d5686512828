"""Classification, diffusion and autoencoding: each learns something in a few steps and measures it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import runs, tasks
from experiments.engine.errors import UserError
from experiments.tasks import autoencoding, classification, common, diffusion
from tests.experiments.helpers import SMALL_MLP, batch_of, small


def trained(name, num, **overrides):
    run = runs.prepare(tasks.resolve(small(name, batch_size=64, **overrides)))
    state, losses = run.task.init(jax.random.key(0)), []
    for step in range(num):
        indices = (np.arange(64) + 64 * step) % len(run.world.train)
        state, metrics = run.task.update(state, batch_of(run.world, indices), jax.random.key(step))
        losses.append(float(metrics["loss"]))
    return run._replace(state=state), losses


def test_classification_learns():
    run, losses = trained("classification/digits", 80, ema_decay=0.9)
    assert losses[-1] < 0.5 * losses[0]
    measured, pictures = run.task.evaluate(run.state, jax.random.key(0))
    assert measured["test_accuracy"] > 0.6
    assert pictures == {}
    assert run.task.sample is None
    images = run.world.to_model(run.world.test.read(np.arange(7))["image"])
    assert classification.features(run)(images).shape == (7, 32)


def test_diffusion_learns_and_samples():
    run, losses = trained("diffusion/digits", 60, **{**SMALL_MLP, "model.width": 64})
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert run.task.steps == 18  # a denoiser shows noise in one
    images = run.task.sample(run.state, jax.random.key(0), 6, 4)
    assert images.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(images[:2], run.task.sample(run.state, jax.random.key(0), 2, 4))
    denoise = diffusion.denoiser(run)(None)
    x = np.ones((3, 8, 8, 1), np.float32)
    # Near the data a denoiser hardly moves.
    np.testing.assert_allclose(denoise(x, np.full(3, 1e-4, np.float32)), x, atol=1e-2)


def test_autoencoding_learns():
    run, losses = trained("autoencoding/digits", 120, ema_decay=0.9)
    assert losses[-1] < 0.5 * losses[0]
    measured, pictures = run.task.evaluate(run.state, jax.random.key(0))
    assert 0 < measured["test_error"] < losses[0]
    assert [title for title, _ in pictures["reconstructions"]] == ["reconstructed", "real"]
    coder = autoencoding.coder(run)
    images = run.world.to_model(run.world.test.read(np.arange(5))["image"])
    latent = coder.encode(images)
    assert latent.shape == (5, 16)
    assert coder.decode(latent).shape == images.shape


def test_the_judge_finds_real_examples_at_the_floor():
    config = tasks.resolve(
        small("diffusion/digits", **{**SMALL_MLP, "evaluation.features": {}, "evaluation.samples": 898})
    )
    run = runs.prepare(config)
    judge = common.Judge(config, run.world, lambda needed: None)
    real = np.asarray(
        run.world.to_model(run.world.train.read(np.random.default_rng(1).permutation(1797)[:898])["image"])
    )
    assert judge.distance(lambda num: real[:num]) < 2 * judge.floor
    assert judge.distance(lambda num: real[:num] + 0.5) > 10 * judge.floor


def test_random_mirroring():
    run = runs.prepare(tasks.resolve(small("classification/digits")))
    batch = batch_of(run.world, np.arange(256))
    keys = jax.random.split(jax.random.key(0), 256)
    plain = common.examples(run.world, batch, keys)
    mirrored = common.examples(run.world._replace(flip=True), batch, keys)
    same = np.array([np.array_equal(a, b) for a, b in zip(plain, mirrored, strict=True)])
    turned = np.array([np.array_equal(a[:, ::-1], b) for a, b in zip(plain, mirrored, strict=True)])
    assert np.all(same | turned)
    # 256 fair coins: outside [88, 168] with probability below 1e-6.
    assert 88 < turned.sum() < 168


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [("constant", 0, [1.0, 1.0, 1.0]), ("constant", 2, [0.0, 0.5, 1.0]), ("cosine", 0, [1.0, 0.75, 0.25])],
)
def test_learning_rate_schedules(schedule, warmup, expected):
    config = small("consistency/digits").optimizer
    with config.ignore_type():
        config.update({"name": "sgd", "learning_rate": 1.0, "schedule": schedule, "warmup_steps": warmup})
    optimizer = common.make_optimizer(config, 3)
    weight = jnp.float32(0)
    state, rates = optimizer.init(weight), []
    for _ in expected:
        update, state = optimizer.update(jnp.float32(1), state, weight)
        rates.append(-float(update))
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_gradients_are_clipped():
    config = small("consistency/digits").optimizer
    with config.ignore_type():
        config.update({"name": "sgd", "learning_rate": 1.0, "clip": 5.0})
    optimizer = common.make_optimizer(config, 3)
    update, _ = optimizer.update(jnp.array([30.0, 40.0]), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
    np.testing.assert_allclose(update, [-3.0, -4.0], rtol=1e-6)


BEST = {"evaluate_every": 1, "checkpoint.best": "fid"}


@pytest.mark.parametrize(
    ("name", "overrides", "match"),
    [
        ("diffusion/digits", {"evaluation.steps": (0,)}, "evaluation.steps"),
        ("diffusion/digits", {"diffusion.std": -1.0}, "std"),
        ("classification/digits", {"model.channels": ()}, "model.channels"),
        ("classification/digits", {"model.dropout": 1.0}, "model.dropout"),
        ("autoencoding/digits", {"model.latent": 0}, "model.latent"),
        ("diffusion/digits", {"evaluate_every": 1, "evaluation.split": "dev"}, "evaluation.split"),
        ("diffusion/digits", {"evaluate_every": 1, "evaluation.samples": 1}, "evaluation.samples"),
        ("diffusion/digits", {**BEST, "evaluation.features": {}}, "'fid'; known: frechet_distance_18, frechet_"),
        ("classification/digits", BEST, "'fid'; known: test_accuracy"),
        ("autoencoding/digits", BEST, "'fid'; known: test_error"),
    ],
)
def test_mistakes_in_a_config_are_named(name, overrides, match):
    with pytest.raises(UserError, match=match):
        runs.prepare(tasks.resolve(small(name, **overrides)))


def test_gradients_of_parts_are_those_of_the_whole():
    examples = (jnp.arange(12.0).reshape(12, 1), jax.random.split(jax.random.key(0), 12))

    def losses(weight, examples):
        x, keys = examples
        noise = jax.vmap(jax.random.normal)(keys)
        return (weight * x[:, 0] + noise) ** 2, {"noise": noise}

    whole, parts = (jax.jit(common.mean_and_gradients, static_argnums=(0, 3))(losses, 0.5, examples, n) for n in (1, 4))
    for ours, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert whole[0].keys() == {"loss", "noise"}
