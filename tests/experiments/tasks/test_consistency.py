"""The consistency task: methods as data, the same masks in both passes, couplings, and every method on small runs."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments import runs, tasks
from experiments.engine.errors import UserError
from experiments.tasks.common import TrainState
from experiments.tasks.consistency.methods import METHODS
from experiments.tasks.consistency.task import _in_groups
from mlfuncs import transport
from tests.experiments.helpers import SMALL_MLP, batch_of, small
from tests.experiments.tasks import helpers


def digits(method="improved", **overrides):
    defaults = {**SMALL_MLP, "method": method, "steps": 600, "ema_decay": 0.75}
    return tasks.resolve(small("consistency/digits", **{**defaults, **overrides}))


class Ready(NamedTuple):
    run: runs.Run
    update: Callable
    first: TrainState

    def train(self, num):
        """State and losses after some updates."""
        state, losses = self.first, []
        for step in range(num):
            batch = batch_of(self.run.world, np.arange(self.run.config.batch_size) + step)
            state, metrics = self.update(state, batch, jax.random.fold_in(jax.random.key(1), step))
            losses.append(float(metrics["loss"]))
        return state, losses


def ready(config, prepare=helpers.prepare):
    run = prepare(config)
    return Ready(run, jax.jit(run.task.update), run.task.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`prepared(method)`: its task, compiled once; for distillation with all that it needs, trained for a few steps."""
    few = {"steps": 3, "evaluate_every": 0, "mesh.data": 1}
    overrides = {
        "evaluate_every": 4,
        "model.dropout": 0.3,
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        **{f"teacher.{field}": value for field, value in {**few, **SMALL_MLP}.items()},
        **{f"evaluation.features.{field}": value for field, value in few.items()},
    }
    ways = {"distillation": runs.prepare}
    return functools.cache(lambda method: ready(digits(method, **overrides), ways.get(method, helpers.prepare)))


def test_published_settings_of_the_methods():
    training, improved, latent = (METHODS[name] for name in ("training", "improved", "latent_improved"))
    assert training["consistency"]["initial_steps"] == 2
    assert training["consistency"]["final_steps"] == 150
    assert training["consistency"]["distance"] == "mean_squared"
    assert training["consistency"]["weight"] == "unit_weight"
    assert training["consistency"]["teacher"] == "average"
    assert training["model"]["fourier_scale"] == 16.0
    assert improved["consistency"]["initial_steps"] == 10
    assert improved["consistency"]["final_steps"] == 1280
    assert (improved["consistency"]["proposal_mean"], improved["consistency"]["proposal_std"]) == (-1.1, 2.0)
    assert improved["consistency"]["teacher"] == "student"
    assert improved["model"] == {"fourier_scale": 0.02, "dropout": 0.3, "norm": "scaling"}
    assert latent["consistency"]["loss"] == "robust_consistency_loss"
    assert latent["consistency"]["coupling"] == "minibatch_coupling"
    assert latent["consistency"]["robust_scale"] == "adaptive"
    assert latent["model"]["norm"] == "non_scaling"


def test_a_given_field_wins_over_the_method():
    given = digits("improved", **{"consistency.distance": "cauchy", "consistency.final_steps": 20})
    assert given.consistency.distance == "cauchy"
    assert given.consistency.final_steps == 20
    assert given.consistency.weight == "inverse_gap_weight"
    assert given.to_dict() == tasks.resolve(given).to_dict()


def test_methods_tuned_in_the_config_win_over_published_settings():
    assert digits("improved").consistency.final_steps == 160
    assert digits("training").consistency.final_steps == 150


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_samples_and_evaluates(method, prepared):
    task = prepared(method).run.task
    state, losses = prepared(method).train(4)
    assert np.all(np.isfinite(losses))
    assert int(state.step) == 4
    measured, pictures = task.evaluate(state, jax.random.key(2))
    assert measured.keys() == {"frechet_distance_1", "frechet_distance_2", "frechet_distance_floor"}
    assert all(np.isfinite(value) and value > 0 for value in measured.values())
    assert [title for title, _ in pictures["samples"]] == ["1 step", "2 steps", "real"]
    images = task.sample(state, jax.random.key(3), 5, 3)
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8


def leaves(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def test_only_the_original_method_keeps_a_teacher(prepared):
    original = prepared("training")
    state, _ = original.train(1)
    decay = 0.9 ** (2 / 1)  # N = 2 at the first step
    for teacher, params, before in leaves(state.teacher, state.params, original.first.teacher):
        np.testing.assert_allclose(teacher, decay * before + (1 - decay) * params, atol=1e-6)
    assert prepared("improved").first.teacher == ()


def test_moving_average_of_the_parameters(prepared):
    state, _ = prepared("improved").train(1)
    for average, params, before in leaves(state.average, state.params, prepared("improved").first.params):
        np.testing.assert_allclose(average, 0.75 * before + 0.25 * params, atol=1e-6)


def test_student_and_teacher_share_their_dropout_masks():
    """Between levels that nearly agree the loss is nearly 0, unless the two passes drop different units."""
    overrides = {
        "consistency.weight": "unit_weight",
        "consistency.initial_steps": 20_000,
        "consistency.final_steps": 20_000,
        "consistency.proposal": "uniform_level_probabilities",
        "consistency.distance": "mean_squared",
    }
    dropping, whole = (ready(digits("improved", **{**overrides, "model.dropout": rate})) for rate in (0.5, 0.0))
    # The last layer starts at zero, where dropout has no effect: give every parameter a value.
    random = lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape)  # noqa: E731
    state = whole.first._replace(params=jax.tree.map(random, whole.first.params))
    batch = batch_of(whole.run.world, np.arange(whole.run.config.batch_size))
    gradients = []
    for task in (dropping, whole):
        _, metrics = task.update(state, batch, jax.random.key(4))
        assert float(metrics["loss"]) < 1e-3
        gradients.append(float(metrics["gradient_norm"]))
    # Units are dropped: else the loss would say nothing.
    assert abs(gradients[0] / gradients[1] - 1) > 0.05


def test_the_curriculum_does_not_recompile():
    task, levels = ready(digits("improved", steps=100, **{"consistency.final_steps": 40})), []
    batch = batch_of(task.run.world, np.arange(16))
    for step in (0, 40, 80):
        _, metrics = task.update(task.first._replace(step=jnp.int32(step)), batch, jax.random.key(step))
        levels.append(int(metrics["levels"]))
    assert levels == [11, 21, 41]
    assert task.update._cache_size() == 1


@pytest.mark.parametrize("method", ["training", "improved", "latent_improved"])
def test_sharded_update_equals_one_device(method, prepared):
    task = prepared(method)
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, key, state = batch_of(task.run.world, np.arange(16)), jax.random.key(5), task.first
    shard = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    one_state, one = task.update(state, batch, key)
    many_state, many = jax.jit(task.run.task.update)(
        jax.device_put(state, shard(PartitionSpec())), jax.device_put(batch, shard(PartitionSpec("data"))), key
    )
    np.testing.assert_allclose(one["loss"], many["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["gradient_norm"], many["gradient_norm"], rtol=1e-4)
    for ours, theirs in leaves(one_state.average, many_state.average):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_coupling_stays_inside_its_group():
    data, noise = np.random.default_rng(0).standard_normal((2, 12, 3)).astype(np.float32)
    couple = jax.jit(transport.minibatch_coupling)
    pair = lambda key, x, z: couple(x, z)  # noqa: E731
    keys = jax.random.split(jax.random.key(1), 12)
    grouped = np.asarray(jax.jit(_in_groups(pair, 4))(keys, data, noise))
    for start in (0, 4, 8):
        part = slice(start, start + 4)
        np.testing.assert_allclose(grouped[part], noise[part][couple(data[part], noise[part])])
    assert np.sum((data - grouped) ** 2) < np.sum((data - noise) ** 2)
    np.testing.assert_array_equal(_in_groups(None, 4)(keys, data, noise), noise)


def test_captions_are_refused():
    given = small("diffusion/scenes_transformer", **{"data.train_size": 16, "data.test_size": 2})
    config = digits("improved")
    config.data, config.model = given.data, given.model
    with pytest.raises(UserError, match="consistency models are told classes, not captions"):
        ready(config)


def test_class_conditional_training_and_sampling():
    task = ready(digits("improved", **{"model.class_condition": True}))
    state, losses = task.train(2)
    assert np.all(np.isfinite(losses))
    assert task.run.task.sample(state, jax.random.key(0), 3, 1).shape == (3, 8, 8, 1)


def test_a_sample_does_not_depend_on_how_many_are_drawn(prepared):
    state, _ = prepared("improved").train(3)
    few, many = (prepared("improved").run.task.sample(state, jax.random.key(7), num, 2) for num in (5, 37))
    np.testing.assert_array_equal(few, many[:5])


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"method": "magic"}, "easy_tuning, improved"),
        ({"consistency.distance": "l7"}, "config.consistency.distance 'l7'; known: cauchy"),
        ({"consistency.teacher": "me"}, "config.consistency.teacher"),
        ({"consistency.solver": "rk4"}, "config.consistency.solver"),
        ({"consistency.coupling_group": 5}, "coupling_group must divide"),
        ({"consistency.sigma_min": -1.0}, "sigma_min"),
        ({"steps": 3, "consistency.final_steps": 1280}, "total_steps"),
        ({"evaluation.levels": ()}, "evaluation.levels"),
        ({"evaluation.levels": ((1.0, 80.0),)}, "evaluation.levels"),
        ({"evaluation.levels": (80.0,)}, "evaluation.levels"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"evaluation.block": 0}, "evaluation.block"),
        ({"model.width": -1}, "model.width"),
        ({"model.name": "rasnet"}, "model.name must be one of"),
        ({"model.depht": 2}, "model.depht is no field"),
        ({"optimizer.name": "sdg"}, "config.optimizer.name 'sdg'"),
        ({"optimizer.learning_rate": 0.0}, "learning_rate"),
        ({"optimizer.schedule": "wavy"}, "optimizer.schedule"),
        ({"data.name": "digitz"}, "digits"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_mistakes_in_a_config_are_named(overrides, match):
    with pytest.raises(UserError, match=match):
        runs.prepare(digits(**overrides))


def test_a_missing_field_is_named():
    config = small("consistency/digits")
    del config.consistency["distance"]
    with pytest.raises(UserError, match=r"config.consistency.distance is missing"):
        tasks.resolve(config)
    del config["task"]
    with pytest.raises(UserError, match=r"config\.task"):
        tasks.resolve(config)


def test_a_field_without_a_value_is_named():
    config = small("consistency/digits", batch_size=None)
    with pytest.raises(UserError, match="batch_size has no value"):
        tasks.resolve(config)


def test_a_teacher_of_other_data_is_refused(tmp_path):
    config = digits("distillation", cache_dir=str(tmp_path))
    stranger = runs.prepare(digits("improved"))
    with pytest.raises(UserError, match=r"config.teacher was trained on examples of shape \(4, 4, 1\)"):
        tasks.build(
            config,
            stranger.world,
            lambda needed: stranger._replace(world=stranger.world._replace(example_shape=(4, 4, 1))),
        )
