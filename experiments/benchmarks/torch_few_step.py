"""The losses of few-step methods in plain PyTorch, on the parameters of the JAX networks.

What is frozen runs without a graph, so that neither side keeps anything for a gradient that nobody asks for.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import ml_collections
import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmarks import torch_networks

Tensor: TypeAlias = torch.Tensor
Denoiser = Callable[..., Tensor]  # (x, sigma, labels or none, sigma_to or none) -> clean estimate
SIGMA_DATA, SIGMA_MIN, SIGMA_MAX, SIGMA_INIT = 0.5, 0.002, 80.0, 2.5


def _wide(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def _total(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def denoiser(network: torch_networks.Network, params: torch_networks.Params) -> Denoiser:
    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = None, sigma_to: Tensor | None = None) -> Tensor:
        c_noise = torch.log(sigma) / 4
        if sigma_to is not None:
            c_noise = (c_noise + torch.log(sigma_to) / 4) / 2
        s = _wide(sigma)
        scale = torch.sqrt(s**2 + SIGMA_DATA**2)
        return (SIGMA_DATA / scale) ** 2 * x + s * SIGMA_DATA / scale * network(params, x / scale, c_noise, labels)

    return denoise


def _generate(denoise: Denoiser, at: Any) -> Tensor:
    return denoise(SIGMA_INIT * at.latent, torch.full_like(at.sigma, SIGMA_INIT), at.labels)


def _surrogate(sample: Tensor, gradient: Tensor) -> Tensor:
    return 0.5 * _total((sample - (sample - gradient).detach()) ** 2)


def trajectory_distillation(student: Denoiser, teacher: Denoiser, average: Denoiser, at: Any) -> Tensor:
    sigma, middle, low = at.sigma, 0.8 * at.sigma, 0.4 * at.sigma
    last = torch.full_like(sigma, SIGMA_MIN)

    def jump(denoise: Denoiser, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        ratio = _wide(end / start)
        return ratio * x + (1 - ratio) * denoise(x, start, sigma_to=end)

    x = at.image + _wide(sigma) * at.noise
    with torch.no_grad():
        slope = (x - teacher(x, sigma)) / _wide(sigma)
        euler = x + _wide(middle - sigma) * slope
        slope_next = (euler - teacher(euler, middle)) / _wide(middle)
        heun = x + _wide(middle - sigma) * (slope + slope_next) / 2
        target = jump(average, jump(average, heun, middle, low), low, last)
    estimate = jump(average, jump(student, x, sigma, low), low, last)
    return _mean((estimate - target) ** 2)


def bootstrap_and_boundary(student: Denoiser, teacher: Denoiser, _: Denoiser, at: Any) -> Tensor:
    def signal(sigma: Tensor) -> Tensor:
        return student(_wide(sigma) * at.noise, sigma)

    ratio, top = 0.8, torch.full_like(at.sigma, SIGMA_MAX)
    with torch.no_grad():
        here = signal(at.sigma)
        denoised = teacher(here + _wide(at.sigma) * at.noise, at.sigma)
        target = denoised + ratio * (here - denoised)
        start = teacher(SIGMA_MAX * at.noise, top)
    losses = _mean((signal(ratio * at.sigma) - target) ** 2) / (1 - ratio) ** 2
    return losses + _mean((signal(top) - start) ** 2)


def multi_step_consistency(student: Denoiser, teacher: Denoiser, _: Denoiser, at: Any) -> Tensor:
    levels = (at.sigma, 0.6 * at.sigma, 0.2 * at.sigma)
    start = at.image + _wide(at.sigma) * at.noise
    x = start
    with torch.no_grad():
        for sigma, sigma_next in itertools.pairwise(levels):
            negative = teacher(x, sigma, at.nothing)
            guided = negative + 7.5 * (teacher(x, sigma, at.labels) - negative)
            x = guided + _wide(sigma_next / sigma) * (x - guided)
        target = x + _wide(levels[-1] / (levels[0] - levels[-1])) * (x - start)
    return _mean((student(start, at.sigma, at.labels) - target) ** 2)


def critic(student: Denoiser, _: Denoiser, generator: Denoiser, at: Any) -> Tensor:
    with torch.no_grad():
        sample = _generate(generator, at)
    weight = at.sigma**-2 + SIGMA_DATA**-2
    denoised = student(sample + _wide(at.sigma) * at.noise, at.sigma, at.labels)
    return weight * _mean((denoised - sample) ** 2)


def _matching(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Any, *, normalize: bool) -> Tensor:
    sample = _generate(student, at)
    with torch.no_grad():
        noised = sample + _wide(at.sigma) * at.noise
        real = teacher(noised, at.sigma, at.labels)
        gradient = critic(noised, at.sigma, at.labels) - real
        if normalize:
            gradient = gradient / _wide(_mean((sample - real).abs()))
    return _surrogate(sample, gradient)


def variational(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Any) -> Tensor:
    return _matching(student, teacher, critic, at, normalize=False)


def distribution_matching(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Any) -> Tensor:
    return _matching(student, teacher, critic, at, normalize=True)


def guided_variational(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Any) -> Tensor:
    sample = _generate(student, at)
    with torch.no_grad():
        noised, kappa = sample + _wide(at.sigma) * at.noise, _wide(at.scale)

        def predicted(denoise: Denoiser) -> Tensor:
            positive, negative = (denoise(noised, at.sigma, labels) for labels in (at.labels, at.nothing))
            return (noised - (1 - kappa) * negative - kappa * positive) / _wide(at.sigma)

        gradient = predicted(teacher) - predicted(critic)
    return _surrogate(sample, gradient)


def entropic(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Any) -> Tensor:
    sample = _generate(student, at)
    with torch.no_grad():
        noised, squared = sample + _wide(at.sigma) * at.noise, _wide(at.sigma**2)
        calls = ((teacher, at.labels), (critic, at.nothing), (critic, at.labels))
        real, marginal, conditional = ((d(noised, at.sigma, labels) - noised) / squared for d, labels in calls)
        gradient = -squared * (real - 0.5 * marginal - 0.5 * conditional)
    return _surrogate(sample, gradient)


def _score_identity(sample: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    difference = real - fake
    with torch.no_grad():
        scale = _mean((real - sample).abs()).clamp(min=1e-5)
    return _total(difference * ((real - sample) - 1.2 * difference)) / scale


def identity(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Any) -> Tensor:
    sample = _generate(student, at)
    noised = sample + _wide(at.sigma) * at.noise
    return _score_identity(sample, teacher(noised, at.sigma, at.labels), critic(noised, at.sigma, at.labels))


def forgetting(student: Denoiser, teacher: Denoiser, critic: Denoiser, at: Any) -> Tensor:
    told = torch.where(at.labels == 0, 1, at.labels)
    sample = _generate(student, at)
    noised = sample + _wide(at.sigma) * at.noise
    losses = _score_identity(sample, teacher(noised, at.sigma, told), critic(noised, at.sigma, at.labels))
    return torch.where(at.forget, 0.01, 1.0) * losses


def pairwise_sample(student: Denoiser, reference: Denoiser, _: Denoiser, at: Any) -> Tensor:
    ratio, bounds = 0.4, (math.log(0.9), math.log(1.1))
    std = ratio * at.sigma * math.sqrt(1 - ratio**2)

    def log_ratio(picture: Tensor, noise: Tensor) -> Tensor:
        x = picture + _wide(at.sigma) * noise
        sample = picture + ratio**2 * (x - picture) + _wide(std) * at.latent

        def log_prob(denoise: Denoiser) -> Tensor:
            denoised = denoise(x, at.sigma, at.labels)
            mean = denoised + ratio**2 * (x - denoised)
            return -_mean(((sample - mean) / _wide(std)) ** 2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2

        with torch.no_grad():
            frozen = log_prob(reference)
        return (log_prob(student) - frozen).clamp(*bounds)

    margin = log_ratio(at.image, at.noise) - log_ratio(at.other, at.other_noise)
    return -F.logsigmoid(50 * margin)


def call(name: str, settings: Mapping[str, Any], copies: list[Any], at: Any) -> Callable[[], Any]:
    """A call of the mean of the loss and its gradients in the first copy's parameters."""
    network = torch_networks.NETWORKS[settings["name"]](ml_collections.ConfigDict(settings))
    trained, *frozen = map(torch_networks.parameters, copies)
    leaves = jax.tree.leaves(trained)
    for leaf in leaves:
        leaf.requires_grad_()
    networks = [denoiser(network, params) for params in (trained, *frozen)]
    tensors = type(at)(*(torch.from_numpy(np.array(value)) for value in at))
    loss_of = globals()[name]

    def result() -> Any:
        for leaf in leaves:
            leaf.grad = None
        loss = loss_of(*networks, tensors).mean()
        loss.backward()
        # A part that a loss leaves out, such as the classes, has no gradient here and a zero one in JAX.
        return loss.detach(), [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]

    return result
