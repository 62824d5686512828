"""Losses over whole batches: the official algorithms in float64, limits, invariances, split batches, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation
from mlfuncs.distillation import _rows, batches

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
STUDENT, TEACHER = 2 * jax.random.normal(KEY, (2, 8, 5))
ONES = jnp.ones((2, 3))
total = lambda s, t, **options: distillation.sinkhorn(s, t, **options).sum()  # noqa: E731


def softened(logits, temperature):
    return scipy.special.softmax(np.asarray(logits, np.float64) / temperature, axis=-1)


def official_sinkhorn(student, teacher):
    """Rows then columns divided by their sums, twenty times, in float64."""
    q, p = softened(student, 2), softened(teacher, 2)
    cost = np.abs(q[:, None] - p[None]).sum(-1)
    plan = np.exp(-cost / 0.1)
    for _ in range(20):
        plan /= plan.sum(1, keepdims=True)
        plan /= plan.sum(0, keepdims=True)
    return (plan * cost).sum(1)


def test_sinkhorn_is_the_official_algorithm():
    np.testing.assert_allclose(distillation.sinkhorn(STUDENT, TEACHER), official_sinkhorn(STUDENT, TEACHER), rtol=1e-4)


def test_sinkhorn_forgets_which_teacher_row_is_whose():
    shuffled = TEACHER[jnp.array([3, 1, 0, 7, 6, 5, 2, 4])]
    np.testing.assert_allclose(total(STUDENT, shuffled), total(STUDENT, TEACHER), rtol=1e-4)
    kl = distillation.kullback_leibler
    assert abs(kl(STUDENT, shuffled).sum() - kl(STUDENT, TEACHER).sum()) > 0.1
    classes = jnp.array([4, 2, 0, 1, 3])
    np.testing.assert_allclose(total(STUDENT[:, classes], TEACHER[:, classes]), total(STUDENT, TEACHER), rtol=1e-4)


def test_sinkhorn_limits():
    alone = distillation.sinkhorn(STUDENT[:1], TEACHER[:1])
    np.testing.assert_allclose(
        alone, 2 * distillation.total_variation(STUDENT[:1], TEACHER[:1], temperature=2.0), rtol=1e-5
    )
    # The same batch twice: blurred, less and less.
    blur = [float(total(STUDENT, STUDENT, regularization=r, iterations=100)) for r in (0.3, 0.1, 1e-3)]
    assert blur[0] > blur[1] > 1e-3
    assert abs(blur[2]) < 1e-5
    # Without regularisation it is the assignment of least cost.
    q, p = softened(STUDENT, 2), softened(TEACHER, 2)
    cost = np.abs(q[:, None] - p[None]).sum(-1)
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    least = total(STUDENT, TEACHER, regularization=2e-3, iterations=2000)
    np.testing.assert_allclose(least, cost[rows, columns].sum(), rtol=1e-2)


def test_sinkhorn_passes_gradients_through_plan_and_cost():
    direction, step = jax.random.normal(jax.random.key(1), STUDENT.shape), 1e-3
    moved = [official_sinkhorn(np.asarray(STUDENT, np.float64) + sign * step * direction, TEACHER) for sign in (1, -1)]
    slope = (moved[0].sum() - moved[1].sum()) / (2 * step)
    run = jax.jit(jax.grad(total, argnums=(0, 1)))
    gradient, of_teacher = run(STUDENT, TEACHER)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=1e-2)
    for side in run(STUDENT, STUDENT):
        assert np.all(np.isfinite(side))
    # The teacher's side is not stopped.
    assert jnp.linalg.norm(of_teacher) > 1e-3


def test_masks_extremes_and_precision():
    masked = jnp.array([False, True, False, False, False])
    hide = lambda x: jnp.where(masked, -jnp.inf, x)  # noqa: E731
    for loss in (total, distillation.correlation):
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        for student, teacher in ((hide(STUDENT), hide(TEACHER)), (1e4 * STUDENT, 1e4 * TEACHER)):
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(run(student, teacher)))
        assert np.isnan(run(STUDENT.at[0, 0].set(jnp.nan), TEACHER)[0])
        half = jax.eval_shape(run, STUDENT.astype(jnp.bfloat16), TEACHER.astype(jnp.bfloat16))
        assert (half[0].dtype, half[1][0].dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(
        total(hide(STUDENT), hide(TEACHER)), total(STUDENT[:, ~masked], TEACHER[:, ~masked]), rtol=1e-4
    )
    # Rows that mask every class have no mass: each lies at distance 1 from every prediction, and correlates with none.
    nothing = jnp.full_like(TEACHER, -jnp.inf)
    np.testing.assert_allclose(distillation.sinkhorn(STUDENT, nothing), np.ones(8), rtol=1e-4)
    value, gradient = jax.jit(jax.value_and_grad(distillation.correlation))(STUDENT, nothing)
    np.testing.assert_allclose(value, 2.0, rtol=1e-6)
    np.testing.assert_array_equal(gradient, np.zeros((8, 5)))


def test_correlation_in_float64():
    q, p = softened(STUDENT, 4), softened(TEACHER, 4)
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    ours = distillation.correlation(STUDENT, TEACHER, temperature=4.0, inter_weight=2.0, intra_weight=0.5)
    np.testing.assert_allclose(ours, 16 * (2 * (1 - rows) + 0.5 * (1 - columns)), rtol=1e-4)


def test_correlation_edges():
    np.testing.assert_allclose(distillation.correlation(TEACHER, TEACHER), 0, atol=1e-5)
    # One example has no spread within classes, one class none within examples: their term is its weight.
    one = partial(distillation.correlation, inter_weight=0.0, intra_weight=3.0, temperature=2.0)
    np.testing.assert_allclose(one(STUDENT[:1], TEACHER[:1]), 12)
    np.testing.assert_array_equal(jax.jit(jax.grad(one))(STUDENT[:1], TEACHER[:1]), np.zeros((1, 5)))
    np.testing.assert_allclose(distillation.correlation(STUDENT[:, :1], TEACHER[:, :1]), 2)
    flat = jax.jit(jax.grad(distillation.correlation))(jnp.zeros((8, 5)), TEACHER)
    assert np.all(np.isfinite(flat))
    traced = jax.jit(lambda t, w: distillation.correlation(STUDENT, TEACHER, temperature=t, inter_weight=w))
    np.testing.assert_allclose(
        traced(2.0, 0.5), distillation.correlation(STUDENT, TEACHER, temperature=2.0, inter_weight=0.5), rtol=1e-5
    )


@pytest.mark.parametrize("block", [2**20, 12])
def test_gradients_of_correlation_in_everything(block, monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK", block)

    def by_definition(student, teacher, temperature, inter, intra):
        q, p = jax.nn.softmax(student / temperature), jax.nn.softmax(teacher / temperature)

        def apart(axis):
            a, b = (x - x.mean(axis, keepdims=True) for x in (q, p))
            norms = jnp.sqrt((a**2).sum(axis)) * jnp.sqrt((b**2).sum(axis))
            return 1 - ((a * b).sum(axis) / (norms + 1e-8)).mean()

        return temperature**2 * (inter * apart(1) + intra * apart(0))

    def ours(student, teacher, temperature, inter, intra):
        return distillation.correlation(
            student, teacher, temperature=temperature, inter_weight=inter, intra_weight=intra
        )

    with jax.enable_x64(True):
        given = (*(2 * jax.random.normal(KEY, (2, 4, 7), jnp.float64)), 3.0, 0.7, 2.0)
        for derivative in (jax.grad, lambda f, at: jax.jacfwd(jax.grad(f), at)):
            found, expected = (jax.jit(derivative(f, (0, 1, 2, 3, 4)))(*given) for f in (ours, by_definition))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found, expected)


@pytest.mark.parametrize("block", [2**20, 12])
@pytest.mark.parametrize("loss", [total, distillation.correlation], ids=["sinkhorn", "correlation"])
def test_a_masked_class_and_the_temperature(loss, block, monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK", block)
    student, teacher = 2 * jax.random.normal(KEY, (2, 4, 7))
    masked = jnp.arange(7) == 3
    run = jax.jit(jax.value_and_grad(lambda s, t, tau: loss(s, t, temperature=tau), argnums=(0, 1, 2)))
    value, gradients = run(jnp.where(masked, -jnp.inf, student), jnp.where(masked, -jnp.inf, teacher), 2.0)
    # Far below the others is as good as masked.
    expected, far = run(jnp.where(masked, -500.0, student), jnp.where(masked, -500.0, teacher), 2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, far)


def test_python_numbers_leave_the_precision_to_the_logits():
    with jax.enable_x64(True):
        loss = distillation.correlation(STUDENT, TEACHER, temperature=4.0, inter_weight=2.0)
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize("loss", [total, distillation.correlation], ids=["sinkhorn", "correlation"])
def test_chunks_of_classes_change_nothing(loss, monkeypatch):
    student, teacher = 2 * jax.random.normal(KEY, (2, 4, 7))
    run = jax.value_and_grad(loss, argnums=(0, 1))
    expected = run(student, teacher)
    monkeypatch.setattr(_rows, "BLOCK", 12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), run(student, teacher), expected)


@pytest.mark.parametrize("loss", [total, distillation.correlation], ids=["sinkhorn", "correlation"])
def test_no_array_of_pairs_times_classes(loss):
    # Compiled, not run: 512 rows of 32k classes; every pair of rows at once would take 32 GiB.
    logits = jax.ShapeDtypeStruct((512, 2**15), jnp.bfloat16)
    memory = jax.jit(jax.value_and_grad(loss)).lower(logits, logits).compile().memory_analysis()
    # Copies in bfloat16: the gradient, that of the normalisers, and the sum of both; then blocks.
    assert memory.temp_size_in_bytes < 3 * 2 * 512 * 2**15 + 16 * 2**20


@pytest.mark.parametrize("loss", [distillation.sinkhorn, distillation.correlation])
def test_split_batches_give_the_result_of_one_device(loss):
    student, teacher = 2 * jax.random.normal(KEY, (2, 16, 6))
    out = P("data") if loss is distillation.sinkhorn else P()
    split = jax.shard_map(partial(loss, axis_name="data"), mesh=MESH, in_specs=P("data"), out_specs=out)
    run = lambda function: jax.jit(  # noqa: E731
        jax.value_and_grad(lambda s, t: jnp.sum(function(s, t)), argnums=(0, 1))
    )(student, teacher)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), run(split), run(loss))
    shards = jax.pmap(partial(loss, axis_name="data"), axis_name="data")(
        student.reshape(8, 2, 6), teacher.reshape(8, 2, 6)
    )
    whole = loss(student, teacher)
    np.testing.assert_allclose(shards.reshape(-1), jnp.broadcast_to(whole, (shards.size,)), rtol=1e-4)


def test_split_batches_in_chunks_of_classes(monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK", 6)
    student, teacher = 2 * jax.random.normal(KEY, (2, 8, 7))
    for loss, out in ((distillation.sinkhorn, P("data")), (distillation.correlation, P())):
        split = jax.shard_map(partial(loss, axis_name="data"), mesh=MESH, in_specs=P("data"), out_specs=out)
        run = lambda function: jax.jit(  # noqa: E731
            jax.value_and_grad(lambda s, t: jnp.sum(function(s, t)), argnums=(0, 1))
        )(student, teacher)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), run(split), run(loss))


def test_rows_in_turns_and_split_by_the_compiler():
    # 21 rows: three turns of eight with padding, against all at once.
    student, teacher = 2 * jax.random.normal(KEY, (2, 21, 5))

    def by_definition(student, teacher):
        q, p = jax.nn.softmax(student), jax.nn.softmax(teacher)
        return jnp.sum(jnp.abs(q[:, None] - p), -1)

    weights = jax.random.normal(jax.random.key(1), (21, 21))
    ours = lambda s, t: jnp.sum(weights * batches._prediction_distances(s, t, 1.0))  # noqa: E731
    run = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))
    expected = jax.value_and_grad(lambda s, t: jnp.sum(weights * by_definition(s, t)), argnums=(0, 1))(student, teacher)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, run(student, teacher), expected)
    slope = jax.jvp(ours, (student, teacher), (teacher, student))[1]
    np.testing.assert_allclose(slope, jnp.vdot(expected[1][0], teacher) + jnp.vdot(expected[1][1], student), rtol=1e-4)
    # Predictions that agree pull nowhere.
    np.testing.assert_allclose(
        jax.grad(lambda s: batches._prediction_distances(s, s, 1.0)[0, 0])(student), 0, atol=1e-6
    )
    whole = jax.jit(jax.value_and_grad(total))
    pair = 2 * jax.random.normal(KEY, (2, 16, 5))
    split = [jax.device_put(x, NamedSharding(MESH, P("data"))) for x in pair]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole(*split), whole(*pair))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.sinkhorn(ONES[0], ONES[0]), "student_logits"),
        (lambda: distillation.sinkhorn(ONES, jnp.ones((3, 3))), "teacher_logits"),
        (lambda: distillation.sinkhorn(ONES[:0], ONES[:0]), "student_logits"),
        (lambda: distillation.sinkhorn(ONES[:, :0], ONES[:, :0]), "student_logits"),
        (lambda: distillation.sinkhorn(ONES, ONES, temperature=0), "temperature"),
        (lambda: distillation.sinkhorn(ONES, ONES, regularization=0), "regularization"),
        (lambda: distillation.sinkhorn(ONES, ONES, iterations=0), "iterations"),
        (lambda: distillation.correlation(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3))), "student_logits"),
        (lambda: distillation.correlation(ONES, ONES[:1]), "teacher_logits"),
        (lambda: distillation.correlation(ONES, ONES, temperature=-1), "temperature"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
