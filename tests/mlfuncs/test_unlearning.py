"""Score forgetting: labels, hand-worked losses, gradients against a closed form, who is moved by whom."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlfuncs import score_distillation, unlearning
from tests.mlfuncs.gaussians import fisher_divergence, quadrature, shrinkage

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
LABELS = jnp.array([0, 1, 2, 0, 3])


# --- labels


def test_override_by_hand():
    np.testing.assert_array_equal(unlearning.override_labels(LABELS, 0, override=1), [1, 1, 2, 1, 3])
    np.testing.assert_array_equal(unlearning.override_labels(LABELS, 2, override=0), [0, 1, 0, 0, 3])
    np.testing.assert_array_equal(unlearning.override_labels(LABELS, 7, override=0), LABELS)
    each = unlearning.override_labels(LABELS, 0, override=jnp.array([3, 1, 1, 2, 1]))
    np.testing.assert_array_equal(each, [3, 1, 2, 2, 3])
    assert unlearning.override_labels(LABELS.astype(jnp.uint8), 0, override=1).dtype == jnp.uint8
    traced = jax.jit(lambda labels, forget, to: unlearning.override_labels(labels, forget, override=to))
    np.testing.assert_array_equal(traced(LABELS, 0, 1), [1, 1, 2, 1, 3])
    assert unlearning.override_labels(jnp.zeros(0, jnp.int32), 0, override=1).shape == (0,)


@pytest.mark.parametrize("forget", [0, 4, 9])
def test_random_overrides_are_uniform_over_the_other_classes(forget):
    """The forgotten class never, each other one at its share; also where the last class is the forgotten one."""
    num = 90_000
    drawn = np.asarray(unlearning.sample_override_labels(KEY, jnp.full(num, forget), forget, num_classes=10))
    counts = np.bincount(drawn, minlength=10)
    assert counts[forget] == 0
    assert counts.sum() == num
    # 9 binomials with standard deviation sqrt(n p q): one beyond 6 of them has probability below 2e-8.
    spread = np.sqrt(num / 9 * 8 / 9)
    assert np.abs(np.delete(counts, forget) - num / 9).max() < 6 * spread


def test_random_overrides_keep_the_other_labels():
    labels = jnp.arange(1000) % 11  # 10 is outside the classes: a null label
    drawn = unlearning.sample_override_labels(KEY, labels, 3, num_classes=10)
    np.testing.assert_array_equal(drawn[labels != 3], labels[labels != 3])
    assert drawn.dtype == labels.dtype
    two = unlearning.sample_override_labels(KEY, jnp.array([0, 1, 0, 1]), 0, num_classes=2)
    np.testing.assert_array_equal(two, [1, 1, 1, 1])
    assert unlearning.sample_override_labels(KEY, labels.astype(jnp.int8), 3, num_classes=10).dtype == jnp.int8


def test_a_random_override_depends_on_key_and_position_alone():
    labels = jnp.zeros(64, jnp.int32)
    drawn = unlearning.sample_override_labels(KEY, labels, 0, num_classes=10)
    np.testing.assert_array_equal(unlearning.sample_override_labels(KEY, labels[:7], 0, num_classes=10), drawn[:7])
    others = unlearning.sample_override_labels(KEY, labels.at[0].set(5), 0, num_classes=10)
    np.testing.assert_array_equal(others[1:], drawn[1:])
    assert not np.array_equal(unlearning.sample_override_labels(jax.random.key(1), labels, 0, num_classes=10), drawn)
    traced = jax.jit(lambda labels, forget: unlearning.sample_override_labels(KEY, labels, forget, num_classes=10))
    np.testing.assert_array_equal(traced(labels, 0), drawn)
    np.testing.assert_array_equal(traced(jax.device_put(labels, NamedSharding(MESH, P("data"))), 0), drawn)


def test_random_overrides_over_devices_are_those_of_one():
    labels = jnp.arange(64) % 3
    expected = unlearning.sample_override_labels(KEY, labels, 0, num_classes=10)
    function = partial(unlearning.sample_override_labels, KEY, forget_label=0, num_classes=10, axis_name="data")
    sharded = jax.jit(jax.shard_map(function, mesh=MESH, in_specs=(P("data"),), out_specs=P("data")))(labels)
    np.testing.assert_array_equal(sharded, expected)
    mapped = jax.pmap(function, axis_name="data")(labels.reshape(8, 8))
    np.testing.assert_array_equal(mapped.reshape(-1), expected)


# --- the loss


def shifted(scale):
    """D(x, sigma, c) = scale x / (1 + sigma^2) + c."""
    return lambda x, sigma, labels: scale * x / (1 + sigma**2)[:, None] + labels[:, None]


def test_forgetting_by_hand():
    sample, noise = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
    arguments = (sample, noise, jnp.array([1.0, 2.0]), jnp.array([2, 0]), jnp.array([2, 1]), jnp.array([False, True]))
    loss = unlearning.score_forgetting_loss(*arguments, teacher=shifted(2.0), critic=shifted(1.0), alpha=1.0)
    # Example 1, kept: x_t (2, 1), r = (4, 3), f = (3, 2.5); r - f = (1, 0.5), f - x = (2, 2.5), mean|r - x| = 3.
    # Example 2, told 1 and 0: x_t (2, 2), r = (1.8, 1.8), f = (0.4, 0.4); r - f = 1.4, f - x = (0.4, -1.6), mean 1.
    np.testing.assert_allclose(loss, [(2 + 1.25) / 3, 0.01 * 1.4 * (0.4 - 1.6) / 1.0], rtol=1e-5)
    weighed = unlearning.score_forgetting_loss(
        *arguments, teacher=shifted(2.0), critic=shifted(1.0), alpha=1.0, remain_coefficient=0.0, forget_coefficient=1.0
    )
    np.testing.assert_allclose(weighed, [0, 1.4 * (0.4 - 1.6)], rtol=1e-5)


def random_arguments(batch=8):
    sample, noise = jax.random.normal(KEY, (2, batch, 3))
    labels = jnp.arange(batch) % 4
    forget = labels == 0
    teacher_labels = unlearning.override_labels(labels, 0, override=1)
    return sample, noise, jnp.linspace(0.3, 3.0, batch), labels, teacher_labels, forget


def test_without_forgetting_it_is_score_identity_distillation():
    sample, noise, sigma, labels, _, _ = random_arguments()
    x_t = sample + sigma[:, None] * noise
    real, fake = shifted(0.6)(x_t, sigma, labels), shifted(0.4)(x_t, sigma, labels)
    expected = score_distillation.score_identity_loss(sample, real, fake)
    loss = partial(unlearning.score_forgetting_loss, sample, noise, sigma, labels, labels)
    networks = {"teacher": shifted(0.6), "critic": shifted(0.4)}
    np.testing.assert_allclose(loss(jnp.zeros(8, bool), **networks), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(jnp.ones(8, bool), **networks), 0.01 * expected, rtol=1e-6)


def affine(means, factors, sigma):
    """The exact denoiser, at one level, of classes N(means[c], factors[c] factors[c]^T)."""
    matrices = jnp.stack([jnp.asarray(shrinkage(np.asarray(f @ f.T), sigma), jnp.float32) for f in factors])

    def denoise(x, level, labels):
        return means[labels] + jnp.einsum("nij,nj->ni", matrices[labels], x - means[labels])

    return denoise


TEACHER_MEANS = jnp.array([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]])
TEACHER_FACTORS = jnp.array([[[1.0, 0.2], [0.0, 0.7]], [[0.5, 0.0], [0.3, 0.9]], [[0.8, -0.4], [0.1, 0.6]]])
MEANS = jnp.array([[1.0, 0.5], [0.3, -0.8], [-1.0, 0.2]])
FACTORS = jnp.array([[[0.6, 0.1], [-0.3, 0.5]], [[0.9, 0.2], [0.0, 0.4]], [[0.5, -0.1], [0.2, 0.7]]])
POINTS, WEIGHTS = quadrature(4)


def batch_of(classes):
    """Latents, noise, weights and labels: the quadrature for each class in turn."""
    labels = jnp.repeat(jnp.asarray(classes), len(POINTS))
    points = jnp.tile(POINTS, (len(classes), 1))
    return points[:, :2], points[:, 2:], jnp.tile(WEIGHTS, len(classes)), labels


def draw(means, factors, z, labels):
    return means[labels] + jnp.einsum("nij,nj->ni", factors[labels], z)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_gradient_is_that_of_the_divergence_from_the_safe_class(alpha, sigma):
    """Half the gradient of the Fisher divergence between generator and teacher, both of a class kept; for the class to
    forget, between the generator under its label and the teacher under the safe one (less (alpha - 1/2) times the part
    without the critic)."""
    z, noise, weights, labels = batch_of([0, 1, 2])
    safe = unlearning.override_labels(labels, 0, override=2)
    teacher, critic = affine(TEACHER_MEANS, TEACHER_FACTORS, sigma), affine(MEANS, FACTORS, sigma)

    # A constant denominator: every sample is far from every estimate in the added third value, which they agree on.
    far = 1e6

    def padded(denoise):
        return lambda x, level, c: jnp.concatenate([denoise(x[:, :2], level, c), jnp.zeros_like(x[:, 2:])], axis=1)

    def loss(means, factors):
        x = draw(means, factors, z, labels)
        losses = unlearning.score_forgetting_loss(
            jnp.concatenate([x, jnp.full((len(x), 1), far)], axis=1),
            jnp.concatenate([noise, jnp.zeros((len(x), 1))], axis=1),
            jnp.full(len(x), sigma), labels, safe, labels == 0,
            teacher=padded(teacher), critic=padded(critic), alpha=alpha, forget_coefficient=0.25,
        )  # fmt: skip
        return weights @ (losses * far / 3)

    ours = jax.grad(loss, argnums=(0, 1))(MEANS, FACTORS)
    for kept, target, coefficient in ((0, 2, 0.25), (1, 1, 1.0), (2, 2, 1.0)):
        covariance = np.asarray(TEACHER_FACTORS[target] @ TEACHER_FACTORS[target].T)
        data = (TEACHER_MEANS[target], covariance, sigma)
        own = (MEANS[kept], FACTORS[kept])
        whole = jax.grad(lambda m, f, d=data: fisher_divergence(m, f, *d), argnums=(0, 1))(*own)
        frozen = jax.grad(lambda m, f, d=data, o=own: fisher_divergence(m, f, *d, critic=o), argnums=(0, 1))(*own)
        for got, w, f in zip(ours, whole, frozen, strict=True):
            expected = coefficient * (w / 2 - (alpha - 0.5) * f)
            np.testing.assert_allclose(got[kept], expected, rtol=2e-3, atol=2e-3 * float(jnp.abs(expected).max()))


def test_the_forgotten_label_ends_at_the_safe_class_and_the_others_stay():
    """Exact critics, descent on means and spreads of three one-dimensional classes: 0 is forgotten, 1 is safe."""
    points, weights = quadrature(2, nodes=8)
    labels = jnp.repeat(jnp.arange(3), len(points))
    z, noise, weights = (jnp.tile(a, 3) for a in (points[:, 0], points[:, 1], weights))
    sigma = 1.0
    target_mean, target_spread = jnp.array([3.0, -1.0, 1.0]), jnp.array([0.5, 0.8, 1.2])
    safe = unlearning.override_labels(labels, 0, override=1)

    def exact(means, spreads):
        shrink = spreads**2 / (spreads**2 + sigma**2)
        return lambda x, level, c: (means[c] + shrink[c] * (x[:, 0] - means[c]))[:, None]

    def step(state, _):
        def loss(means, spreads):
            losses = unlearning.score_forgetting_loss(
                (means[labels] + spreads[labels] * z)[:, None], noise[:, None], jnp.full(len(z), sigma),
                labels, safe, labels == 0, teacher=exact(target_mean, target_spread), critic=exact(means, spreads),
                alpha=1.0, forget_coefficient=1.0,
            )  # fmt: skip
            return weights @ losses

        gradients = jax.grad(loss, argnums=(0, 1))(*state)
        # An example that the teacher leaves where it is has a huge weight: unclipped, rounding decides where one start in
        # six ends.
        return jax.tree.map(lambda p, g: p - 0.1 * jnp.clip(g, -1, 1), state, gradients), None

    start = (target_mean + 0.3, target_spread * 0.9)
    (means, spreads), _ = jax.jit(lambda s: jax.lax.scan(step, s, None, length=2000))(start)
    np.testing.assert_allclose(means, target_mean[jnp.array([1, 1, 2])], atol=5e-3)
    np.testing.assert_allclose(spreads, target_spread[jnp.array([1, 1, 2])], atol=5e-3)


# --- who is moved by whom


def network(params, x, sigma, labels):
    return jnp.tanh(x @ params["w"] + params["b"][labels] / (1 + sigma[:, None]))


def three_networks():
    keys = jax.random.split(KEY, 3)
    make = lambda k: {"w": jax.random.normal(k, (3, 3)), "b": jax.random.normal(k, (4, 3))}  # noqa: E731
    return {name: make(k) for name, k in zip(("generator", "teacher", "critic"), keys, strict=True)}


def generator_loss(params, wrap=lambda f: f):
    z, noise, sigma, labels, safe, forget = random_arguments()
    sample = score_distillation.one_step_generator(partial(network, params["generator"]))(z, labels)
    return unlearning.score_forgetting_loss(
        sample, noise, sigma, labels, safe, forget,
        teacher=wrap(partial(network, params["teacher"])), critic=wrap(partial(network, params["critic"])),
    ).mean()  # fmt: skip


def critic_loss(params):
    z, noise, sigma, labels, _, forget = random_arguments()
    sample = score_distillation.one_step_generator(partial(network, params["generator"]))(z, labels)
    losses = score_distillation.denoising_score_loss(
        lambda x, s: network(params["critic"], x, s, labels), sample, noise, sigma
    )
    return jnp.mean(jnp.where(forget, 0.01, 1.0) * losses)


def moved(tree):
    return any(float(jnp.abs(leaf).max()) > 1e-6 for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("loss", "learner", "listens_to"),
    [
        (generator_loss, "generator", {"generator", "teacher", "critic"}),
        (critic_loss, "critic", {"generator", "critic"}),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_reach_the_learner_alone_and_depend_on_the_others(loss, learner, listens_to, compiled):
    params = three_networks()
    gradient = jax.jit(jax.grad(loss)) if compiled else jax.grad(loss)
    gradients = gradient(params)
    for name in params:
        assert moved(gradients[name]) == (name == learner), name
    for name in params:
        perturbed = {**params, name: jax.tree.map(lambda leaf: leaf + 0.1, params[name])}
        change = jax.tree.map(lambda a, b: a - b, gradient(perturbed)[learner], gradients[learner])
        assert moved(change) == (name in listens_to), name


def test_gradient_passes_through_the_inputs_of_both_networks():
    """Equal to that of the loss written out, and not to that with the estimates held fixed."""
    params = three_networks()
    z, noise, sigma, labels, safe, forget = random_arguments()

    def written_out(params, held=lambda a: a):
        sample = network(params["generator"], 2.5 * z, jnp.full(8, 2.5), labels)
        x_t = sample + sigma[:, None] * noise
        real = held(network(params["teacher"], x_t, sigma, safe))
        fake = held(network(params["critic"], x_t, sigma, labels))
        losses = score_distillation.score_identity_loss(sample, real, fake)
        return jnp.mean(jnp.where(forget, 0.01, 1.0) * losses)

    ours = jax.grad(generator_loss)(params)["generator"]
    for name, gradient in jax.grad(written_out)(params)["generator"].items():
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-4, atol=1e-6)
    fixed = jax.grad(lambda p: written_out(p, jax.lax.stop_gradient))(params)["generator"]
    assert moved(jax.tree.map(lambda a, b: a - b, ours, fixed))


@pytest.mark.parametrize(
    "wrap", [jax.checkpoint, jax.jit, lambda f: lambda *a: f(*a).astype(jnp.float16)], ids=["checkpoint", "jit", "half"]
)
def test_networks_may_be_wrapped(wrap):
    params = three_networks()
    expected = jax.grad(generator_loss)(params)
    gradients = jax.jit(jax.grad(partial(generator_loss, wrap=wrap)))(params)
    assert not moved(gradients["teacher"])
    assert not moved(gradients["critic"])
    for name, gradient in gradients["generator"].items():
        np.testing.assert_allclose(gradient, expected["generator"][name], rtol=0.05, atol=2e-3)


def test_a_network_whose_parameters_were_replaced_is_looked_at_anew():
    """The same callable object, with other parameters inside: nothing of the first call is kept."""

    class Model:
        scale = 1.0

        def __call__(self, x, sigma, labels):
            return self.scale * x

    model, arguments = Model(), random_arguments()
    first = unlearning.score_forgetting_loss(*arguments, teacher=model, critic=shifted(0.4))
    model.scale = 3.0
    second = unlearning.score_forgetting_loss(*arguments, teacher=model, critic=shifted(0.4))
    fresh = unlearning.score_forgetting_loss(*arguments, teacher=lambda x, s, c: 3.0 * x, critic=shifted(0.4))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(second, fresh)


# --- transformations, edges, bad input


def test_compiled_mapped_sharded_and_in_half_precision():
    params, arguments = three_networks(), random_arguments(16)
    networks = {name: partial(network, params[name]) for name in ("teacher", "critic")}
    loss = partial(unlearning.score_forgetting_loss, **networks)
    expected = loss(*arguments)
    assert expected.shape == (16,)
    assert expected.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(loss)(*arguments), expected, rtol=1e-5, atol=1e-6)
    sharded = jax.device_put(arguments, NamedSharding(MESH, P("data")))
    np.testing.assert_allclose(jax.jit(loss)(*sharded), expected, rtol=1e-5, atol=1e-6)
    mapped = jax.jit(jax.shard_map(loss, mesh=MESH, in_specs=(P("data"),) * 6, out_specs=P("data")))(*arguments)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-6)
    one_by_one = jax.vmap(loss)(*[a[:, None] for a in arguments])
    np.testing.assert_allclose(one_by_one[:, 0], expected, rtol=1e-5, atol=1e-6)
    single = loss(*[a[3:4] for a in arguments])
    np.testing.assert_allclose(single, expected[3:4], rtol=1e-5, atol=1e-6)
    half = (arguments[0].astype(jnp.bfloat16), *arguments[1:])
    assert loss(*half).dtype == jnp.float32


def test_coefficients_may_change_without_a_new_program():
    traces = []
    arguments = random_arguments()

    @jax.jit
    def loss(coefficient, alpha):
        traces.append(None)
        return unlearning.score_forgetting_loss(
            *arguments, teacher=shifted(0.6), critic=shifted(0.4), alpha=alpha, forget_coefficient=coefficient
        )

    first, second = loss(0.0, 1.2), loss(0.5, 1.2)
    loss(0.5, 1.0)
    assert len(traces) == 1
    np.testing.assert_array_equal(first[arguments[-1]], np.zeros(2))
    np.testing.assert_array_equal(first[~arguments[-1]], second[~arguments[-1]])


def test_edges_have_finite_gradients_and_nan_stays_in_its_example():
    arguments = random_arguments()
    identity = lambda x, sigma, labels: x  # noqa: E731
    zeros = jnp.zeros_like(arguments[0])

    def loss(x):
        networks = {"teacher": identity, "critic": identity}
        return unlearning.score_forgetting_loss(x, zeros, *arguments[2:], **networks).sum()

    np.testing.assert_array_equal(jax.grad(loss)(arguments[0]), zeros)
    poisoned = arguments[0].at[2, 1].set(jnp.nan)
    losses = unlearning.score_forgetting_loss(poisoned, *arguments[1:], teacher=shifted(0.6), critic=shifted(0.4))
    np.testing.assert_array_equal(np.isnan(losses), np.arange(8) == 2)


def call(**changes):
    names = ("sample", "noise", "sigma", "labels", "teacher_labels", "forget")
    arguments = {**dict(zip(names, random_arguments(), strict=True)), **changes}
    networks = {"teacher": shifted(0.6), "critic": shifted(0.4)}
    return unlearning.score_forgetting_loss(**{**networks, **arguments})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sample": jnp.ones((8, 2))}, "sample and noise"),
        ({"sample": 1.0, "noise": 1.0}, "sample"),
        ({"sigma": 1.0}, "sigma"),
        ({"sigma": jnp.ones(7)}, "sigma"),
        ({"sigma": jnp.zeros(8)}, "sigma"),
        ({"labels": jnp.ones(8)}, "labels"),
        ({"labels": jnp.ones((8, 1), jnp.int32)}, "labels"),
        ({"teacher_labels": jnp.ones(8)}, "teacher_labels"),
        ({"teacher_labels": jnp.ones(7, jnp.int32)}, "teacher_labels"),
        ({"forget": jnp.ones(8)}, "forget"),
        ({"forget": True}, "forget"),
        ({"remain_coefficient": -1.0}, "remain_coefficient"),
        ({"forget_coefficient": -0.1}, "forget_coefficient"),
        ({"forget_coefficient": jnp.ones(8)}, "forget_coefficient"),
        ({"alpha": jnp.ones(3)}, "alpha"),
        ({"teacher": lambda x, s, c: x[:, :1]}, "teacher"),
        ({"critic": lambda x, s, c: x[:4]}, "critic"),
    ],
)
def test_bad_input_of_the_loss(changes, match):
    with pytest.raises(ValueError, match=match):
        call(**changes)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: unlearning.override_labels(LABELS.astype(jnp.float32), 0, override=1), "labels"),
        (lambda: unlearning.override_labels(LABELS[:, None], 0, override=1), "labels"),
        (lambda: unlearning.override_labels(LABELS, 0.0, override=1), "forget_label"),
        (lambda: unlearning.override_labels(LABELS, LABELS, override=1), "forget_label"),
        (lambda: unlearning.override_labels(LABELS, 0, override=0), "override"),
        (lambda: unlearning.override_labels(LABELS, 0, override=1.0), "override"),
        (lambda: unlearning.override_labels(LABELS, 0, override=LABELS), "override"),
        (lambda: unlearning.override_labels(LABELS, 0, override=jnp.array([1, 2])), "override"),
        (lambda: unlearning.sample_override_labels(KEY, LABELS > 0, 0, num_classes=4), "labels"),
        (lambda: unlearning.sample_override_labels(KEY, 0, 0, num_classes=4), "labels"),
        (lambda: unlearning.sample_override_labels(KEY, LABELS, 4, num_classes=4), "forget_label"),
        (lambda: unlearning.sample_override_labels(KEY, LABELS, -1, num_classes=4), "forget_label"),
        (lambda: unlearning.sample_override_labels(KEY, LABELS, 0, num_classes=1), "num_classes"),
        (lambda: unlearning.sample_override_labels(KEY, LABELS, 0, num_classes=2.5), "num_classes"),
    ],
)
def test_bad_labels(bad, match):
    with pytest.raises(ValueError, match=match):
        bad()
