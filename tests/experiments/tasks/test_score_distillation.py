"""Score distillation: every method moves the generator alone, the critic follows, the teacher stays; one program."""

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

LABELLED = ("entropic", "forgetting", "guided_variational")
METHODS = sorted(score_distillation.METHODS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def config(cache, method, *, labelled=None, **overrides):
    """The config of digits with a teacher of four steps."""
    given = small(
        "score_distillation/digits",
        **{f"teacher.{name}": value for name, value in (("steps", 4), ("batch_size", 16), ("evaluate_every", 0))},
        **{"teacher.checkpoint.every": 4, "teacher.log_every": 4, "cache_dir": str(cache), "method": method},
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


def prepared(cache, method, **settings):
    return runs.prepare(tasks.resolve(config(cache, method, **settings)))


def moved(before, after):
    return any(bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_generator_and_critic_learn_and_the_teacher_stays(cache, method):
    run = prepared(cache, method)
    update = jax.jit(run.task.update)
    first = state = jax.jit(run.task.init)(jax.random.key(0))
    for step in range(3):
        state, metrics = update(state, batch_of(run.world, np.arange(16)), jax.random.key(step))
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
    louder = state._replace(teacher=jax.tree.map(lambda x: 1.1 * x, state.teacher), guidance=jnp.float32(3.0))
    update(louder, batch_of(run.world, np.arange(16)), jax.random.key(9))
    assert update._cache_size() == 1


@pytest.mark.parametrize("method", ["distribution_matching", "identity"])
def test_who_learns_from_whom(cache, method):
    """The critic from the generator, the generator from all three, the teacher from none."""
    run = prepared(cache, method)
    update, batch, key = jax.jit(run.task.update), batch_of(run.world, np.arange(16)), jax.random.key(0)
    first = run.task.init(jax.random.key(0))
    # Apart from the start, where the three are one and there is nothing to learn for the generator.
    first = first._replace(teacher=jax.tree.map(lambda x: x + 0.05, first.teacher))
    base, _ = update(first, batch, key)

    def step(tree):  # what an update adds to it
        return lambda state, name: jax.tree.map(jnp.subtract, getattr(state, name), getattr(tree, name))

    expected = {"params": {"params", "critic"}, "critic": {"params", "critic"}, "teacher": {"params"}}
    for perturbed, depends in expected.items():
        other = first._replace(**{perturbed: jax.tree.map(lambda x: x * 1.2 + 0.03, getattr(first, perturbed))})
        after, _ = update(other, batch, key)
        assert not moved(other.teacher, after.teacher)
        moves = {name for name in ("params", "critic") if moved(step(first)(base, name), step(other)(after, name))}
        assert moves == depends


def test_frozen_passes_keep_nothing(cache):
    """An update needs no more memory than its passes need alone, one after the other."""
    size = {
        "teacher.model.width": 128,
        "teacher.model.depth": 6,
        "model.width": 128,
        "model.depth": 6,
        "batch_size": 512,
    }
    run = prepared(cache, "distribution_matching", **size)
    params = run.task.init(jax.random.key(0)).params
    model = models.preconditioned(diffusion.network(run.config, run.world), sigma_data=0.5)
    x, sigma = jnp.zeros((512, 8, 8, 1)), jnp.ones(512)

    def forward(params, x, sigma):
        return jnp.sum(model(params, x, sigma) ** 2)

    def scratch(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    learning, frozen = (scratch(f, params, x, sigma) for f in (jax.grad(forward), forward))
    assert learning > 2 * frozen  # else this shows nothing
    state = jax.eval_shape(run.task.init, jax.random.key(0))
    update = scratch(run.task.update, state, batch_of(run.world, np.arange(512)), jax.random.key(0))
    # The critic's and the generator's forward and backward passes, one pass of each frozen network, the draws.
    assert update <= 1.15 * (2 * learning + 2 * frozen + 4 * x.nbytes)


def test_at_its_own_distribution_a_generator_gets_no_gradient(cache):
    """Where critic and teacher agree, variational gradients are 0; the identity loss is too."""
    for method in ("variational", "distribution_matching", "identity"):
        run = prepared(cache, method, **{"critic_optimizer.learning_rate": 1e-30})
        state = run.task.init(jax.random.key(0))
        state, metrics = jax.jit(run.task.update)(state, batch_of(run.world, np.arange(16)), jax.random.key(0))
        assert float(metrics["gradient_norm"]) < 1e-6


@pytest.mark.parametrize("method", ["distribution_matching", "forgetting"])
def test_sharded_update_equals_one_device(cache, method):
    run = prepared(cache, method, **{"distillation.critic_steps": 2})
    state, update = run.task.init(jax.random.key(0)), jax.jit(run.task.update)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    batch, key = batch_of(run.world, np.arange(16)), jax.random.key(5)
    one_state, one = update(state, batch, key)
    many_state, many = update(
        jax.device_put(state, shard(PartitionSpec())), jax.device_put(batch, shard(PartitionSpec("data"))), key
    )
    for name in one:
        np.testing.assert_allclose(one[name], many[name], rtol=1e-3)
    for ours, theirs in zip(jax.tree.leaves(one_state.critic), jax.tree.leaves(many_state.critic), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_accumulated_parts_equal_the_whole_batch(cache):
    updated = []
    for parts in (1, 4):
        run = prepared(cache, "identity", accumulate=parts)
        state = run.task.init(jax.random.key(0))
        # Teacher and critic apart, so that there is a gradient.
        state = state._replace(teacher=jax.tree.map(lambda x: x + 0.1, state.teacher))
        updated.append(jax.jit(run.task.update)(state, batch_of(run.world, np.arange(16)), jax.random.key(0))[1])
    for name in updated[0]:
        np.testing.assert_allclose(updated[0][name], updated[1][name], rtol=1e-4)


def test_backtracking_goes_from_the_generator_back_to_the_teacher(cache):
    settings = {"checkpoints": 2, "record_steps": 3, "interval": 2}
    run = prepared(cache, "distribution_matching", **{f"backtracking.{name}": v for name, v in settings.items()})
    state = jax.jit(run.task.init)(jax.random.key(0))
    teacher = prepared(cache, "distribution_matching").task.init(jax.random.key(0)).teacher
    path = state.teacher
    for stacked, last in zip(jax.tree.leaves(path), jax.tree.leaves(teacher), strict=True):
        assert stacked.shape == (3, *last.shape)
        np.testing.assert_array_equal(stacked[-1], last)
    # The critic starts from the most degraded teacher, which is farther from the teacher than the one between.
    assert not moved(state.critic, jax.tree.map(lambda x: x[0], path))

    def far(index):
        gaps = jax.tree.map(lambda x: jnp.sum((x[index] - x[-1]) ** 2), path)
        return float(sum(jax.tree.leaves(gaps)))

    assert far(0) > far(1) > 0
    state, metrics = jax.jit(run.task.update)(state, batch_of(run.world, np.arange(16)), jax.random.key(0))
    assert np.isfinite(float(metrics["loss"]))
    assert not moved(path, state.teacher)


def captioned(cache):
    """A small transformer that attends to words as teacher of itself, judged by a small reader of captions."""
    tiny = {"width": 8, "depth": 1, "heads": 2, "patch": 8, "expansion": 1, "token_width": 4, "token_depth": 0}
    data = {"data.train_size": 32, "data.test_size": 8}
    short = {**data, "evaluation.block": 4, "evaluation.samples": 6, "evaluation.features": {}, "checkpoint.every": 4}
    teacher = small("diffusion/scenes_transformer", **short, **{f"model.{name}": value for name, value in tiny.items()})
    reader = small("captioning/scenes", **data, **{"checkpoint.every": 4, "model.channels": (4,), "model.features": 8})
    fields = {"teacher": teacher, "model": teacher.model, "evaluation.reader": reader, "cache_dir": str(cache)}
    return tasks.resolve(small("score_distillation/scenes", **short, evaluate_every=4, **fields))


def test_captions_condition_generator_critic_and_teacher(cache):
    run = runs.prepare(captioned(cache))
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
def test_mistakes_in_a_config_are_named(cache, method, settings, says):
    with pytest.raises(UserError, match=says):
        prepared(cache, method, **settings)


def test_more_than_one_step_is_refused(cache):
    run = prepared(cache, "variational")
    with pytest.raises(UserError, match="a one-step generator draws in 1 step, got 2"):
        run.task.sample(run.task.init(jax.random.key(0)), jax.random.key(0), 2, 2)
