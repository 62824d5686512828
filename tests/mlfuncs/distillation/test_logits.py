"""Softened divergences: definitions in float64, closed gradients, limits, masks, large vocabularies, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial.distance
import scipy.special
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation
from mlfuncs.distillation import _rows

KEY = jax.random.key(0)
DIVERGENCES = [
    distillation.kullback_leibler,
    distillation.reverse_kullback_leibler,
    distillation.jensen_shannon,
    distillation.total_variation,
]
LOSSES = [*DIVERGENCES, distillation.soft_cross_entropy]
name_of = lambda function: function.__name__  # noqa: E731


def pair(shape=(5, 7), scale=3.0):
    return scale * jax.random.normal(KEY, (2, *shape))


def softened(logits, temperature=1.0):
    """Probabilities and their logarithms in float64."""
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64) / temperature, axis=-1)
    return np.exp(log_p), log_p


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_definitions_in_float64(temperature):
    student, teacher = pair((2, 3, 7))
    q, log_q = softened(student, temperature)
    p, _ = softened(teacher, temperature)
    mixed = 0.3 * p + 0.7 * q
    kl = lambda a, b: scipy.special.rel_entr(a, b).sum(-1)  # noqa: E731
    expected = {
        "kullback_leibler": temperature**2 * kl(p, q),
        "reverse_kullback_leibler": temperature**2 * kl(q, p),
        "jensen_shannon": temperature**2 * (0.3 * kl(p, mixed) + 0.7 * kl(q, mixed)),
        "total_variation": np.abs(p - q).sum(-1) / 2,
        "soft_cross_entropy": -(p * log_q).sum(-1),
    }
    for name, value in expected.items():
        more = {"mixture": 0.3} if name == "jensen_shannon" else {}
        actual = getattr(distillation, name)(student, teacher, temperature=temperature, **more)
        assert actual.shape == (2, 3)
        np.testing.assert_allclose(actual, value, rtol=1e-5, err_msg=name)


def test_two_classes_by_hand():
    # p = (3/4, 1/4), q = (1/4, 3/4): KL = 1/2 log 3, TV = 1/2; JSD against (1/2, 1/2).
    student, teacher = jnp.log(jnp.array([1.0, 3.0])), jnp.log(jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(distillation.kullback_leibler(student, teacher), 0.5 * np.log(3), rtol=1e-6)
    np.testing.assert_allclose(distillation.reverse_kullback_leibler(student, teacher), 0.5 * np.log(3), rtol=1e-6)
    np.testing.assert_allclose(distillation.total_variation(student, teacher), 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        distillation.jensen_shannon(student, teacher), 0.75 * np.log(1.5) + 0.25 * np.log(0.5), rtol=1e-6
    )
    np.testing.assert_allclose(
        distillation.soft_cross_entropy(student, teacher), 0.75 * np.log(4) + 0.25 * np.log(4 / 3), rtol=1e-6
    )


def test_agreement_with_optax_and_scipy():
    student, teacher = pair()
    log_q, p = jax.nn.log_softmax(student), jax.nn.softmax(teacher)
    np.testing.assert_allclose(
        distillation.kullback_leibler(student, teacher), optax.losses.kl_divergence(log_q, p), rtol=1e-5
    )
    np.testing.assert_allclose(
        distillation.soft_cross_entropy(student, teacher), optax.losses.softmax_cross_entropy(student, p), rtol=1e-5
    )
    distance = scipy.spatial.distance.jensenshannon(softened(teacher)[0], softened(student)[0], axis=1)
    np.testing.assert_allclose(distillation.jensen_shannon(student, teacher), distance**2, rtol=1e-5)
    labels = jnp.array([0, 6, 2, 2, 1])
    np.testing.assert_allclose(
        distillation.knowledge_distillation(student, teacher, labels, soft_weight=0.0),
        optax.losses.softmax_cross_entropy_with_integer_labels(student, labels),
        rtol=1e-5,
    )


@pytest.mark.parametrize("loss", DIVERGENCES, ids=name_of)
def test_zero_where_both_agree_and_never_negative(loss):
    _, teacher = pair((200, 9))
    value, gradient = jax.value_and_grad(lambda s, t: loss(s, t).sum(), argnums=(0, 1))(teacher, teacher)
    assert value == 0
    for side in gradient:
        np.testing.assert_allclose(side, np.zeros((200, 9)), atol=1e-7)
    # Rounding would hide or turn the sign of differences as small as these.
    for noise in (1e-5, 1e-3, 1e-1, 10.0):
        values = loss(teacher + noise * jax.random.normal(jax.random.key(1), teacher.shape), teacher)
        assert np.all(values >= 0)
    near = teacher.astype(jnp.float32) + 1e-3 * jax.random.normal(jax.random.key(1), teacher.shape)
    if loss is distillation.kullback_leibler:
        expected = scipy.special.rel_entr(softened(teacher)[0], softened(near)[0]).sum(-1)
        np.testing.assert_allclose(loss(near, teacher), expected, rtol=1e-2)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_gradients_are_the_closed_forms_on_both_sides(temperature):
    student, teacher = pair()
    q, log_q = softened(student, temperature)
    p, log_p = softened(teacher, temperature)
    log_m = np.log(0.5 * p + 0.5 * q)
    centred = lambda weights, values: weights * (values - (weights * values).sum(-1, keepdims=True))  # noqa: E731
    expected = {
        "kullback_leibler": (q - p, centred(p, log_p - log_q)),
        "reverse_kullback_leibler": (centred(q, log_q - log_p), p - q),
        "jensen_shannon": (0.5 * centred(q, log_q - log_m), 0.5 * centred(p, log_p - log_m)),
        "soft_cross_entropy": (q - p, -centred(p, log_q)),
        "total_variation": (centred(q, np.sign(q - p) / 2), centred(p, np.sign(p - q) / 2)),
    }
    for name, sides in expected.items():
        function, plain = getattr(distillation, name), {"scale_by_squared_temperature": False}
        plain = {} if name == "total_variation" else plain
        gradient = jax.grad(lambda s, t: function(s, t, temperature=temperature, **plain).sum(), argnums=(0, 1))  # noqa: B023
        for ours, theirs in zip(gradient(student, teacher), sides, strict=True):
            np.testing.assert_allclose(ours, theirs / temperature, rtol=1e-4, atol=1e-6, err_msg=name)
        if name != "total_variation":
            scaled = jax.grad(
                lambda s: function(s, teacher, temperature=temperature, scale_by_squared_temperature=True).sum()  # noqa: B023
            )(student)
            np.testing.assert_allclose(scaled, temperature * sides[0], rtol=1e-4, atol=1e-5, err_msg=name)


def test_errors_of_public_code_would_show():
    student, teacher = pair((4, 10))
    labels = jnp.zeros(4, jnp.int32)
    q, log_q = softened(student, 4)
    p, log_p = softened(teacher, 4)
    right = np.asarray(distillation.kullback_leibler(student, teacher, temperature=4.0))
    unscaled = np.asarray(
        distillation.kullback_leibler(student, teacher, temperature=4.0, scale_by_squared_temperature=False)
    )
    np.testing.assert_allclose(right, 16 * unscaled, rtol=1e-6)  # T^2
    np.testing.assert_allclose(unscaled, (p * (log_p - log_q)).sum(-1), rtol=1e-5)  # a sum: the mean is a tenth of it
    # The mean over [B] is the batch mean; T^2 stays at any soft weight, also without labels' part.
    whole = distillation.knowledge_distillation(student, teacher, labels, soft_weight=1.0)
    np.testing.assert_allclose(whole, right, rtol=1e-6)
    # Mixing logarithms in place of probabilities gives a mixture that is no distribution.
    wrong_m = 0.5 * (log_p + log_q)
    wrong = 0.5 * (p * (log_p - wrong_m) + q * (log_q - wrong_m)).sum(-1)
    ours = distillation.jensen_shannon(student, teacher, temperature=4.0, scale_by_squared_temperature=False)
    assert np.all(np.asarray(ours) < 0.99 * wrong)


def test_temperature_limits():
    student, teacher = pair()
    # T^2 KL tends to half the variance of the difference: matching of centred logits.
    gap = np.asarray(student - teacher, np.float64)
    variance = gap.var(axis=-1) / 2
    for loss in DIVERGENCES[:2]:
        np.testing.assert_allclose(loss(student, teacher, temperature=1e3), variance, rtol=2e-2)
    np.testing.assert_allclose(distillation.jensen_shannon(student, teacher, temperature=1e3), variance / 4, rtol=2e-2)
    # Cold predictions are one-hot: total variation is whether the best classes differ.
    cold = distillation.total_variation(student, teacher, temperature=1e-4)
    np.testing.assert_allclose(cold, student.argmax(-1) != teacher.argmax(-1), atol=1e-6)
    slope = jax.jit(jax.grad(lambda t: distillation.kullback_leibler(student, teacher, temperature=t).sum()))(2.0)
    assert np.isfinite(slope)


@pytest.mark.parametrize("loss", LOSSES, ids=name_of)
def test_shifts_change_nothing(loss):
    student, teacher = pair()
    shift = jnp.array([0.0, 1.0, -64.0, 1024.0, 8.0])[:, None]
    moved = loss(jnp.round(student * 64) / 64 + shift, jnp.round(teacher * 64) / 64 - shift)
    np.testing.assert_allclose(moved, loss(jnp.round(student * 64) / 64, jnp.round(teacher * 64) / 64), rtol=1e-5)


def test_jensen_shannon_is_bounded_and_vanishes_at_its_ends():
    apart = jnp.array([[100.0, 0.0, 0.0], [0.0, 1e4, 0.0]]), jnp.array([[0.0, 100.0, 0.0], [0.0, 0.0, 1e4]])
    np.testing.assert_allclose(distillation.jensen_shannon(*apart), np.full(2, np.log(2)), rtol=1e-6)
    student, teacher = pair(scale=1.0)
    small = distillation.jensen_shannon(student, teacher, mixture=1e-4)
    np.testing.assert_allclose(small, 1e-4 * distillation.kullback_leibler(student, teacher), rtol=1e-2)
    large = distillation.jensen_shannon(student, teacher, mixture=1 - 1e-4)
    np.testing.assert_allclose(large, 1e-4 * distillation.reverse_kullback_leibler(student, teacher), rtol=1e-2)


def test_bounded_divergences_teach_nothing_across_disjoint_supports():
    student, teacher = jnp.array([30.0, 0.0, 0.0]), jnp.array([0.0, 30.0, 0.0])
    for loss in (distillation.total_variation, distillation.jensen_shannon):
        assert jnp.linalg.norm(jax.grad(loss)(student, teacher)) < 1e-6
    assert jnp.linalg.norm(jax.grad(distillation.kullback_leibler)(student, teacher)) > 1


@pytest.mark.parametrize("loss", LOSSES, ids=name_of)
def test_classes_that_both_mask_are_as_if_dropped(loss):
    student, teacher = pair()
    masked = jnp.array([False, True, False, False, True, False, False])
    hide = lambda x: jnp.where(masked, -jnp.inf, x)  # noqa: E731
    gradient = jax.grad(lambda s, t: loss(s, t).sum(), argnums=(0, 1))
    np.testing.assert_allclose(
        loss(hide(student), hide(teacher)), loss(student[:, ~masked], teacher[:, ~masked]), rtol=1e-5
    )
    ours, fewer = gradient(hide(student), hide(teacher)), gradient(student[:, ~masked], teacher[:, ~masked])
    for a, b in zip(ours, fewer, strict=True):
        np.testing.assert_allclose(a[:, ~masked], b, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(a[:, masked], np.zeros((5, 2)))


def test_classes_that_one_side_masks():
    student, teacher = jnp.array([0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, -jnp.inf])
    infinite = {"kullback_leibler": False, "soft_cross_entropy": False, "reverse_kullback_leibler": True}
    for name, expected in infinite.items():
        loss = getattr(distillation, name)
        assert bool(jnp.isposinf(loss(student, teacher))) is expected
        assert bool(jnp.isposinf(loss(teacher, student))) is not expected
    np.testing.assert_allclose(distillation.kullback_leibler(student, teacher), np.log(1.5), rtol=1e-6)
    gradient = jax.grad(distillation.kullback_leibler)(student, teacher)
    np.testing.assert_allclose(gradient, [1 / 3 - 1 / 2, 1 / 3 - 1 / 2, 1 / 3], rtol=1e-5)
    for loss in (distillation.jensen_shannon, distillation.total_variation):
        for sides in ((student, teacher), (teacher, student)):
            assert np.isfinite(loss(*sides))
            assert all(np.all(np.isfinite(side)) for side in jax.grad(loss, argnums=(0, 1))(*sides))


def test_rows_that_mask_every_class():
    nothing, some = jnp.full(3, -jnp.inf), jnp.array([0.0, 1.0, 2.0])
    for loss in LOSSES:
        assert loss(nothing, nothing) == 0
        assert all(np.all(side == 0) for side in jax.grad(loss, argnums=(0, 1))(nothing, nothing))
    for loss in (distillation.kullback_leibler, distillation.soft_cross_entropy):
        assert loss(some, nothing) == 0
        assert np.all(jax.grad(loss)(some, nothing) == 0)
        assert jnp.isposinf(loss(nothing, some))
    assert distillation.reverse_kullback_leibler(nothing, some) == 0
    np.testing.assert_allclose(distillation.total_variation(some, nothing), 0.5, rtol=1e-6)
    np.testing.assert_allclose(distillation.jensen_shannon(some, nothing), 0.5 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=name_of)
def test_edges(loss):
    run = jax.jit(lambda s, t: (loss(s, t), jax.grad(lambda *x: loss(*x).sum(), argnums=(0, 1))(s, t)))
    wide = 1e4 * jnp.array([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.25]])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(run(wide, wide[::-1])))
    broken, whole = jnp.array([[jnp.nan, 1.0, 0.0], [0.0, 1.0, 0.0]]), jnp.ones((2, 3))
    for sides in ((broken, whole), (whole, broken)):
        np.testing.assert_array_equal(np.isnan(run(*sides)[0]), [True, False])
    half = wide.astype(jnp.bfloat16) / 3000
    value, gradient = run(half, half[::-1])
    assert (value.dtype, gradient[0].dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(value, run(*(x.astype(jnp.float32) for x in (half, half[::-1])))[0], rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(loss)(np.array([[3.0], [1.0]]), np.array([[-2.0], [5.0]])), [0, 0])
    assert jax.eval_shape(loss, np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
    assert jax.eval_shape(loss, np.array([1, 2]), np.array([2, 1])).dtype == jnp.float32


def test_knowledge_distillation_by_its_parts():
    student, teacher = pair((2, 3, 5))
    labels = jnp.array([[0, 4, 2], [1, 1, 3]])
    cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(student), labels[..., None], -1)[..., 0]
    soft = distillation.kullback_leibler(student, teacher, temperature=4.0)
    ours = distillation.knowledge_distillation(student, teacher, labels)
    np.testing.assert_allclose(ours, 0.1 * cross_entropy + 0.9 * soft, rtol=1e-5)
    traced = jax.jit(lambda a: distillation.knowledge_distillation(student, teacher, labels, soft_weight=a))
    np.testing.assert_allclose(traced(0.0), cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(traced(1.0), soft, rtol=1e-5)
    gradient = jax.grad(lambda s: distillation.knowledge_distillation(s, teacher, labels).sum())(student)
    q, q4, p4 = softened(student)[0], softened(student, 4)[0], softened(teacher, 4)[0]
    np.testing.assert_allclose(gradient, 0.1 * (q - np.eye(5)[labels]) + 0.9 * 4 * (q4 - p4), rtol=1e-4, atol=1e-5)


def test_a_part_without_weight_is_not_counted():
    student = jnp.array([0.0, 1.0, -jnp.inf])
    loss = lambda s, weight: distillation.knowledge_distillation(s, student, 2, soft_weight=weight)  # noqa: E731
    assert loss(student, 1.0) == 0
    np.testing.assert_array_equal(jax.grad(loss)(student, 1.0), np.zeros(3))
    assert jnp.isposinf(loss(student, 0.5))


@pytest.mark.parametrize("shape", [(23, 8), (4, 6, 8)])
def test_blocks_of_rows_change_nothing(shape, monkeypatch):
    student, teacher = pair(shape)
    labels = jax.random.randint(KEY, shape[:-1], 0, 8)
    losses = (distillation.jensen_shannon, lambda s, t: distillation.knowledge_distillation(s, t, labels))

    def run(student, teacher):
        square = lambda loss: lambda s, t: (loss(s, t) ** 2).sum()  # noqa: E731
        return [(loss(student, teacher), jax.grad(square(loss), (0, 1))(student, teacher)) for loss in losses]

    expected = jax.jit(run)(student, teacher)
    monkeypatch.setattr(_rows, "BLOCK", 40)
    blocked = jax.jit(lambda s, t: run(s, t))(student, teacher)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), blocked, expected)


def test_blocks_keep_every_kind_of_derivative(monkeypatch):
    student, teacher = pair((6, 4))
    monkeypatch.setattr(_rows, "BLOCK", 8)

    @jax.jit
    def derivatives(student, teacher):
        total = lambda s: distillation.kullback_leibler(s, teacher).sum()  # noqa: E731
        return (
            jax.jvp(total, (student,), (teacher,))[1],
            jax.jvp(jax.grad(total), (student,), (teacher,))[1],
            jax.grad(lambda s: jnp.vdot(jax.grad(total)(s), teacher))(student),
            jax.vmap(lambda s: distillation.kullback_leibler(s, teacher))(jnp.stack([student, teacher]))[0],
        )

    slope, curvature, backwards, mapped = derivatives(student, teacher)
    q, log_q = softened(student)
    p, log_p = softened(teacher)
    np.testing.assert_allclose(slope, np.vdot(q - p, teacher), rtol=1e-4)
    for twice in (curvature, backwards):
        np.testing.assert_allclose(twice, q * (teacher - (q * teacher).sum(-1, keepdims=True)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mapped, (p * (log_p - log_q)).sum(-1), rtol=1e-4)


def test_blocks_keep_the_derivative_in_scalars(monkeypatch):
    student, teacher = pair((6, 4))
    loss = lambda t, b: distillation.jensen_shannon(student, teacher, temperature=t, mixture=b).sum()  # noqa: E731
    expected = jax.grad(loss, (0, 1))(2.0, 0.3)
    h = 1e-2
    np.testing.assert_allclose(expected[1], (loss(2.0, 0.3 + h) - loss(2.0, 0.3 - h)) / (2 * h), rtol=1e-3)
    monkeypatch.setattr(_rows, "BLOCK", 8)
    np.testing.assert_allclose(jax.jit(jax.grad(loss, (0, 1)))(2.0, 0.3), expected, rtol=1e-5)


def test_small_divergences_in_float64():
    with jax.enable_x64(True):
        teacher = np.random.default_rng(0).standard_normal((4, 6))
        student = teacher + 1e-6 * np.random.default_rng(1).standard_normal((4, 6))
        values = distillation.kullback_leibler(student, teacher)
        gap = student - teacher
        p = softened(teacher)[0]
        variance = (p * gap**2).sum(-1) - (p * gap).sum(-1) ** 2
        assert values.dtype == jnp.float64
        np.testing.assert_allclose(values, variance / 2, rtol=1e-5)  # to second order; the third is a millionth of it


def labelled(student, teacher):
    return distillation.knowledge_distillation(student, teacher, jnp.zeros(student.shape[:-1], jnp.int32))


@pytest.mark.parametrize("loss", [*LOSSES, labelled], ids=name_of)
def test_a_large_vocabulary_is_not_copied(loss):
    # Compiled, not run: 1024 tokens of 32k classes.
    count = 1024 * 2**15
    gradient = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).mean()))
    # Beside the result, blocks: the one gradient in bfloat16 is another than that of the result, in float32 it is the same.
    for dtype, most in ((jnp.bfloat16, 3.2), (jnp.float32, 1.6)):
        logits = jax.ShapeDtypeStruct((1024, 2**15), dtype)
        memory = gradient.lower(logits, logits).compile().memory_analysis()
        assert memory.temp_size_in_bytes < most * count
        assert memory.output_size_in_bytes < jnp.dtype(dtype).itemsize * count + 64


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")], ids=["rows", "classes"])
def test_split_inputs_give_the_same(spec, monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK", 64)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    student, teacher = pair((16, 16))
    loss = jax.jit(jax.value_and_grad(lambda s, t: distillation.jensen_shannon(s, t).mean()))
    split = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (student, teacher)]
    expected = loss(student, teacher)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), loss(*split), expected)
    rows = jax.shard_map(distillation.jensen_shannon, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(rows)(student, teacher).mean(), expected[0], rtol=1e-5)


def test_a_teacher_that_all_devices_hold_teaches_each_part_of_the_batch(monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK", 16)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    student, teacher, temperature = pair((16, 8))[0], pair((4, 8))[1], jnp.float32(2.0)

    def split(s, t, tau):
        total = lambda *x: jax.lax.psum(distillation.kullback_leibler(*x[:2], temperature=x[2]).sum(), "data")  # noqa: E731
        return jax.value_and_grad(total, argnums=(0, 1, 2))(s, t, tau)

    def whole(s, t, tau):
        return distillation.kullback_leibler(s, jnp.tile(t, (4, 1)), temperature=tau).sum()

    specs = (P(), (P("data"), P(), P()))
    found = jax.jit(jax.shard_map(split, mesh=mesh, in_specs=specs[1], out_specs=specs))(student, teacher, temperature)
    expected = jax.jit(jax.value_and_grad(whole, argnums=(0, 1, 2)))(student, teacher, temperature)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


ONES, LABELS = jnp.ones((2, 3)), jnp.zeros(2, jnp.int32)


@pytest.mark.parametrize("loss", LOSSES, ids=name_of)
def test_bad_logits(loss):
    for student, teacher in ((ONES, jnp.ones((2, 4))), (ONES, jnp.ones(3)), (jnp.ones((2, 0)), jnp.ones((2, 0)))):
        with pytest.raises(ValueError, match="_logits"):
            loss(student, teacher)
    with pytest.raises(ValueError, match="_logits"):
        loss(jnp.array(1.0), jnp.array(1.0))
    for temperature in (0.0, -1.0, jnp.ones(2)):
        with pytest.raises(ValueError, match="temperature"):
            loss(ONES, ONES, temperature=temperature)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.jensen_shannon(ONES, ONES, mixture=0.0), "mixture.*kullback_leibler"),
        (lambda: distillation.jensen_shannon(ONES, ONES, mixture=1.0), "mixture.*kullback_leibler"),
        (lambda: distillation.knowledge_distillation(ONES, ONES, jnp.zeros(2)), "labels must hold integers"),
        (lambda: distillation.knowledge_distillation(ONES, ONES, jnp.zeros(2, bool)), "labels must hold integers"),
        (lambda: distillation.knowledge_distillation(ONES, ONES, LABELS[:1]), "labels must have shape"),
        (lambda: distillation.knowledge_distillation(ONES, ONES, LABELS + 3), r"labels must be in \[0, 2\]"),
        (lambda: distillation.knowledge_distillation(ONES, ONES, LABELS - 1), r"labels must be in \[0, 2\]"),
        (lambda: distillation.knowledge_distillation(ONES, ONES, LABELS, soft_weight=1.1), "soft_weight"),
        (lambda: distillation.knowledge_distillation(ONES, ONES, LABELS, temperature=0), "temperature"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
