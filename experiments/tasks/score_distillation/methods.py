"""What moves the samples of the generator, by method."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import ml_collections
from jax import Array

from experiments.tasks import conditions
from experiments.tasks.conditions import Conditions
from mlfuncs import guidance, score_distillation, unlearning


class Noised(NamedTuple):
    """Samples of the generator at one level of noise each, and the frozen networks that look at them."""

    config: ml_collections.ConfigDict
    sample: Array  # [B, ...]
    noise: Array  # [B, ...]
    sigma: Array  # [B]
    given: Conditions  # under which the samples were drawn
    told: Conditions  # what the teacher is told instead
    nothing: Conditions
    keys: Array  # [B]
    teacher: Callable[..., Array]  # denoise(x, sigma, **conditions)
    critic: Callable[..., Array]
    guidance: Array

    @property
    def noised(self) -> Array:
        return self.sample + self._per_level(self.sigma) * self.noise

    def fixed(self) -> "Noised":
        """The same without a gradient to the samples, so that the frozen passes keep nothing for one."""
        return self._replace(sample=jax.lax.stop_gradient(self.sample))

    def real(self) -> Array:
        """The teacher's clean estimate, guided where the config has a condition."""
        if "condition" not in self.config:
            return self.teacher(self.noised, self.sigma, **self.told)
        return conditions.guided(self.teacher, self.told, self.nothing, self.guidance)(self.noised, self.sigma)

    def fake(self) -> Array:
        return self.critic(self.noised, self.sigma, **self.given)

    def score(self, denoised: Array) -> Array:
        return (denoised - self.noised) / self._per_level(self.sigma**2)

    def predicted_noise(self, denoised: Array) -> Array:
        return (self.noised - denoised) / self._per_level(self.sigma)

    def _per_level(self, value: Array) -> Array:
        return value.reshape(-1, *(1,) * (self.sample.ndim - 1))


def _matching(normalize: bool, at: Noised) -> Array:
    """Distribution matching, and without its denominator variational score distillation."""
    fixed = at.fixed()
    gradient = score_distillation.distribution_matching_gradient(
        fixed.sample, fixed.real(), fixed.fake(), normalize=normalize
    )
    return score_distillation.gradient_surrogate(at.sample, gradient)


def _guided_variational(at: Noised) -> Array:
    """Variational score distillation under a random guidance scale, the same for teacher and critic."""
    fixed, c = at.fixed(), at.config.distillation
    draw = partial(guidance.sample_guidance_scale, shape=(), low=c.lowest_guidance, high=c.highest_guidance)
    predictions = [
        fixed.predicted_noise(network(fixed.noised, fixed.sigma, **told))
        for network in (fixed.teacher, fixed.critic)
        for told in (fixed.told, fixed.nothing)
    ]
    gradient = score_distillation.guided_variational_gradient(*predictions, scale=jax.vmap(draw)(at.keys))
    return score_distillation.gradient_surrogate(at.sample, gradient)


def _entropic(at: Noised) -> Array:
    """Score distillation that keeps up the entropy over all conditions."""
    fixed = at.fixed()
    marginal = fixed.critic(fixed.noised, fixed.sigma, **fixed.nothing)
    gradient = score_distillation.entropic_score_gradient(
        *(fixed.score(denoised) for denoised in (fixed.real(), marginal, fixed.fake())),
        entropy_weight=at.config.distillation.entropy_weight,
        weight=fixed.sigma**2,  # differences of clean estimates, as in distribution matching
    )
    return score_distillation.gradient_surrogate(at.sample, gradient)


def _identity(at: Noised) -> Array:
    """Score identity distillation, whose gradient goes through the inputs of both networks."""
    alpha = at.config.distillation.alpha
    return score_distillation.score_identity_loss(at.sample, at.real(), at.fake(), alpha=alpha)


def _forgetting(at: Noised) -> Array:
    """Score identity distillation that forgets a class: on its samples the teacher is told another one."""
    c = at.config.forgetting
    return unlearning.score_forgetting_loss(
        at.sample,
        at.noise,
        at.sigma,
        at.given["labels"],
        at.told["labels"],
        at.given["labels"] == c.label,
        teacher=lambda x, sigma, labels: at.teacher(x, sigma, labels=labels),
        critic=lambda x, sigma, labels: at.critic(x, sigma, labels=labels),
        alpha=at.config.distillation.alpha,
        remain_coefficient=c.remain_coefficient,
        forget_coefficient=c.forget_coefficient,
    )


METHODS: dict[str, Callable[[Noised], Array]] = {
    "distribution_matching": partial(_matching, True),
    "entropic": _entropic,
    "forgetting": _forgetting,
    "guided_variational": _guided_variational,
    "identity": _identity,
    "variational": partial(_matching, False),
}
UNCONDITIONAL = ("entropic", "guided_variational")  # ask critic, or critic and teacher, without the condition
