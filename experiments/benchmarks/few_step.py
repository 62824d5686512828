"""Speed of few-step methods: each loss with its gradient against PyTorch, and samplers of few steps against many."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments import models
from experiments.benchmarks.consistency import NO_TORCH
from experiments.benchmarks.timing import Call, by_threads, over_ours, rounds_within, seconds_in_turns
from mlfuncs import consistency, diffusion, preference, score_distillation, unlearning

NETWORK = {  # 0.91 million parameters
    "name": "mlp",
    "width": 256,
    "depth": 4,
    "fourier_features": 64,
    "fourier_scale": 1.0,
    "norm": "scaling",
    "class_condition": True,
}
SHAPE, CLASSES, BATCH = (8, 8, 1), 10, 256
SECONDS = 6.0  # a comparison, about
ROUNDS = (5, 41)  # at least and at most
HEUN_STEPS, SECOND_LEVEL = 18, 0.821
SIGMA_DATA = 0.5  # the default of every function below
AGREEMENT = 1e-3  # largest difference between the two sides, relative to the largest gradient of a parameter

Denoiser = Callable[..., Array]  # (x [B, ...], sigma [B], labels [B] or none, sigma_to [B] or none) -> clean estimate


class Given(NamedTuple):
    """What a loss is evaluated on; the lower levels of a loss are fixed shares of `sigma`."""

    image: Any  # [B, ...]
    other: Any  # alike, the less preferred
    noise: Any  # alike, unit normal, as the next two
    other_noise: Any
    latent: Any
    sigma: Any  # [B]
    scale: Any  # [B] of guidance
    labels: Any  # [B], as the next two
    nothing: Any  # the label of no class
    forget: Any


def given() -> Given:
    draw = np.random.default_rng(0)
    image, other = (draw.uniform(-1, 1, (BATCH, *SHAPE)).astype(np.float32) for _ in range(2))
    noise, other_noise, latent = (draw.standard_normal((BATCH, *SHAPE), np.float32) for _ in range(3))
    sigma = np.exp(draw.uniform(-2, 2, BATCH)).astype(np.float32)
    scale = draw.uniform(0.5, 4, BATCH).astype(np.float32)
    labels = draw.integers(0, CLASSES, BATCH).astype(np.int32)
    nothing, forget = np.full_like(labels, -1), labels == 0
    return Given(image, other, noise, other_noise, latent, sigma, scale, labels, nothing, forget)


def _wide(value: Array) -> Array:
    return value.reshape(-1, *[1] * len(SHAPE))


def _generate(denoise: Denoiser, at: Given) -> Array:
    return score_distillation.one_step_generator(denoise)(at.latent, at.labels)


def trajectory_distillation(student: Denoiser, teacher: Denoiser, average: Denoiser, at: Given) -> Array:
    def jump(denoise: Denoiser) -> Callable[[Array, Array, Array], Array]:
        return lambda x, sigma, sigma_to: denoise(x, sigma, sigma_to=sigma_to)

    x = at.image + _wide(at.sigma) * at.noise
    return consistency.trajectory_distillation_loss(
        jump(student), teacher, x, at.sigma, 0.8 * at.sigma, 0.4 * at.sigma, teacher_predict=jump(average)
    )


def bootstrap_and_boundary(student: Denoiser, teacher: Denoiser, _: Denoiser, at: Given) -> Array:
    def signal(noise: Array, sigma: Array) -> Array:
        return student(_wide(sigma) * noise, sigma)

    losses = consistency.bootstrap_loss(signal, teacher, at.noise, at.sigma, 0.8 * at.sigma)
    return losses + consistency.bootstrap_boundary_loss(signal, teacher, at.noise)


def multi_step_consistency(student: Denoiser, teacher: Denoiser, _: Denoiser, at: Given) -> Array:
    return consistency.multi_step_consistency_loss(
        partial(student, labels=at.labels),
        partial(teacher, labels=at.labels),
        partial(teacher, labels=at.nothing),
        at.image + _wide(at.sigma) * at.noise,
        jnp.stack([at.sigma, 0.6 * at.sigma, 0.2 * at.sigma]),
        scale=7.5,
    )


def critic(student: Denoiser, _: Denoiser, generator: Denoiser, at: Given) -> Array:
    sample = _generate(generator, at)
    return score_distillation.denoising_score_loss(partial(student, labels=at.labels), sample, at.noise, at.sigma)


def _matching(normalize: bool, student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Given) -> Array:
    sample = _generate(student, at)
    fixed = jax.lax.stop_gradient(sample)
    noised = fixed + _wide(at.sigma) * at.noise
    real, fake = (network(noised, at.sigma, at.labels) for network in (teacher, critic))
    gradient = score_distillation.distribution_matching_gradient(fixed, real, fake, normalize=normalize)
    return score_distillation.gradient_surrogate(sample, gradient)


def guided_variational(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Given) -> Array:
    sample = _generate(student, at)
    noised = jax.lax.stop_gradient(sample) + _wide(at.sigma) * at.noise
    predictions = [
        (noised - network(noised, at.sigma, labels)) / _wide(at.sigma)
        for network in (teacher, critic)
        for labels in (at.labels, at.nothing)
    ]
    gradient = score_distillation.guided_variational_gradient(*predictions, scale=at.scale)
    return score_distillation.gradient_surrogate(sample, gradient)


def entropic(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Given) -> Array:
    sample = _generate(student, at)
    noised = jax.lax.stop_gradient(sample) + _wide(at.sigma) * at.noise
    calls = ((teacher, at.labels), (critic, at.nothing), (critic, at.labels))
    scores = [(network(noised, at.sigma, labels) - noised) / _wide(at.sigma**2) for network, labels in calls]
    gradient = score_distillation.entropic_score_gradient(*scores, weight=at.sigma**2)
    return score_distillation.gradient_surrogate(sample, gradient)


def identity(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Given) -> Array:
    sample = _generate(student, at)
    noised = sample + _wide(at.sigma) * at.noise
    real, fake = (network(noised, at.sigma, at.labels) for network in (teacher, critic))
    return score_distillation.score_identity_loss(sample, real, fake)


def forgetting(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Given) -> Array:
    return unlearning.score_forgetting_loss(
        _generate(student, at),
        at.noise,
        at.sigma,
        at.labels,
        unlearning.override_labels(at.labels, 0, override=1),
        at.forget,
        teacher=teacher,
        critic=critic,
    )


def pairwise_sample(student: Denoiser, reference: Denoiser, _: Denoiser, at: Given) -> Array:
    below = 0.4 * at.sigma

    def log_prob(denoise: Denoiser, picture: Array, noise: Array) -> Array:
        # The transition that took place: from the noised picture to a draw about the mean that the picture gives.
        x = picture + _wide(at.sigma) * noise
        taken = diffusion.ancestral_transition(x, picture, at.sigma, below)
        sample = taken["mean"] + _wide(taken["std"]) * at.latent
        normal = diffusion.ancestral_transition(x, denoise(x, at.sigma, at.labels), at.sigma, below)
        return diffusion.gaussian_log_prob(sample, **normal)

    pairs = ((at.image, at.noise), (at.other, at.other_noise))
    log_probs = [log_prob(network, *pair) for pair in pairs for network in (student, reference)]
    return preference.pairwise_sample_loss(*log_probs)


class Case(NamedTuple):
    name: str
    loss: Callable[[Denoiser, Denoiser, Denoiser, Any], Array]
    theirs: str  # in `experiments.benchmarks.torch_few_step`


CASES = (
    Case("trajectory distillation", trajectory_distillation, "trajectory_distillation"),
    Case("bootstrap and boundary", bootstrap_and_boundary, "bootstrap_and_boundary"),
    Case("multi-step consistency", multi_step_consistency, "multi_step_consistency"),
    Case("critic", critic, "critic"),
    Case("variational", partial(_matching, False), "variational"),
    Case("guided variational", guided_variational, "guided_variational"),
    Case("distribution matching", partial(_matching, True), "distribution_matching"),
    Case("entropic", entropic, "entropic"),
    Case("score identity", identity, "identity"),
    Case("score forgetting", forgetting, "forgetting"),
    Case("pairwise sample", pairwise_sample, "pairwise_sample"),
)


def network() -> tuple[Callable[..., Array], list[Any]]:
    """The raw network, and the parameters of the trained copy and of two frozen ones."""
    model = models.build(ml_collections.ConfigDict(NETWORK), example_shape=SHAPE, num_classes=CLASSES)

    def noisy(params: Any, size: float, key: Array) -> Any:
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        noise = [size * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, map(jnp.add, leaves, noise))

    # Layers that start at zero hide what comes before them. The copies are close, so that no ratio is clipped.
    first = jax.jit(model.init)(jax.random.key(0))
    teacher = noisy(first, 0.02, jax.random.key(1))
    copies = [noisy(teacher, 1e-3, jax.random.key(2)), teacher, noisy(teacher, 1e-3, jax.random.key(3))]
    return model.apply, copies


def denoiser(apply: Callable[..., Array], params: Any) -> Denoiser:
    """The network in EDM's preconditioning; a second level enters with the first, as the mean of both logarithms."""

    def denoise(x: Array, sigma: Array, labels: Array | None = None, sigma_to: Array | None = None) -> Array:
        def raw(x: Array, c_noise: Array) -> Array:
            if sigma_to is not None:
                c_noise = (c_noise + jnp.log(sigma_to) / 4) / 2
            return apply(params, x, c_noise, labels=labels)

        return diffusion.preconditioned_denoise(raw, x, sigma, sigma_data=SIGMA_DATA)

    return denoise


def ours(case: Case, apply: Callable[..., Array], copies: list[Any], at: Given) -> Call:
    """Compiled: the mean loss and its gradient in the parameters of the first copy."""

    def mean(params: Any, frozen: list[Any], at: Given) -> Array:
        student, teacher, other = (denoiser(apply, p) for p in (params, *frozen))
        return jnp.mean(case.loss(student, teacher, other, at))

    compiled = jax.jit(jax.value_and_grad(mean))
    arguments = jax.device_put((copies[0], copies[1:], at))
    return lambda: jax.block_until_ready(compiled(*arguments))


def theirs(case: Case, copies: list[Any], at: Given) -> Call:
    from experiments.benchmarks import torch_few_step

    return torch_few_step.call(case.theirs, NETWORK, copies, at)


def check_same(case: Case, here: Call, there: Call) -> None:
    """Both sides give one loss and one gradient."""
    from experiments.benchmarks import torch_networks

    loss, gradients = here()
    their_loss, their_gradients = there()
    pairs = zip(jax.tree.leaves(torch_networks.parameters(gradients)), their_gradients, strict=True)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients))
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    if not (np.isclose(loss, their_loss, rtol=AGREEMENT) and largest > 0 and apart <= AGREEMENT * largest):
        raise AssertionError(
            f"the two sides of {case.name} differ: loss {float(loss)} here, {float(their_loss)} in PyTorch; gradients by "
            f"{apart}, the largest is {largest}"
        )


def _losses(with_torch: bool) -> list[dict[str, Any]]:
    apply, copies = network()
    at = given()
    records: list[dict[str, Any]] = []
    for case in CASES:
        calls = {"ours": ours(case, apply, copies, at)}
        if with_torch:
            other = theirs(case, copies, at)
            check_same(case, calls["ours"], other)
            calls |= by_threads({"PyTorch": other})
        rounds = rounds_within(SECONDS, calls["ours"], least=ROUNDS[0], most=ROUNDS[1])
        records.append({"what": case.name, "batch": BATCH, **_columns(seconds_in_turns(calls, rounds=rounds))})
    if with_torch:
        ratios = [record["over ours"] for record in records]
        records.append({"what": "median of the losses", "over ours": float(np.median(ratios))})
    return records


def _columns(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median milliseconds of each side, and the fastest other side over ours: quartiles over the rounds."""
    columns = {f"{name} ms": 1000 * float(np.median(values)) for name, values in seconds.items()}
    return columns | over_ours(seconds)[1] if len(seconds) > 1 else columns


def samplers(apply: Callable[..., Array]) -> dict[str, Callable[[Any, Array], Array]]:
    """One compiled program each, (params, key) -> samples [B, ...], all of one network."""
    levels, shape = diffusion.karras_sigmas(HEUN_STEPS), (BATCH, *SHAPE)

    def heun(params: Any, key: Array) -> Array:
        return diffusion.sample_heun(denoiser(apply, params), levels[0] * jax.random.normal(key, shape), levels)

    def few(*sigmas: float) -> Callable[[Any, Array], Array]:
        def program(params: Any, key: Array) -> Array:
            jump = consistency.consistency_function(partial(apply, params), sigma_data=SIGMA_DATA)
            return consistency.multistep_sample(key, jump, shape, sigmas=sigmas)

        return program

    programs = {f"{HEUN_STEPS} steps of Heun": heun, "1 step": few(80.0), "2 steps": few(80.0, SECOND_LEVEL)}
    return {name: jax.jit(program) for name, program in programs.items()}


def _sampling() -> list[dict[str, Any]]:
    apply, copies = network()
    key = jax.random.key(0)

    def call(program: Callable[[Any, Array], Array]) -> Call:
        return lambda: jax.block_until_ready(program(copies[0], key))

    calls = {name: call(program) for name, program in samplers(apply).items()}
    first, *_ = calls.values()
    rounds = rounds_within(SECONDS, first, least=ROUNDS[0], most=ROUNDS[1])
    seconds = {name: float(np.median(values)) for name, values in seconds_in_turns(calls, rounds=rounds).items()}
    slowest = next(iter(seconds.values()))
    return [
        {
            "what": f"sampling, {name}",
            "batch": BATCH,
            "ours ms": 1000 * value,
            "images/s": BATCH / value,
            "over Heun": slowest / value,
        }
        for name, value in seconds.items()
    ]


def run() -> list[dict[str, Any]]:
    """A row a loss: milliseconds of each side and PyTorch's over ours; a row a sampler: images a second."""
    with_torch = importlib.util.find_spec("torch") is not None
    if not with_torch:
        print(NO_TORCH)
    return [*_losses(with_torch), *_sampling()]
