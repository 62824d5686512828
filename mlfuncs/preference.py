r"""Objectives on pairs: raise the likelihood of a preferred sample over that of another one, relative to a frozen model.

Both members of a pair answer one condition. Losses take what the model says of them, log-probabilities or squared errors,
so that any network and any sampler will do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float


def _per_example(**values: ArrayLike) -> list[Array]:
    """The arguments as floats [B], after a look at their shapes."""
    (first_name, first), *others = values.items()
    _checks.rank(first_name, first, 1)
    for name, value in others:
        _checks.same_shape(first_name, first, name, value)
    return [as_float(value) for value in values.values()]


def _check_beta(beta: ArrayLike, batch: int) -> Array:
    _checks.scalar_or_per_example("beta", beta, batch)
    _checks.positive("beta", beta)
    return as_float(beta)


def _check_negative_factor(negative_factor: ArrayLike, batch: int) -> Array:
    _checks.scalar_or_per_example("negative_factor", negative_factor, batch)
    _checks.non_negative("negative_factor", negative_factor)
    return as_float(negative_factor)


def pairwise_sample_loss(
    preferred_log_prob: ArrayLike,
    preferred_reference: ArrayLike,
    other_log_prob: ArrayLike,
    other_reference: ArrayLike,
    *,
    beta: ArrayLike = 50.0,
    clip: ArrayLike | None = 0.1,
) -> Array:
    r"""Online pairwise sample optimisation: one transition of a preferred trajectory against one of another.

    .. math:: -\log \sigma\big(\beta\,(\log r_w - \log r_l)\big), \qquad
              r = \mathrm{clip}\big(p_\theta / p_{ref},\, 1 - \epsilon,\, 1 + \epsilon\big)

    The log of the ratio is clipped, to the logs of both bounds: the same number, without an exponential that could
    overflow. Outside the bounds the gradient is 0, so the model stops moving once a ratio has left them.

    Args:
      preferred_log_prob: [B] log-probabilities of the preferred transitions under the model. With the default `beta` and
        `clip` they are means over the elements of a sample, not sums.
      preferred_reference: [B] the same under the frozen model the training started from; no gradient passes.
      other_log_prob: [B] of the transitions of the other trajectory, under the model.
      other_reference: [B] under the frozen model; no gradient passes.
      beta: > 0, scalar or [B]; 50 in the paper's code.
      clip: epsilon in (0, 1), 0.1 in the paper's code; None: ratios are not clipped.

    Returns:
      [B] losses, log 2 where both ratios are equal.

    Raises:
      ValueError: arguments are not [B] of one length, a concrete `beta` is not positive or `clip` not in (0, 1).

    References:
      Miao et al., Tuning Timestep-Distilled Diffusion Models Using Pairwise Sample Optimization, arXiv:2410.03190.
    """
    preferred, preferred_reference, other, other_reference = _per_example(
        preferred_log_prob=preferred_log_prob,
        preferred_reference=preferred_reference,
        other_log_prob=other_log_prob,
        other_reference=other_reference,
    )
    beta = _check_beta(beta, preferred.shape[0])
    log_ratios = [
        model - jax.lax.stop_gradient(reference)
        for model, reference in ((preferred, preferred_reference), (other, other_reference))
    ]
    if clip is not None:
        _checks.scalar_or_per_example("clip", clip, preferred.shape[0])
        _checks.positive("clip", clip)
        _checks.ordered("clip", clip, "1", 1.0)
        clip = as_float(clip)
        log_ratios = [jnp.clip(ratio, jnp.log1p(-clip), jnp.log1p(clip)) for ratio in log_ratios]
    return jax.nn.softplus(-beta * (log_ratios[0] - log_ratios[1]))


def pairwise_denoising_loss(
    preferred_error: ArrayLike,
    other_error: ArrayLike,
    preferred_reference_error: ArrayLike,
    other_reference_error: ArrayLike,
    *,
    beta: ArrayLike = 5.0,
    negative_factor: ArrayLike = 1.0,
) -> Array:
    r"""Offline pairwise sample optimisation, on squared errors of denoising in place of log-probabilities.

    .. math:: -\log \sigma\big(\beta\,[(e^w_{ref} - k e^l_{ref}) - (e^w_\theta - k e^l_\theta)]\big)

    Where both pictures are fixed data and k = 1 this is Diffusion-DPO; here the other picture is a sample of the
    few-step model itself, noised at one of the few levels that the model is run at.

    Args:
      preferred_error: [B] squared errors of the model on the preferred pictures, each a mean over elements.
      other_error: [B] on the other pictures.
      preferred_reference_error: [B] of the frozen model on the preferred pictures; no gradient passes.
      other_reference_error: [B] of the frozen model on the other pictures; no gradient passes.
      beta: > 0, scalar or [B]; 5 in the paper's code for personalisation.
      negative_factor: k >= 0, scalar or [B]: how much the other picture counts. 0 leaves a loss on the preferred alone.

    Returns:
      [B] losses, log 2 where model and frozen model agree.

    Raises:
      ValueError: errors are not [B] of one length, a concrete `beta` is not positive or `negative_factor` negative.

    References:
      Miao et al., arXiv:2410.03190; Wallace et al., Diffusion Model Alignment Using Direct Preference Optimization,
      arXiv:2311.12908.
    """
    preferred, other, preferred_reference, other_reference = _per_example(
        preferred_error=preferred_error,
        other_error=other_error,
        preferred_reference_error=preferred_reference_error,
        other_reference_error=other_reference_error,
    )
    beta = _check_beta(beta, preferred.shape[0])
    factor = _check_negative_factor(negative_factor, preferred.shape[0])
    reference = jax.lax.stop_gradient(preferred_reference - factor * other_reference)
    return jax.nn.softplus(-beta * (reference - (preferred - factor * other)))


def pairwise_hinge_loss(
    preferred_error: ArrayLike,
    other_error: ArrayLike,
    *,
    beta: ArrayLike = 5.0,
    negative_factor: ArrayLike = 1.0,
) -> Array:
    r"""Pairwise sample optimisation without a reference model, :math:`\max(0,\, 1 - \beta\,(k e^l - e^w))`.

    The model is pushed until the errors differ by 1 / beta, and no further.

    Args:
      preferred_error: [B] squared errors of the model on the preferred pictures, each a mean over elements.
      other_error: [B] on the other pictures.
      beta: > 0, scalar or [B]; 5 in the paper's code for personalisation.
      negative_factor: k >= 0, scalar or [B]: how much the other picture counts.

    Returns:
      [B] losses >= 0, with gradient 0 where the margin is met, also exactly.

    Raises:
      ValueError: errors are not [B] of one length, a concrete `beta` is not positive or `negative_factor` negative.

    References:
      Miao et al., arXiv:2410.03190.
    """
    preferred, other = _per_example(preferred_error=preferred_error, other_error=other_error)
    beta = _check_beta(beta, preferred.shape[0])
    factor = _check_negative_factor(negative_factor, preferred.shape[0])
    return jax.nn.relu(1 - beta * (factor * other - preferred))


def preference_signs(first_reward: ArrayLike, second_reward: ArrayLike) -> dict[str, Array]:
    """Which sample of each pair has the greater reward, as +1 and -1.

    Args:
      first_reward: [B] of the first samples.
      second_reward: [B] of the second ones.

    Returns:
      {"first": [B], "second": [B]} in float32, +1 for the preferred sample and -1 for the other one. A tie goes to the
      second, as in the paper's code, and so does a NaN in a traced array.

    Raises:
      ValueError: rewards are not [B] of one length, or a concrete one is NaN.

    References:
      Miao et al., arXiv:2410.03190.
    """
    first, second = _per_example(first_reward=first_reward, second_reward=second_reward)
    for name, reward in (("first_reward", first), ("second_reward", second)):
        if _checks.is_concrete(reward) and np.isnan(np.asarray(reward)).any():
            raise ValueError(f"{name} must be free of NaN, got {reward!r}")
    sign = jnp.where(first > second, 1.0, -1.0).astype(jnp.float32)
    return {"first": sign, "second": -sign}
