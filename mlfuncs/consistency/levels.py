"""Which pair of noise levels each example trains on: grids, curricula over training, proposals and weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float

TAIL = 2.0**-54  # of a normal distribution: less is 0 in the differences of the paper's erf, in float64 too


def karras_levels(
    num_levels: ArrayLike,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    size: int | None = None,
) -> Array:
    r"""Increasing noise levels of the training grid.

    .. math:: \sigma_i = \Big(\sigma_{\min}^{1/\rho} + \tfrac{i-1}{N-1}
              (\sigma_{\max}^{1/\rho} - \sigma_{\min}^{1/\rho})\Big)^\rho, \quad i = 1..N

    The sampling grid, which descends and ends in 0, is `diffusion.karras_sigmas`.

    Args:
      num_levels: N >= 1; 1 gives [sigma_min]. A Python integer, or, where `size` is given, possibly a traced one.
      sigma_min: lowest level, > 0, in data units. Default of the papers.
      sigma_max: highest level, > sigma_min. Default of the papers.
      rho: > 0; larger values put more levels near sigma_min. Default of the papers.
      size: static length of the result, >= N. Levels from N on repeat sigma_max, so that one compiled program serves a
        curriculum in which N grows; the empty intervals get probability 0 from the proposals of this module.

    Returns:
      [N] or [size] float32 levels; the two ends are exact.

    Raises:
      ValueError: an argument is out of range, or `num_levels` is traced without `size`.

    References:
      Karras et al., arXiv:2206.00364; Song and Dhariwal, arXiv:2310.14189.
    """
    _checks.positive("sigma_min", sigma_min)
    _checks.ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
    _checks.positive("rho", rho)
    if size is None or _checks.is_concrete(num_levels):
        _checks.count("num_levels", num_levels)
    if size is None:
        size = int(num_levels)  # type: ignore[arg-type]
    else:
        _checks.count("size", size)
        _checks.ordered("num_levels", num_levels, "size", size, strict=False)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    # Where possible in float64 on the host: neighbouring levels of a fine grid differ by little.
    on_host = all(_checks.is_concrete(value) for value in (num_levels, sigma_min, sigma_max, rho))
    xp: Any = np if on_host else jnp
    index, last = xp.arange(size), xp.maximum(xp.asarray(num_levels) - 1, 1)
    levels = (low + xp.minimum(index / last, 1) * (high - low)) ** rho
    levels = xp.where(index == 0, sigma_min, xp.where(index >= last, sigma_max, levels))
    return jnp.asarray(levels, jnp.float32)


def doubling_discretization(
    step: ArrayLike, total_steps: int, *, initial_steps: int = 10, final_steps: int = 1280
) -> Array:
    r"""Number of levels of improved consistency training: the number of intervals doubles at equal periods.

    .. math:: N(k) = \min(s_0 2^{\lfloor k/K' \rfloor}, s_1) + 1, \quad
              K' = \Big\lfloor \frac{K}{\log_2 \lfloor s_1/s_0 \rfloor + 1} \Big\rfloor

    Args:
      step: training step k >= 0, an integer scalar or array of any shape (may be traced).
      total_steps: planned steps K; at least one per period.
      initial_steps: intervals s_0 at the start, >= 1. The paper's default.
      final_steps: intervals s_1 at the end, >= initial_steps. The paper's default.

    Returns:
      int32 N, shaped like `step`: levels, one more than intervals. Steps beyond `total_steps` give final_steps + 1.

    Raises:
      ValueError: an argument is out of range, or `total_steps` is too short for the doublings.

    References:
      Song and Dhariwal, Improved Techniques for Training Consistency Models, arXiv:2310.14189.
    """
    _check_curriculum(step, total_steps, initial_steps, final_steps)
    period = int(total_steps / (math.log2(final_steps // initial_steps) + 1))
    if period < 1:
        raise ValueError(
            f"total_steps must cover the doublings from {initial_steps} to {final_steps} intervals, got {total_steps}"
        )
    # Integer arithmetic: step / period in float32 is wrong near the switches of a long run.
    most_doublings = math.ceil(math.log2(final_steps / initial_steps))
    doublings = jnp.minimum(jnp.asarray(step, jnp.int32) // period, most_doublings)
    return jnp.minimum(int(initial_steps) * 2**doublings, int(final_steps)) + 1


def progressive_discretization(
    step: ArrayLike, total_steps: int, *, initial_steps: int = 2, final_steps: int = 150
) -> Array:
    r"""Number of levels of the original consistency training.

    .. math:: N(k) = \Big\lceil \sqrt{\tfrac{k}{K}\big((s_1 + 1)^2 - s_0^2\big) + s_0^2} - 1 \Big\rceil + 1

    Args:
      step: training step k >= 0, an integer scalar or array of any shape (may be traced).
      total_steps: planned steps K >= 1.
      initial_steps: s_0 >= 1. The paper's default.
      final_steps: s_1 >= initial_steps. The paper's CIFAR-10 default.

    Returns:
      int32 N >= 2, shaped like `step`. Steps beyond `total_steps` give final_steps + 1.

    Raises:
      ValueError: an argument is out of range.

    References:
      Song et al., Consistency Models, arXiv:2303.01469.
    """
    _check_curriculum(step, total_steps, initial_steps, final_steps)
    # N(k) = ceil(sqrt(v)) passes n at the first integer k with v > n^2; these switches are exact in integers.
    n = np.arange(initial_steps, final_steps + 1, dtype=np.int64)
    switches = (n**2 - initial_steps**2) * total_steps // ((final_steps + 1) ** 2 - initial_steps**2) + 1
    passed = jnp.searchsorted(jnp.asarray(switches, jnp.int32), jnp.asarray(step, jnp.int32), side="right")
    return jnp.maximum(initial_steps + passed, 2).astype(jnp.int32)


def _check_curriculum(step: ArrayLike, total_steps: int, initial_steps: int, final_steps: int) -> None:
    _checks.count("total_steps", total_steps)
    _checks.count("initial_steps", initial_steps)
    _checks.count("final_steps", final_steps)
    _checks.ordered("initial_steps", initial_steps, "final_steps", final_steps, strict=False)
    _checks.non_negative("step", step)


def teacher_decay(num_levels: ArrayLike, *, initial_decay: float = 0.9, initial_steps: int = 2) -> Array:
    r"""Decay of the teacher's moving average in the original consistency training, :math:`\mu_0^{s_0 / (N - 1)}`.

    Args:
      num_levels: current N, an integer scalar or array; below 2 it counts as 2.
      initial_decay: mu_0 in (0, 1]. The paper's CIFAR-10 default.
      initial_steps: s_0 >= 1 of `progressive_discretization`.

    Returns:
      float32 decays, shaped like `num_levels`.

    Raises:
      ValueError: an argument is out of range.

    References:
      Song et al., Consistency Models, arXiv:2303.01469.
    """
    _checks.within_half_open("initial_decay", initial_decay, 0, 1)
    _checks.count("initial_steps", initial_steps)
    _checks.at_least("num_levels", num_levels, 1)
    intervals = jnp.maximum(jnp.asarray(num_levels) - 1, 1)
    return jnp.exp(initial_steps * jnp.log(as_float(initial_decay)) / intervals)


def adaptive_robust_scale(num_levels: ArrayLike, *, slope: float = -1.18, intercept: float = -0.72) -> Array:
    r"""Scale c of the Cauchy distance as the grid refines, :math:`c(N) = \exp(a \log(N - 1) + b)`.

    The difference between neighbouring levels shrinks as their number grows, and c with it. The loss value jumps when N
    changes; its gradient does not.

    Args:
      num_levels: current N >= 2, a scalar or an array of any shape (may be traced).
      slope: a. The paper's default.
      intercept: b. The paper's default.

    Returns:
      float32 scales, shaped like `num_levels`, in data units.

    Raises:
      ValueError: a concrete `num_levels` is below 2.

    References:
      Dao et al., Improved Training Technique for Latent Consistency Models, arXiv:2502.01441.
    """
    _checks.at_least("num_levels", num_levels, 2)
    return jnp.exp(slope * jnp.log(as_float(num_levels) - 1) + intercept)


def _check_grid(sigmas: ArrayLike) -> Array:
    _checks.rank("sigmas", sigmas, 1)
    if np.shape(sigmas)[0] < 2:
        raise ValueError(f"sigmas must hold at least 2 levels, got {np.shape(sigmas)[0]}")
    _checks.positive("sigmas", sigmas)
    if _checks.is_concrete(sigmas) and np.any(np.diff(np.asarray(sigmas)) < 0):
        raise ValueError("sigmas must be increasing (the training grid of karras_levels)")
    return as_float(sigmas)


def lognormal_level_probabilities(sigmas: ArrayLike, *, mean: float = -1.1, std: float = 2.0) -> Array:
    r"""Probability of each interval of the grid under a discretised lognormal.

    .. math:: p_i \propto \operatorname{erf}\Big(\frac{\log\sigma_{i+1} - P_{mean}}{\sqrt2 P_{std}}\Big)
              - \operatorname{erf}\Big(\frac{\log\sigma_i - P_{mean}}{\sqrt2 P_{std}}\Big)

    Args:
      sigmas: [N] increasing levels, N >= 2; equal neighbours get probability 0.
      mean: mean of log sigma. The paper's default (note the sign).
      std: standard deviation of log sigma, > 0. The paper's default.

    Returns:
      [N - 1] probabilities that sum to 1.

    Raises:
      ValueError: bad shape or order, std <= 0, or a concrete grid that lies in the tail altogether.

    References:
      Song and Dhariwal, Improved Techniques for Training Consistency Models, arXiv:2310.14189.
    """
    sigmas = _check_grid(sigmas)
    _checks.positive("std", std)
    z = (jnp.log(sigmas) - mean) / (math.sqrt(2) * std)
    low, high = z[:-1], z[1:]
    # erf saturates in float32: in the tails the difference of erfc on the small side keeps its digits.
    erfc = jax.scipy.special.erfc
    mass = jnp.where(
        low > 0,
        erfc(low) - erfc(high),
        jnp.where(high < 0, erfc(-high) - erfc(-low), jax.scipy.special.erf(high) - jax.scipy.special.erf(low)),
    )
    mass = jnp.maximum(mass, 0)
    total = jnp.sum(mass)
    if _checks.is_concrete(total) and total < TAIL:
        raise ValueError(f"sigmas lie altogether in the tail of the lognormal with mean {mean} and std {std}")
    return mass / total


def uniform_level_probabilities(sigmas: ArrayLike) -> Array:
    """Equal probability for each interval of the grid: the proposal of the original consistency training.

    Args:
      sigmas: [N] increasing levels, N >= 2; equal neighbours (the padding of `karras_levels`) get probability 0.

    Returns:
      [N - 1] probabilities that sum to 1.

    Raises:
      ValueError: bad shape or order.

    References:
      Song et al., Consistency Models, arXiv:2303.01469.
    """
    sigmas = _check_grid(sigmas)
    present = (sigmas[1:] > sigmas[:-1]).astype(sigmas.dtype)
    return present / jnp.sum(present)


def sample_levels(key: Array, probabilities: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Draws 0-based interval indices: index i trains on levels i and i + 1 of the grid.

    One uniform number and one binary search a draw. `jax.vmap` over keys gives draws that depend on the example alone.

    Args:
      key: a PRNG key.
      probabilities: [N - 1], non-negative; normalised here.
      shape: static shape of the result.

    Returns:
      int32 indices of the given shape; an interval of probability 0 is never drawn.

    Raises:
      ValueError: `probabilities` is not 1-D, is empty, or has a concrete negative value or sum 0.
    """
    _checks.rank("probabilities", probabilities, 1)
    _checks.non_negative("probabilities", probabilities)
    cumulative = jnp.cumsum(as_float(probabilities))
    if cumulative.size == 0 or (_checks.is_concrete(cumulative) and cumulative[-1] == 0):
        raise ValueError("probabilities must hold a positive value")
    uniform = jax.random.uniform(key, shape, cumulative.dtype) * cumulative[-1]
    # Rounding can lift the product to the total itself, which lies beyond the last interval of positive probability.
    last = jnp.searchsorted(cumulative, cumulative[-1], side="left")
    return jnp.minimum(jnp.searchsorted(cumulative, uniform, side="right"), last).astype(jnp.int32)


def shrinking_gap(sigma: ArrayLike, stage: ArrayLike, *, decay: float = 2.0, k: float = 8.0, b: float = 1.0) -> Array:
    r"""Lower level of easy consistency tuning, whose gap shrinks stage by stage.

    .. math:: \sigma_{low} = \max\big(0,\; \sigma (1 - q^{-(stage + 1)} (1 + k\,\mathrm{sigmoid}(-b \sigma)))\big)

    Early stages give 0 for most levels, which is diffusion training (the target is the clean example); late stages
    approach consistency training.

    Args:
      sigma: upper level, scalar or array of any shape, >= 0, in data units.
      stage: stage of the curriculum, >= 0, broadcasts against `sigma` (may be traced).
      decay: q > 1. The paper's default for CIFAR-10.
      k: >= 0. The authors' default.
      b: >= 0. The authors' default.

    Returns:
      Lower levels, shaped like `sigma`, 0 <= sigma_low <= sigma.

    Raises:
      ValueError: an argument is out of range.

    References:
      Geng et al., Consistency Models Made Easy, arXiv:2406.14548.
    """
    _checks.non_negative("sigma", sigma)
    _checks.non_negative("stage", stage)
    _checks.ordered("1", 1.0, "decay", decay)
    _checks.non_negative("k", k)
    _checks.non_negative("b", b)
    sigma = as_float(sigma)
    ratio = 1 - (1 + k * jax.nn.sigmoid(-b * sigma)) / as_float(decay) ** (as_float(stage) + 1)
    return jnp.maximum(sigma * ratio, 0)


def inverse_gap_weight(sigma_low: ArrayLike, sigma_high: ArrayLike) -> Array:
    r"""Weight :math:`1 / (\sigma_{high} - \sigma_{low})` of improved consistency training.

    Args:
      sigma_low: [B] lower levels.
      sigma_high: [B] upper levels, above `sigma_low`.

    Returns:
      [B] weights.

    Raises:
      ValueError: shapes differ, or a concrete lower level is not below its upper level.

    References:
      Song and Dhariwal, Improved Techniques for Training Consistency Models, arXiv:2310.14189.
    """
    _checks.same_shape("sigma_low", sigma_low, "sigma_high", sigma_high)
    _checks.ordered("sigma_low", sigma_low, "sigma_high", sigma_high)
    return 1 / (as_float(sigma_high) - as_float(sigma_low))


def unit_weight(sigma_low: ArrayLike, sigma_high: ArrayLike) -> Array:
    """Weight 1 of the original consistency training.

    Args:
      sigma_low: [B] lower levels.
      sigma_high: [B] upper levels.

    Returns:
      [B] ones.

    Raises:
      ValueError: shapes differ.

    References:
      Song et al., Consistency Models, arXiv:2303.01469.
    """
    _checks.same_shape("sigma_low", sigma_low, "sigma_high", sigma_high)
    return jnp.ones_like(as_float(sigma_low))
