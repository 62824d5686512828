"""The distillation task: a student learns from a frozen teacher, whatever the devices and wherever the teacher lies."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import runs, tasks
from experiments.engine.errors import UserError
from experiments.tasks import classification
from experiments.tasks.distillation import task as distillation
from tests.experiments.helpers import batch_of, small
from tests.experiments.tasks.helpers import losses_on

BATCH = 64
WHOLE = "0.1 * cross_entropy + 0.9 * kullback_leibler(temperature=4) + 0.8 * sinkhorn + 2 * correlation"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def config(cache, **overrides):
    short = {"teacher.steps": 80, "teacher.log_every": 80, "teacher.checkpoint.every": 80, "teacher.evaluate_every": 0}
    teacher = {"teacher.model.channels": (8,), "teacher.ema_decay": 0.9, "teacher.batch_size": BATCH}
    teacher["teacher.optimizer.learning_rate"] = 5e-3
    return small("distillation/digits", batch_size=BATCH, cache_dir=str(cache), **{**short, **teacher, **overrides})


@functools.cache
def prepared(cache, **overrides):
    return runs.prepare(tasks.resolve(config(cache, **overrides)))


def test_a_student_learns_and_its_teacher_stays_as_it_is(cache):
    run = prepared(cache, steps=100)
    state, losses = run.task.init(jax.random.key(0)), []
    before = jax.device_get(state.teacher)
    for step in range(100):
        rows = (np.arange(BATCH) + BATCH * step) % len(run.world.train)
        state, metrics = run.task.update(state, batch_of(run.world, rows), jax.random.key(step))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.6 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.teacher))
    measured, pictures = run.task.evaluate(state, jax.random.key(0))
    assert measured.keys() == {"test_accuracy", "teacher_accuracy", "agreement"}
    assert 0.5 < measured["agreement"] < 1
    assert pictures == {}


def test_the_teacher_is_never_differentiated(cache, monkeypatch):
    """Its forward pass would keep what a backward pass needs, were it part of what is differentiated."""
    network = classification.network

    def guarded(config, world):
        model = network(config, world)
        if config.model.name == "perceptron":
            return model
        apply = jax.custom_jvp(lambda params, images: model.apply(params, images))

        @apply.defjvp
        def jvp(primals, tangents):
            raise AssertionError("the teacher is differentiated")

        return model._replace(apply=apply)

    # Here alone: the teacher's own training does differentiate it.
    monkeypatch.setattr(distillation, "classification", SimpleNamespace(**{**vars(classification), "network": guarded}))
    run = prepared.__wrapped__(cache)
    state = run.task.init(jax.random.key(0))
    batch = batch_of(run.world, np.arange(BATCH))
    run.task.update(state, batch, jax.random.key(0))
    # The guard works: a gradient with respect to the teacher is noticed.
    teacher = guarded(run.config.teacher, run.world)
    with pytest.raises(AssertionError, match="differentiated"):
        jax.grad(lambda p: teacher.apply(p, run.world.to_model(batch["image"]))["logits"].sum())(state.teacher)


def test_losses_over_a_batch_do_not_depend_on_the_devices(cache, tmp_path):
    run = prepared(cache, objective=WHOLE)
    alone = losses_on(run, tmp_path / "alone", {"data": 1})
    assert len(alone) == 4
    for name, mesh, parallel in (
        ("data", {"data": 8}, "jit"),
        ("fsdp", {"data": 2, "fsdp": 4}, "jit"),
        ("pmap", {"data": 8}, "pmap"),
    ):
        np.testing.assert_allclose(losses_on(run, tmp_path / name, mesh, parallel), alone, rtol=1e-4, err_msg=name)


def test_the_teacher_may_be_a_run_of_ones_own(cache, tmp_path):
    trained = tasks.resolve(config(cache).teacher.copy_and_resolve_references())
    trained.mesh = {"data": 1}
    teacher = runs.train(trained, tmp_path / "teacher")
    given = config(cache)
    given.teacher = {"workdir": str(tmp_path / "teacher")}
    run = runs.train(tasks.resolve(given), tmp_path / "student")
    jax.tree.map(np.testing.assert_array_equal, run.state.teacher, teacher.state.average)
    # And a student teaches in its turn.
    given.teacher.workdir = str(tmp_path / "student")
    again = runs.prepare(tasks.resolve(given))
    assert again.task.init(jax.random.key(0)).teacher.keys() == run.state.params.keys()
    given.teacher.workdir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"the run that this one needs \(config.teacher\): .*nowhere"):
        runs.prepare(tasks.resolve(given))


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"objective": "kulback"}, "unknown loss in config.objective 'kulback'"),
        ({"objective": "kullback_leibler(temperature=0)"}, "config: temperature must be > 0"),
        ({"objective": "sinkhorn", "accumulate": 2}, "config.objective: sinkhorn compares a whole batch"),
        ({"model.name": "autoencoder"}, "config.model: 'autoencoder' gives no logits of images"),
        ({"teacher.task": "diffusion"}, "config.teacher must be a classification or distillation config"),
        ({"checkpoint.best": "fid", "evaluate_every": 2}, "unknown metric in config.checkpoint.best 'fid'"),
    ],
)
def test_mistakes_in_a_config_are_named(cache, overrides, match):
    given = config(cache)
    if "model.name" in overrides:
        given.model = {"name": overrides["model.name"]}
        overrides = {}
    for path, value in overrides.items():
        section, _, field = path.rpartition(".")
        with given.ignore_type():
            (given[section] if section else given)[field] = value
    with pytest.raises(UserError, match=match):
        runs.prepare(tasks.resolve(given))


def test_a_teacher_of_other_examples_is_refused(cache):
    run = prepared(cache)
    other = run.world._replace(num_classes=7)
    with pytest.raises(UserError, match=r"config.teacher knows 10 classes .*, and config.data has 7 of shape"):
        distillation._check_teacher(run._replace(world=run.world), other)
