"""Score distillation: every method moves the generator alone, the critic follows, the teacher stays; one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import common
from experiments import models, runs, tasks
from experiments.engine.errors import UserError
from experiments.tasks import diffusion, score_distillation
from experiments.tasks.score_distillation import inputs
from experiments.worlds import scenes
from tests.experiments.helpers import batch_of, small
from tests.experiments.tasks import helpers

WIDE = {"width": 128, "depth": 3}
LABELLED = ("entropic", "forgetting", "guided_variational")
METHODS = sorted(score_distillation.METHODS)


def config(method, *, labelled=None, **overrides):
    """The config of digits with a teacher of four steps."""
    given = small(
        "score_distillation/digits",
        **{f"teacher.{name}": value for name, value in (("steps", 4), ("batch_size", 16), ("evaluate_every", 0))},
        **{"teacher.checkpoint.every": 4, "teacher.log_every": 4, "method": method},
    )
    labelled = method in LABELLED if labelled is None else labelled
    given.teacher.model.update({"width": 16, "depth": 1, "class_condition": labelled})
    given.model = given.teacher.model.copy_and_resolve_references()
    if method in score_distillation.UNCONDITIONAL and labelled:
        with given.unlocked():
            given.condition, given.teacher.condition = common.condition(), common.condition()
    for path, value in overrides.items():
        node, *rest = [given, *path.split(".")]
        for part in rest[:-1]:
            node = node[part]
        with node.unlocked():
            node[rest[-1]] = value
    return given


class Ready(NamedTuple):
    run: runs.Run
    update: Callable
    first: Any  # its state


@functools.cache
def ready(method, **settings):
    """A task and its compiled update; two steps of the critic for one of the generator."""
    run = helpers.prepare(config(method, **{"distillation.critic_steps": 2, **settings}))
    return Ready(run, jax.jit(run.task.update), run.task.init(jax.random.key(0)))


def moved(before, after):
    return any(np.any(np.asarray(a) != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def shifted(tree, offset, factor=1.0):
    """Other parameters."""
    return jax.tree.map(lambda x: jnp.asarray(np.float32(factor) * np.asarray(x) + np.float32(offset)), tree)


@functools.cache
def batch():
    return batch_of(ready("identity").run.world, np.arange(16))


@pytest.mark.parametrize("method", METHODS)
def test_generator_and_critic_learn_and_the_teacher_stays(method):
    run, update, first = ready(method)
    state = first
    for step in range(3):
        state, metrics = update(state, batch(), jax.random.key(step))
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert set(metrics) == {"loss", "critic_loss", "gradient_norm"}
    assert moved(first.params, state.params)
    assert moved(first.average, state.average)
    assert moved(first.critic, state.critic)
    assert not moved(first.teacher, state.teacher)
    images = run.task.sample(state, jax.random.key(0), 5, 1)
    assert images.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(images[:2], run.task.sample(state, jax.random.key(0), 2, 1))
    # Another teacher, or another guidance scale, is other data for the same program.
    programs = update._cache_size()
    update(
        state._replace(teacher=shifted(state.teacher, 0, 1.1), guidance=jnp.float32(3.0)), batch(), jax.random.key(9)
    )
    assert update._cache_size() == programs


@pytest.mark.parametrize("method", ["distribution_matching", "identity"])
def test_who_learns_from_whom(method):
    """The critic from the generator, the generator from all three, the teacher from none."""
    _, update, first = ready(method)
    key = jax.random.key(0)
    # Apart from the start, where the three are one and there is nothing to learn for the generator.
    first = first._replace(teacher=shifted(first.teacher, 0.05))
    base, _ = update(first, batch(), key)

    def step(tree):  # what an update adds to it
        return lambda state, name: jax.tree.map(
            lambda after, before: np.asarray(after) - np.asarray(before), getattr(state, name), getattr(tree, name)
        )

    expected = {"params": {"params", "critic"}, "critic": {"params", "critic"}, "teacher": {"params"}}
    for perturbed, depends in expected.items():
        other = first._replace(**{perturbed: shifted(getattr(first, perturbed), 0.03, 1.2)})
        after, _ = update(other, batch(), key)
        assert not moved(other.teacher, after.teacher)
        moves = {name for name in ("params", "critic") if moved(step(first)(base, name), step(other)(after, name))}
        assert moves == depends


def test_frozen_passes_keep_nothing():
    """An update needs no more memory than its passes need alone, one after the other."""
    size = {f"{part}.{name}": value for part in ("teacher.model", "model") for name, value in WIDE.items()}
    run = helpers.prepare(config("distribution_matching", **size, batch_size=512))
    state = jax.eval_shape(run.task.init, jax.random.key(0))
    model = models.preconditioned(diffusion.network(run.config, run.world), sigma_data=0.5)
    x, sigma = np.zeros((512, 8, 8, 1), np.float32), np.ones(512, np.float32)

    def forward(params, x, sigma):
        return jnp.sum(model(params, x, sigma) ** 2)

    def scratch(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    learning, frozen = (scratch(f, state.params, x, sigma) for f in (jax.grad(forward), forward))
    assert learning > 2 * frozen  # else this shows nothing
    rows = batch_of(run.world, np.arange(512))
    update = scratch(run.task.update, state, rows, jax.random.key(0))
    # The critic's and the generator's forward and backward passes, one pass of each frozen network, the draws.
    assert update <= 1.15 * (2 * learning + 2 * frozen + 4 * x.nbytes)


@pytest.mark.parametrize("method", ["variational", "distribution_matching", "identity"])
def test_at_its_own_distribution_a_generator_gets_no_gradient(method):
    """Where critic and teacher agree, variational gradients are 0; the identity loss is too."""
    _, update, first = ready(method)
    # What the critic learns in a step does not depend on the teacher: here it becomes this one.
    learnt, away = update(first._replace(teacher=shifted(first.teacher, 0.05)), batch(), jax.random.key(0))
    assert float(away["gradient_norm"]) > 1e-3
    _, metrics = update(first._replace(teacher=learnt.critic), batch(), jax.random.key(0))
    assert float(metrics["gradient_norm"]) < 1e-6


@pytest.mark.parametrize("method", ["distribution_matching", "forgetting"])
def test_sharded_update_equals_one_device(method):
    run, update, state = ready(method)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    key = jax.random.key(5)
    one_state, one = update(state, batch(), key)
    many_state, many = jax.jit(run.task.update)(
        jax.device_put(state, shard(PartitionSpec())), jax.device_put(batch(), shard(PartitionSpec("data"))), key
    )
    for name in one:
        np.testing.assert_allclose(one[name], many[name], rtol=1e-3)
    for ours, theirs in zip(jax.tree.leaves(one_state.critic), jax.tree.leaves(many_state.critic), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_accumulated_parts_equal_the_whole_batch():
    updated = []
    for parts in ({}, {"accumulate": 4}):
        _, update, state = ready("identity", **parts)
        # Teacher and critic apart, so that there is a gradient.
        state = state._replace(teacher=shifted(state.teacher, 0.1))
        updated.append(update(state, batch(), jax.random.key(0))[1])
    for name in updated[0]:
        np.testing.assert_allclose(updated[0][name], updated[1][name], rtol=1e-4)


def test_backtracking_goes_from_the_generator_back_to_the_teacher(tmp_path):
    settings = {"checkpoints": 2, "record_steps": 3, "interval": 2}
    given = config("distribution_matching", **{f"backtracking.{name}": v for name, v in settings.items()})
    given.cache_dir = str(tmp_path)
    run = runs.prepare(tasks.resolve(given))
    state = run.task.init(jax.random.key(0))
    teacher = runs.obtain(given.teacher, tmp_path).state.average
    path = state.teacher
    for stacked, last in zip(jax.tree.leaves(path), jax.tree.leaves(teacher), strict=True):
        assert stacked.shape == (3, *last.shape)
        np.testing.assert_array_equal(stacked[-1], last)
    # The critic starts from the most degraded teacher, which is farther from the teacher than the one between.
    assert not moved(state.critic, jax.tree.map(lambda x: np.asarray(x)[0], path))

    def far(index):
        gaps = [np.sum((x[index] - x[-1]) ** 2) for x in map(np.asarray, jax.tree.leaves(path))]
        return float(sum(gaps))

    assert far(0) > far(1) > 0
    state, metrics = run.task.update(state, batch(), jax.random.key(0))
    assert np.isfinite(float(metrics["loss"]))
    assert not moved(path, state.teacher)


def captioned():
    """A small transformer that attends to words as teacher of itself, judged by a small reader of captions."""
    tiny = {"width": 8, "depth": 1, "heads": 2, "patch": 8, "expansion": 1, "token_width": 4, "token_depth": 0}
    data = {"data.train_size": 32, "data.test_size": 8}
    short = {**data, "evaluation.block": 4, "evaluation.samples": 6, "evaluation.features": {}, "checkpoint.every": 4}
    teacher = small("diffusion/scenes_transformer", **short, **{f"model.{name}": value for name, value in tiny.items()})
    reader = small("captioning/scenes", **data, **{"checkpoint.every": 4, "model.channels": (4,), "model.features": 8})
    fields = {"teacher": teacher, "model": teacher.model, "evaluation.reader": reader}
    return small("score_distillation/scenes", **short, evaluate_every=4, **fields)


def test_captions_condition_generator_critic_and_teacher():
    run = helpers.prepare(captioned())
    update, batch = jax.jit(run.task.update), batch_of(run.world, np.arange(16))
    state = jax.jit(run.task.init)(jax.random.key(0))
    moves = []
    for tokens in (batch["tokens"], batch["tokens"][::-1]):
        after, metrics = update(state, {**batch, "tokens": tokens}, jax.random.key(1))
        assert all(np.isfinite(float(value)) for value in metrics.values())
        moves.append(after)
    assert moved(moves[0].critic, moves[1].critic)
    for name in ("params", "critic"):  # the parts that read words learn in both
        words = [leaf for path, leaf in jax.tree.leaves_with_path(getattr(moves[0], name)) if "token" in str(path)]
        before = [leaf for path, leaf in jax.tree.leaves_with_path(getattr(state, name)) if "token" in str(path)]
        assert words
        assert moved(before, words)
    measured, _ = run.task.evaluate(moves[0], jax.random.key(0))
    accuracies = {"accuracy_1", *(f"accuracy_{aspect}_1" for aspect in scenes.ASPECTS)}
    assert measured.keys() == {"frechet_distance_1", diffusion.FLOOR, *accuracies}
    assert measured["accuracy_count_1"] == 1  # the reader of captions sees one object in everything


def test_labels_of_a_forgotten_class_have_their_share():
    """At 6 standard errors of 4,000 draws: wrong with probability below 1e-7."""
    given = common.score_distillation("forgetting", small("diffusion/digits"))
    given.forgetting.update({"label": 3, "override": -1, "share": 0.25})

    class World:
        num_classes = 10

    keys = jax.random.split(jax.random.key(0), 4000)
    labels = inputs.draw_labels(given, World, keys)
    counts = np.bincount(np.asarray(labels), minlength=10) / 4000
    expected = np.full(10, 0.75 / 9)
    expected[3] = 0.25
    assert np.all(np.abs(counts - expected) <= 6 * np.sqrt(expected * (1 - expected) / 4000))
    told = np.asarray(inputs.teacher_conditions(given, World, {"labels": labels}, keys)["labels"])
    np.testing.assert_array_equal(told[labels != 3], labels[labels != 3])
    assert set(told[np.asarray(labels) == 3]) == set(range(10)) - {3}


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("magic", {}, "config.method 'magic'"),
        ("variational", {"distillation.sigma_init": 100.0}, "sigma_init must lie in the levels"),
        ("variational", {"distillation.lowest_level": 0.99}, "lowest_level < highest_level"),
        ("variational", {"distillation.critic_steps": 0}, "critic_steps must be >= 1"),
        ("variational", {"backtracking.checkpoints": -1}, "backtracking.checkpoints must be >= 0"),
        ("variational", {"backtracking.interval": 0}, "backtracking.interval must be >= 1"),
        ("variational", {"model.width": 32}, "config.model must be that of config.teacher"),
        ("entropic", {"labelled": False}, "needs a conditional network"),
        ("forgetting", {"labelled": False}, "needs config.model.class_condition"),
        ("forgetting", {"forgetting.override": 0}, "another class than the forgotten one"),
        ("forgetting", {"forgetting.label": 10}, r"forgetting.label must be in \[0, 9\]"),
        ("guided_variational", {"teacher.condition.dropout": 0.0}, "learnt no prediction without a condition"),
    ],
)
def test_mistakes_in_a_config_are_named(method, settings, says):
    with pytest.raises(UserError, match=says):
        helpers.prepare(config(method, **settings))


def test_more_than_one_step_is_refused():
    run, _, state = ready("variational")
    with pytest.raises(UserError, match="a one-step generator draws in 1 step, got 2"):
        run.task.sample(state, jax.random.key(0), 2, 2)
