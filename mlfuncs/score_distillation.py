"""One-step generators learned from scores: what moves their samples, and what trains the critic that follows them.

Throughout, a *teacher* is a frozen diffusion model of the data, a *critic* ("fake score") one that is trained on the
samples of the generator, and a gradient is what descent subtracts from a sample.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks, diffusion
from mlfuncs._arrays import as_float, expand_like, per_example_axes
from mlfuncs.guidance import classifier_free_guidance

Generator = Callable[..., Array]  # (noise [B, ...], labels [B] or none) -> samples like noise

__all__ = [
    "backtracking_index",
    "denoising_score_loss",
    "distribution_matching_gradient",
    "entropic_score_gradient",
    "gradient_surrogate",
    "guided_variational_gradient",
    "one_step_generator",
    "score_identity_loss",
    "score_mismatch",
    "select_checkpoint",
]


def _alike(first_name: str, first: ArrayLike, **others: ArrayLike) -> None:
    _checks.batched(first_name, first)
    for name, other in others.items():
        _checks.same_shape(first_name, first, name, other)


def _factor(name: str, value: ArrayLike, x: Array) -> Array:
    """A scalar or [B] factor of `x` [B, ...]."""
    _checks.scalar_or_per_example(name, value, x.shape[0])
    return expand_like(as_float(value), x)


def gradient_surrogate(sample: ArrayLike, gradient: ArrayLike) -> Array:
    r"""A loss with a prescribed gradient, :math:`\tfrac12 \| x - \mathrm{sg}[x - g] \|_2^2`.

    Its derivative in the sample is exactly g, so that `jax.grad` of its mean carries any of the gradients of this room
    through a generator. Its value, half the squared norm of g, means nothing: it need not fall while the generator
    improves, and must not be used to compare steps or models.

    The sum runs over the values of an example. Code that averages over them instead, as the authors' does, has a
    gradient smaller by the number of values: mind it when taking over learning rates.

    Args:
      sample: [B, ...] x, what the gradient is applied to: the generator's samples, or noised ones (then the chain rule
        adds the factor of their signal).
      gradient: g, like `sample`; nothing is differentiated through it.

    Returns:
      [B] values, in at least float32.

    Raises:
      ValueError: shapes that differ, or no batch axis.

    References:
      Poole et al., DreamFusion, arXiv:2209.14988; Yin et al., arXiv:2311.18828.
    """
    _alike("sample", sample, gradient=gradient)
    x, g = as_float(sample), jax.lax.stop_gradient(as_float(gradient))
    # Zero, but for its derivative: x - (x - g) would round g to the digits of x.
    residual = (x - jax.lax.stop_gradient(x)) + g
    return jnp.sum(residual**2, axis=per_example_axes(x)) / 2


def distribution_matching_gradient(
    sample: ArrayLike,
    real_denoised: ArrayLike,
    fake_denoised: ArrayLike,
    *,
    normalize: bool = True,
    eps: ArrayLike = 1e-8,
) -> Array:
    r"""Gradient of distribution matching, :math:`(D_{fake} - D_{real}) \,/\, \overline{|x - D_{real}|}`.

    With :math:`D = x_t + \sigma^2 s` the numerator is :math:`\sigma^2 (s_{fake} - s_{real})`: with exact scores
    :math:`\sigma^2` times the gradient of KL(generator || data), both noised to level :math:`\sigma`. Descent moves a
    sample by real minus fake. The denominator, a mean over the values of an example, makes levels comparable.

    Args:
      sample: [B, ...] clean samples x of the generator.
      real_denoised: like `sample`, the teacher's clean estimate of the noised samples.
      fake_denoised: like `sample`, the critic's, of the same noised samples at the same levels.
      normalize: False leaves the denominator out, which is variational score distillation.
      eps: scalar > 0. An example whose denominator lies below it has gradient 0; others are not touched by it. (The
        authors' code gives 0 for 0/0 too, but 3.4e38 for the rest.)

    Returns:
      Gradients like `sample`, in at least float32. Nothing is differentiated through them: hand them to
      `gradient_surrogate`.

    Raises:
      ValueError: shapes that differ, no batch axis, or eps not a scalar > 0.

    References:
      Yin et al., One-step Diffusion with Distribution Matching Distillation, arXiv:2311.18828; Zhang et al.,
      Distribution Backtracking, arXiv:2408.15991.
    """
    _alike("sample", sample, real_denoised=real_denoised, fake_denoised=fake_denoised)
    _checks.rank("eps", eps, 0)
    _checks.positive("eps", eps)
    x, real, fake = (jax.lax.stop_gradient(as_float(a)) for a in (sample, real_denoised, fake_denoised))
    gradient = fake - real
    if normalize:
        scale = jnp.mean(jnp.abs(x - real), axis=per_example_axes(x), keepdims=True)
        usable = ~(scale < eps)  # NaN is usable: it passes through
        gradient = jnp.where(usable, gradient / jnp.where(usable, scale, 1.0), 0.0)
    return gradient


def guided_variational_gradient(
    teacher_positive: ArrayLike,
    teacher_negative: ArrayLike,
    critic_positive: ArrayLike,
    critic_negative: ArrayLike,
    *,
    scale: ArrayLike,
    weight: ArrayLike = 1.0,
) -> Array:
    r"""Variational score distillation under guidance, one scale for teacher and critic (SNOOPI's PG-SB).

    .. math:: w\,[\,\epsilon_T(\kappa) - \epsilon_C(\kappa)\,], \qquad
              \epsilon(\kappa) = (1 - \kappa)\,\epsilon_{negative} + \kappa\,\epsilon_{positive}

    With exact scores :math:`\epsilon = -\sigma s`, so that at scale 1 this is :math:`w \sigma` times the gradient of
    KL(generator || data) of the noised distributions. The paper draws a scale for each example anew at every step,
    uniformly from [0.5, 4] (Stable Diffusion) or [0.5, 3] (PixArt-alpha): one fixed scale is unstable over backbones.

    Args:
      teacher_positive: [B, ...] noise that the teacher predicts under the condition.
      teacher_negative: alike, without it, or under a negative prompt.
      critic_positive: alike, of the critic under the condition.
      critic_negative: alike, without it; the paper finds no negative prompt better here.
      scale: kappa, scalar or [B]. 0 is the negative branch alone, below 1 interpolates.
      weight: w >= 0 of the level, scalar or [B]. The paper leaves it open; default 1.

    Returns:
      Gradients like the predictions, in at least float32, for `gradient_surrogate` of the clean samples. Nothing is
      differentiated through them.

    Raises:
      ValueError: shapes that differ, no batch axis, scale or weight neither scalar nor [B], or a negative weight.

    References:
      Nguyen et al., SNOOPI, arXiv:2412.02687; Wang et al., ProlificDreamer, arXiv:2305.16213.
    """
    _alike(
        "teacher_positive",
        teacher_positive,
        teacher_negative=teacher_negative,
        critic_positive=critic_positive,
        critic_negative=critic_negative,
    )
    _checks.non_negative("weight", weight)
    predictions = (teacher_positive, teacher_negative, critic_positive, critic_negative)
    real, real_negative, fake, fake_negative = (as_float(p) for p in predictions)
    # One guidance for both, applied to the difference: it is linear.
    guided = classifier_free_guidance(real_negative - fake_negative, real - fake, scale=scale)
    return jax.lax.stop_gradient(_factor("weight", weight, real) * guided)


def entropic_score_gradient(
    real_score: ArrayLike,
    marginal_score: ArrayLike,
    conditional_score: ArrayLike,
    *,
    entropy_weight: ArrayLike = 0.5,
    weight: ArrayLike = 1.0,
) -> Array:
    r"""Score distillation that also raises the entropy of the samples over all conditions (ESD).

    .. math:: -w\,[\,s_p(x_t) - \lambda\, s_q(x_t) - (1 - \lambda)\, s_q(x_t \mid c)\,]

    With exact scores w times the gradient, in the noised sample, of
    :math:`\lambda\, KL(q(x_t) \| p_t) + (1 - \lambda)\, E_c\, KL(q(x_t \mid c) \| p_t)`. Weight 0 is variational score
    distillation (and score distillation sampling where the conditional score is that of a point, -noise / sigma), which
    seeks the mode of each view on its own; 1 matches the marginal. The bracket's second half is classifier-free
    guidance of the critic at scale :math:`1 - \lambda`.

    Args:
      real_score: [B, ...] of the teacher at the noised samples.
      marginal_score: alike, of the critic without the condition (a camera, say).
      conditional_score: alike, of the critic under the condition of each sample.
      entropy_weight: lambda >= 0, scalar or [B]; above 1 diversity weighs more than the data ask for. The paper's
        default for 3D; its toy uses 1. The best one varies by scene: it may be traced.
      weight: w >= 0 of the level, scalar or [B]; in the authors' toy (1 - alpha) sigma.

    Returns:
      Gradients like the scores, in at least float32. The authors' toy applies them to x_t = alpha x + sigma noise, so
      that x gets alpha times as much; the choice is left to the caller of `gradient_surrogate`. Nothing is
      differentiated through them.

    Raises:
      ValueError: shapes that differ, no batch axis, a negative or misshapen entropy_weight or weight.

    References:
      Wang et al., Taming Mode Collapse in Score Distillation for Text-to-3D Generation, arXiv:2401.00909.
    """
    _alike("real_score", real_score, marginal_score=marginal_score, conditional_score=conditional_score)
    _checks.non_negative("entropy_weight", entropy_weight)
    _checks.non_negative("weight", weight)
    real, marginal, conditional = (as_float(s) for s in (real_score, marginal_score, conditional_score))
    mix, w = _factor("entropy_weight", entropy_weight, real), _factor("weight", weight, real)
    return jax.lax.stop_gradient(-w * (real - mix * marginal - (1 - mix) * conditional))


def score_identity_loss(
    sample: ArrayLike,
    real_denoised: ArrayLike,
    fake_denoised: ArrayLike,
    *,
    alpha: ArrayLike = 1.2,
    floor: ArrayLike = 1e-5,
) -> Array:
    r"""Loss of score identity distillation (SiD) for the generator, with r and f the two clean estimates of one x_t.

    .. math:: \frac1\omega \sum (r - f)\,[\,(r - x) - \alpha (r - f)\,], \qquad
              \omega = \mathrm{sg}\big[\max(\overline{|r - x|}, \text{floor})\big]

    Differentiate it through x everywhere: in the loss and, through x_t = x + sigma noise, in the *inputs* of both
    networks, unlike `distribution_matching_gradient`. Their parameters are held fixed: differentiate with respect to
    the generator's alone.

    With an exact critic the numerator has mean :math:`(1 - \alpha) \|r - f\|^2`, so that the value is often negative
    and says little; the gradient is what counts. At alpha = 1/2 its mean is exactly half that of the Fisher divergence
    :math:`E\|r - f\|^2` including the critic's dependence on the generator; larger alphas work better in practice.

    Args:
      sample: [B, ...] clean samples x of the generator.
      real_denoised: r, like `sample`, the teacher's clean estimate at the noised samples.
      fake_denoised: f, like `sample`, the critic's.
      alpha: scalar or [B], 0 to 2. 1.2 is the papers' for CIFAR-10, 1.0 (where the bracket is f - x) for Stable
        Diffusion.
      floor: smallest denominator, scalar or [B], > 0. The authors' default.

    Returns:
      [B] losses, sums over the values of an example, in at least float32.

    Raises:
      ValueError: shapes that differ, no batch axis, alpha or floor neither scalar nor [B], or floor <= 0.

    References:
      Zhou et al., Score identity Distillation, arXiv:2404.04057; Chen et al., Score Forgetting Distillation,
      arXiv:2409.11219.
    """
    _alike("sample", sample, real_denoised=real_denoised, fake_denoised=fake_denoised)
    x, real, fake = as_float(sample), as_float(real_denoised), as_float(fake_denoised)
    batch, axes = x.shape[0], per_example_axes(x)
    _checks.scalar_or_per_example("floor", floor, batch)
    _checks.positive("floor", floor)
    difference = real - fake
    terms = difference * ((real - x) - _factor("alpha", alpha, x) * difference)
    scale = jnp.maximum(jnp.mean(jnp.abs(real - x), axis=axes), floor)
    return jnp.sum(terms, axis=axes) / jax.lax.stop_gradient(scale)


def denoising_score_loss(
    denoise: Callable[[Array, Array], Array],
    sample: ArrayLike,
    noise: ArrayLike,
    sigma: ArrayLike,
    *,
    sigma_data: float = 0.5,
) -> Array:
    r"""Denoising loss of the critic on samples of the generator, which get no gradient.

    .. math:: \big(\sigma^{-2} + \sigma_d^{-2}\big)\; \overline{(D(\bar x + \sigma n, \sigma) - \bar x)^2}, \qquad
              \bar x = \mathrm{sg}[x]

    `diffusion.edm_loss` with the samples held fixed; its minimum is the score of the generator's distribution. The same
    loss, on samples of an untrained generator, records the path of degraded teachers of distribution backtracking.
    Other papers' critics weigh the levels otherwise (score forgetting, 1 / sigma^2 and a sum over values); scale the
    result by a factor of sigma where that matters.

    Args:
      denoise: D(x [B, ...], sigma [B]) -> clean estimate, closed over the critic's parameters (and its condition).
      sample: [B, ...] clean samples x.
      noise: unit normal n, like `sample`.
      sigma: [B] levels, > 0.
      sigma_data: standard deviation of the data, > 0. The authors' default.

    Returns:
      [B] losses, means over the values of an example.

    Raises:
      ValueError: shapes do not fit, or a concrete sigma or sigma_data is not positive.

    References:
      Zhang et al., Distribution Backtracking, arXiv:2408.15991; Yin et al., arXiv:2405.14867.
    """
    _alike("sample", sample, noise=noise)
    return diffusion.edm_loss(denoise, jax.lax.stop_gradient(as_float(sample)), noise, sigma, sigma_data=sigma_data)


def score_mismatch(
    fake_denoised: ArrayLike, target_denoised: ArrayLike, sample: ArrayLike, *, eps: ArrayLike = 1e-8
) -> Array:
    r"""How far a target is from the generator it shall guide, :math:`\|f - D\|_2^2 \,/\, \|x - D\|_2^2`.

    A diagnostic of distribution backtracking: large where the teacher is asked far from its data, small along a path of
    degraded teachers.

    Args:
      fake_denoised: [B, ...] f, the critic's clean estimate of the noised samples.
      target_denoised: D, alike, the target's.
      sample: x, alike, the clean samples.
      eps: the least denominator, scalar > 0.

    Returns:
      [B] ratios >= 0, in at least float32; 0 where the two estimates agree, x = D included.

    Raises:
      ValueError: shapes that differ, no batch axis, or eps not a scalar > 0.

    References:
      Zhang et al., Distribution Backtracking, arXiv:2408.15991 (our reading of its mismatch degree).
    """
    _alike("fake_denoised", fake_denoised, target_denoised=target_denoised, sample=sample)
    _checks.rank("eps", eps, 0)
    _checks.positive("eps", eps)
    fake, target, x = as_float(fake_denoised), as_float(target_denoised), as_float(sample)
    axes = per_example_axes(x)
    return jnp.sum((fake - target) ** 2, axis=axes) / jnp.maximum(jnp.sum((x - target) ** 2, axis=axes), eps)


def _integer(name: str, value: ArrayLike, low: int) -> None:
    _checks.integers(name, value)
    _checks.at_least(name, value, low)


def backtracking_index(step: ArrayLike, num_checkpoints: ArrayLike, *, interval: ArrayLike = 1000) -> Array:
    r"""Which target of the reversed path a step follows, :math:`i = \min(1 + \lfloor step / interval \rfloor, n)`.

    The path q_0, ..., q_n runs from the most degraded checkpoint, which starts the critic and is never a target, to the
    teacher.

    Args:
      step: integers >= 0 of any shape, steps of this stage. Traced ones below 0 give 0 or less.
      num_checkpoints: n + 1 >= 2, integer.
      interval: steps with one target, integer >= 1. The authors' default.

    Returns:
      int32 indices, like `step`, from 1 to n.

    Raises:
      ValueError: values that are not integers, or concrete ones out of range.

    References:
      Zhang et al., Distribution Backtracking, arXiv:2408.15991.
    """
    _integer("step", step, 0)
    _integer("num_checkpoints", num_checkpoints, 2)
    _integer("interval", interval, 1)
    step, last, interval = (jnp.asarray(v).astype(jnp.int32) for v in (step, num_checkpoints, interval))
    return 1 + jnp.minimum(step // interval, last - 2)  # one added last: the quotient may be the largest int32


def select_checkpoint(stacked_params: Any, index: ArrayLike) -> Any:
    """Parameters number `index` of a stack of checkpoints.

    The index may be traced: one program then serves them all. For small models. Large paths stay on the host or on
    disk: load a target when it is due and pass it as an argument.

    Args:
      stacked_params: pytree whose every leaf [n, ...] stacks a parameter of n checkpoints.
      index: integer scalar, 0 <= index < n. A traced one is clipped to that range.

    Returns:
      pytree of the same structure, without the leading axis.

    Raises:
      ValueError: leaves without a leading axis or of different lengths, an index that is not an integer scalar, or a
        concrete one out of range.

    References:
      Zhang et al., Distribution Backtracking, arXiv:2408.15991.
    """
    leaves = jax.tree.leaves(stacked_params)
    for leaf in leaves:
        _checks.batched("each leaf of stacked_params", leaf)
    lengths = {np.shape(leaf)[0] for leaf in leaves}
    if len(lengths) > 1:
        raise ValueError(f"stacked_params must have one number of checkpoints in all leaves, got {sorted(lengths)}")
    _checks.rank("index", index, 0)
    _integer("index", index, 0)
    for length in lengths:
        if length == 0:
            raise ValueError("stacked_params must hold at least one checkpoint, got none")
        _checks.within("index", index, 0, length - 1)
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(
            jnp.asarray(leaf), jnp.clip(jnp.asarray(index), 0, np.shape(leaf)[0] - 1), keepdims=False
        ),
        stacked_params,
    )


def one_step_generator(denoise: Callable[..., Array], *, sigma_init: ArrayLike = 2.5) -> Generator:
    r"""The one-step generator of a denoiser, :math:`G(z, c) = D(\sigma_{init} z, \sigma_{init}, c)`.

    Started from the teacher's parameters it draws blurred but plausible samples from the first step on.

    Args:
      denoise: D(x [B, ...], sigma [B], labels) -> clean estimate, closed over the generator's parameters; D(x, sigma)
        where the generator is called without labels.
      sigma_init: the level it is held at, a scalar > 0. The papers' default, far below the prior's 80.

    Returns:
      G(noise [B, ...] unit normal, labels=None) -> samples as `denoise` returns them.

    Raises:
      ValueError: sigma_init not a scalar > 0; G raises it for noise without a batch axis or estimates of another shape.

    References:
      Zhou et al., Score identity Distillation, arXiv:2404.04057; Chen et al., arXiv:2409.11219.
    """
    _checks.rank("sigma_init", sigma_init, 0)
    _checks.positive("sigma_init", sigma_init)

    def generate(noise: ArrayLike, labels: Any = None) -> Array:
        _checks.batched("noise", noise)
        z = as_float(noise)
        sigma = jnp.broadcast_to(as_float(sigma_init), z.shape[:1])
        sample = denoise(expand_like(sigma, z) * z, sigma, *(() if labels is None else (labels,)))
        _checks.same_shape("noise", noise, "the result of denoise", sample)
        return sample

    return generate
