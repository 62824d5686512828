"""Language: it learns, answers, writes; students learn from sequences of every source; devices do not show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import NamedSharding, PartitionSpec

from experiments import runs, tasks
from experiments.engine.errors import UserError
from experiments.tasks.language import task as language
from tests.experiments.helpers import batch_of, small
from tests.experiments.tasks import helpers

FACTS = {"data.subjects": 6, "data.relations": 2, "data.objects": 3, "data.background": 3}
TINY = {"model.width": 16, "model.depth": 1, "model.heads": 2, "evaluation.responses": 8}


def config(name="facts", **overrides):
    return small(f"language/{name}", **{**FACTS, **TINY, **overrides})


@functools.cache
def prepared(name="facts", **overrides):
    return helpers.prepare(config(name, **overrides))


@functools.cache
def distilling(**overrides):
    """A student of an untrained teacher like it, unless told otherwise."""
    teacher = {**FACTS, **TINY, "batch_size": 16, "steps": 4, "log_every": 4, "evaluate_every": 0}
    teacher |= {"checkpoint.every": 4, "mesh.data": 1}
    teacher = {f"teacher.{name}": value for name, value in teacher.items()}
    return prepared("facts_distillation", **{**teacher, **overrides})


def steps(run, num, state=None):
    state, seen = state or run.task.init(jax.random.key(0)), []
    for step in range(num):
        rows = (np.arange(16) + 16 * step) % len(run.world.train)
        state, metrics = run.task.update(state, batch_of(run.world, rows), jax.random.key(step))
        seen.append({name: float(value) for name, value in metrics.items()})
    return state, seen


def test_facts_are_learnt_and_asked_for():
    run = prepared(ema_decay=0.0, steps=150, **{"model.width": 32, "optimizer.learning_rate": 1e-2, "batch_size": 16})
    state, seen = steps(run, 150)
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    measured, shown = run.task.evaluate(state, jax.random.key(0))
    assert measured.keys() == {"test_loss", "perplexity", "bits_per_character", "answer_accuracy"}
    np.testing.assert_allclose(measured["perplexity"], np.exp(measured["test_loss"]), rtol=1e-6)
    # One of three objects of the right relation by chance.
    assert measured["answer_accuracy"] > 0.5
    assert len(shown["samples"]) == 16
    assert set(shown["samples"][0].split()) <= set(run.world.text.words)


def test_what_is_measured_by_hand():
    run = prepared()
    state = run.task.init(jax.random.key(0))
    tokens = run.world.test.examples["tokens"]
    logits = np.asarray(
        language.network(run.config, run.world).apply(state.average, tokens[:, :-1])["logits"], np.float64
    )
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(odds, tokens[:, 1:, None], axis=-1)[..., 0])[tokens[:, 1:] > 0]
    measured, _ = run.task.evaluate(state, jax.random.key(0))
    np.testing.assert_allclose(measured["test_loss"], nats.mean(), rtol=1e-5)
    characters = sum(len(run.world.text.decode(row)) for row in tokens)
    np.testing.assert_allclose(measured["bits_per_character"], nats.sum() / np.log(2) / characters, rtol=1e-5)


def test_padding_does_not_count():
    logits = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    tokens = np.array([[1, 2, 3, 0], [1, 4, 0, 0]])
    losses = jax.jit(language.next_token_losses, static_argnums=2)
    sums, counts = losses(logits, tokens)
    np.testing.assert_array_equal(counts, [2, 1])
    likely = scipy.special.log_softmax(logits, axis=-1)
    expected = [-likely[0, [0, 1], [2, 3]].sum(), -likely[1, 0, 4]]
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    later, fewer = losses(logits, tokens, 2)
    np.testing.assert_array_equal(fewer, [1, 0])
    np.testing.assert_allclose(later, [-likely[0, 1, 3], 0], rtol=1e-5)
    gradient = np.asarray(jax.jit(jax.grad(lambda logits: jnp.sum(losses(logits, tokens)[0])))(logits))
    assert not gradient[0, 2:].any()
    assert not gradient[1, 1:].any()
    assert gradient[0, :2].any()


def test_texts_depend_on_key_and_number_alone():
    run = prepared("shakespeare", **{"data.file": "", "data.length": 17, "evaluation.block": 3, "sampling.length": 9})
    state = run.task.init(jax.random.key(0))
    assert run.task.steps == 9
    many, few = (run.task.sample(state, jax.random.key(3), num, 9) for num in (7, 2))
    assert many[:2] == few
    assert len(set(many)) == 7
    assert all(len(text) <= 10 and text.startswith("\n") for text in many)
    assert run.task.sample(state, jax.random.key(3), 1, 5)[0] == many[0][: len(many[0]) - 4]


@pytest.mark.parametrize(
    ("fresh", "fraction", "stored", "others"),
    [
        ("student", 1.0, "teacher", {"teacher.model.width": 24, "evaluation.samples": 0}),
        ("teacher", 1.0, "data", {"teacher.model.width": 24, "evaluation.samples": 0}),
        ("student", 0.5, "teacher", {}),
        ("student", 0.0, "data", {"teacher.model.width": 24, "evaluation.samples": 0}),
    ],
)
def test_students_learn_from_sequences_of_every_source(fresh, fraction, stored, others):
    # One of them is the default, and shares the program of other tests.
    source = {"fresh": fresh, "fresh_fraction": fraction, "stored": stored} if others else {}
    run = distilling(**{f"distillation.{name}": value for name, value in source.items()}, **others)
    assert [run.config.distillation[name] for name in ("fresh", "fresh_fraction", "stored")] == [
        fresh,
        fraction,
        stored,
    ]
    first = run.task.init(jax.random.key(0))
    state, seen = steps(run, 12, first)
    assert np.mean([s["loss"] for s in seen[-3:]]) < 0.9 * seen[0]["loss"]
    for ours, theirs in zip(jax.tree.leaves(first.teacher), jax.tree.leaves(state.teacher), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert isinstance(state.stored, tuple) is (stored == "data" or fraction == 1)
    measured, _ = run.task.evaluate(state, jax.random.key(0))
    assert measured["teacher_divergence"] > 0


def test_stored_responses_are_the_teachers_and_go_on_from_the_prompts():
    run = distilling()
    state, again = (run.task.init(jax.random.key(seed)) for seed in (0, 0))
    stored, rows = np.asarray(state.stored), run.world.train.examples["tokens"]
    assert stored.shape == rows.shape
    np.testing.assert_array_equal(stored[:, :2], rows[:, :2])
    np.testing.assert_array_equal(stored, again.stored)
    ends = stored == run.world.text.end
    assert (ends.sum(1) <= 1).all()
    assert not stored[np.cumsum(ends, axis=1) - ends > 0].any()


def test_a_student_that_is_its_teacher_is_at_no_distance():
    run = distilling()
    state = run.task.init(jax.random.key(0))
    state = state._replace(params=state.teacher, average=state.teacher)
    _, (seen,) = steps(run, 1, state)
    assert seen["loss"] < 1e-6
    assert seen["gradient_norm"] < 1e-4
    assert abs(run.task.evaluate(state, jax.random.key(0))[0]["teacher_divergence"]) < 1e-6


@pytest.mark.parametrize("method", ["training", "distillation"])
def test_sharded_update_equals_one_device(method):
    run = prepared(**{"model.dropout": 0.2}) if method == "training" else distilling()
    state, update = run.task.init(jax.random.key(0)), run.task.update
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    batch, key = batch_of(run.world, np.arange(16)), jax.random.key(5)
    one_state, one = update(state, batch, key)
    many_state, many = update(
        jax.device_put(state, shard(PartitionSpec())), jax.device_put(batch, shard(PartitionSpec("data"))), key
    )
    for name in one:
        np.testing.assert_allclose(one[name], many[name], rtol=1e-3)
    for ours, theirs in zip(jax.tree.leaves(one_state.params), jax.tree.leaves(many_state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("method", ["training", "distillation"])
def test_runs_do_not_depend_on_the_devices(method, tmp_path):
    run = prepared() if method == "training" else distilling()
    alone = helpers.losses_on(run, tmp_path / "alone", {"data": 1})
    assert len(alone) == 4
    for name, mesh, parallel in (("fsdp", {"data": 2, "fsdp": 4}, "jit"), ("pmap", {"data": 8}, "pmap")):
        np.testing.assert_allclose(
            helpers.losses_on(run, tmp_path / name, mesh, parallel), alone, rtol=1e-4, err_msg=name
        )


def test_a_run_is_sampled_with_other_settings(tmp_path):
    given = tasks.resolve(config(steps=2, **{"checkpoint.every": 2}))
    runs.train(given, tmp_path)
    asked = {"prompt": "the noun0 of", "temperature": 0.0}
    run = runs.restore(tmp_path, evaluate=False, chosen=asked)
    one, other = run.task.sample(run.state, jax.random.key(0), 2, 3)
    assert one == other
    assert one.startswith("the noun0 of")
    with pytest.raises(UserError, match=r"has no config\.condition, so there is no guidance to choose"):
        runs.restore(tmp_path, evaluate=False, chosen={"guidance": 2.0})


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"method": "guessing"}, "unknown config.method 'guessing'; known: distillation, training"),
        ({"sampling.top_k": 1000}, "config.sampling.top_k must be in"),
        ({"sampling.temperature": -1.0}, "config.sampling.temperature must be >= 0"),
        ({"sampling.prompt": "unicorn"}, "config.sampling.prompt 'unicorn': .*not in the vocabulary"),
        ({"evaluation.block": 0}, "config.evaluation.block must be >= 1, got 0"),
        ({"model.width": 18}, "model.width must be a multiple of twice model.heads 2"),
        ({"checkpoint.best": "fid", "evaluate_every": 4}, "known: answer_accuracy, bits_per_character"),
    ],
)
def test_mistakes_in_a_config_are_named(overrides, match):
    with pytest.raises(UserError, match=match):
        prepared(**overrides)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"distillation.fresh": "oracle"}, "unknown config.distillation.fresh 'oracle'; known: student, teacher"),
        ({"distillation.stored": "student"}, "unknown config.distillation.stored 'student'; known: data, teacher"),
        ({"distillation.fresh_fraction": 1.5}, r"fresh_fraction must be in \[0, 1\], got 1.5"),
        ({"distillation.prompt_length": 0}, r"prompt_length must be in \[1, "),
        ({"distillation.divergence": "l2"}, "divergence"),
        ({"data.objects": 4}, "config.teacher has .* tokens that are not the"),
    ],
)
def test_mistakes_in_a_distillation_are_named(overrides, match):
    with pytest.raises(UserError, match=match):
        distilling(**overrides)


def test_texts_and_pictures_are_kept_apart():
    given = config()
    given.data = small("classification/digits").data
    with pytest.raises(UserError, match="language needs texts, and 'digits' has none"):
        runs.prepare(tasks.resolve(given))
    given = small("classification/digits")
    with given.unlocked():
        given.data = config().data
    with pytest.raises(UserError, match="classification needs pictures, and 'facts' has none"):
        runs.prepare(tasks.resolve(given))
