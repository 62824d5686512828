"""How sure a prediction is: Monte Carlo moments, calibration, and the consistency of generations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, sum_over, vary_with
from mlfuncs.dropout import apply_mask

QUADRATURE = 512  # points of the Chebyshev coefficients
POWER_STEPS = 20  # of the power iteration for an upper bound of the spectrum
RAYLEIGH_MARGIN = 1.05
TRACE_MARGIN = 1.02


def gaussian_negative_log_likelihood(
    mean: ArrayLike, variance: ArrayLike, targets: ArrayLike, *, eps: float = 1e-6
) -> Array:
    r"""Negative log-likelihood without its constants, :math:`\log \sigma^2 + (\mu - y)^2 / \sigma^2`.

    Args:
      mean: [B, ...].
      variance: like `mean`, >= 0; clamped below by `eps`, without gradient there.
      targets: like `mean`.
      eps: smallest variance.

    Returns:
      [B, ...], in at least float32: twice the usual one less log 2 pi, as the paper has it.

    Raises:
      ValueError: shapes that differ, or `eps` not > 0.

    References:
      Miranda et al., arXiv:2504.06915.
    """
    _checks.same_shape("mean", mean, "variance", variance)
    _checks.same_shape("mean", mean, "targets", targets)
    _checks.positive("eps", eps)
    variance = jnp.maximum(as_float(variance), eps)
    return jnp.log(variance) + (as_float(mean) - as_float(targets)) ** 2 / variance


def monte_carlo_predict(
    key: Array,
    predict: Callable[[Array], tuple[Array, Array]],
    x: ArrayLike,
    sample_mask: Callable[[Array], Array],
    *,
    num_samples: int = 20,
    batch_size: int | None = None,
) -> tuple[Array, Array]:
    """Predictions under random masks of the input. Sample l is the same however many are drawn.

    Args:
      key: a PRNG key; sample l uses `fold_in(key, l)`.
      predict: `predict(x) -> (mean [B, ...], variance [B, ...])`.
      x: [B, ...].
      sample_mask: `sample_mask(key) -> mask`, which broadcasts to x: the mechanism of training.
      num_samples: L >= 1. Default 20, as in the paper.
      batch_size: samples that are computed side by side; None: one after the other, which needs the least memory.

    Returns:
      means [L, B, ...] and variances [L, B, ...].

    Raises:
      ValueError: `num_samples` or `batch_size` below 1, or a mask that does not fit.

    References:
      Miranda et al., arXiv:2504.06915; Gal and Ghahramani, arXiv:1506.02142.
    """
    _checks.count("num_samples", num_samples)
    if batch_size is not None:
        _checks.count("batch_size", batch_size)
    x = jnp.asarray(x)

    def sample(index: Array) -> tuple[Array, Array]:
        return predict(apply_mask(x, sample_mask(jax.random.fold_in(key, index))))

    return jax.lax.map(sample, jnp.arange(num_samples), batch_size=batch_size)


def predictive_moments(means: ArrayLike, variances: ArrayLike) -> dict[str, Array]:
    r"""Mean and variances of a Monte Carlo prediction.

    .. math:: \bar\mu = \tfrac{1}{L} \sum_l \mu_l, \quad
              \text{epistemic} = \tfrac{1}{L-1} \sum_l (\mu_l - \bar\mu)^2, \quad
              \text{aleatoric} = \tfrac{1}{L} \sum_l \sigma_l^2

    Args:
      means: [L, B, ...].
      variances: like `means`.

    Returns:
      {"mean", "epistemic", "aleatoric", "predictive"}, [B, ...] each; predictive is the sum of the two variances.
      One sample has an epistemic variance of 0.

    Raises:
      ValueError: shapes that differ, or no samples.

    References:
      Miranda et al., arXiv:2504.06915.
    """
    _checks.same_shape("means", means, "variances", variances)
    if np.ndim(means) < 1 or np.shape(means)[0] == 0:
        raise ValueError(f"means must hold at least one sample, got shape {np.shape(means)}")
    means = as_float(means)
    mean = jnp.mean(means, axis=0)
    epistemic = jnp.sum((means - mean) ** 2, axis=0) / max(1, means.shape[0] - 1)
    aleatoric = jnp.mean(as_float(variances), axis=0)
    return {"mean": mean, "epistemic": epistemic, "aleatoric": aleatoric, "predictive": epistemic + aleatoric}


def regression_calibration_error(
    mean: ArrayLike,
    variance: ArrayLike,
    targets: ArrayLike,
    *,
    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    axis_name: str | None = None,
) -> Array:
    r"""Mean gap between nominal and empirical coverage of central Gaussian intervals.

    .. math:: \frac{1}{Q} \sum_q \Bigl| \tfrac{1}{B} \sum_i \bigl[\, |y_i - \mu_i| \le \Phi^{-1}(\tfrac{1+q}{2})
              \, \sigma_i \,\bigr] - q \Bigr|

    The paper gives no formula; this is the usual one, inferred.

    Args:
      mean: [B, ...] of the predictions.
      variance: like `mean`, >= 0.
      targets: like `mean`.
      levels: nominal coverages q in (0, 1).
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: coverages are those of all of it.

    Returns:
      scalar in [0, 1]; NaN where a target is.

    Raises:
      ValueError: shapes that differ, nothing to compare, no levels, or levels outside (0, 1).

    References:
      Miranda et al., arXiv:2504.06915; Kuleshov, Fenner and Ermon, arXiv:1807.00263.
    """
    _checks.same_shape("mean", mean, "variance", variance)
    _checks.same_shape("mean", mean, "targets", targets)
    if np.size(mean) == 0:
        raise ValueError("mean must hold at least one prediction")
    if len(levels) == 0 or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must lie in (0, 1), got {tuple(levels)}")
    q = jnp.asarray(levels, jnp.float32)
    error = jnp.abs(as_float(targets) - as_float(mean)).reshape(-1)
    deviation = jnp.sqrt(jnp.maximum(as_float(variance), 0)).reshape(-1)
    inside = error[None, :] <= ndtri((1 + q) / 2)[:, None] * deviation[None, :]
    covered = jnp.sum(jnp.where(jnp.isnan(error + deviation), jnp.nan, inside), axis=1)  # NaN is not outside: it is NaN
    share = sum_over(covered, axis_name) / sum_over(error.size, axis_name)
    return jnp.mean(jnp.abs(share - q))


def _centred(embeddings: ArrayLike, alpha: ArrayLike) -> Array:
    _checks.rank("embeddings", embeddings, 2)
    if np.size(embeddings) == 0:
        raise ValueError(f"embeddings must not be empty, got shape {np.shape(embeddings)}")
    _checks.positive("alpha", alpha)
    z = as_float(embeddings)
    return z - jnp.mean(z, axis=1, keepdims=True)


def eigen_score(embeddings: ArrayLike, *, alpha: ArrayLike = 1e-3) -> Array:
    r"""How much K generations for one prompt disagree, :math:`\frac{1}{K} \log\det(\Sigma + \alpha I)`.

    :math:`\Sigma = Z_c Z_c^\top` with embeddings centred over their features (not over generations, and not divided by D).

    Args:
      embeddings: [K, D], one a generation. `jax.vmap` over prompts.
      alpha: > 0. Default 1e-3 (the official code has 1e-5).

    Returns:
      scalar; larger is less consistent.

    Raises:
      ValueError: not two axes, empty, or `alpha` not > 0.

    References:
      Chen et al., INSIDE, arXiv:2402.03744; Mohammadzadeh et al., arXiv:2410.15460.
    """
    z = _centred(embeddings, alpha)
    gram = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.linalg.slogdet(gram + as_float(alpha) * jnp.eye(z.shape[0], dtype=gram.dtype))[1] / z.shape[0]


def chebyshev_log_coefficients(num_terms: int, *, scale: ArrayLike, alpha: ArrayLike) -> Array:
    r"""Coefficients of :math:`\log(s t + \alpha)` on [0, 1] in Chebyshev polynomials of :math:`2t - 1`.

    .. math:: c_m = \frac{2 - \delta_{m0}}{Q} \sum_q \log\bigl(s \tfrac{\cos\theta_q + 1}{2} + \alpha\bigr) \cos(m \theta_q)

    Args:
      num_terms: M >= 1, the highest degree.
      scale: s > 0, an upper bound of the spectrum.
      alpha: > 0; coefficients fall geometrically beyond about :math:`\sqrt{s / \alpha}`.

    Returns:
      [M + 1].

    Raises:
      ValueError: `num_terms` below 1, or `scale` or `alpha` not > 0.

    References:
      Han, Malioutov and Shin, arXiv:1503.06394; Mohammadzadeh et al., arXiv:2410.15460.
    """
    _checks.count("num_terms", num_terms)
    _checks.positive("scale", scale)
    _checks.positive("alpha", alpha)
    theta = np.pi * (np.arange(QUADRATURE) + 0.5) / QUADRATURE
    degrees = np.arange(num_terms + 1)
    basis = jnp.asarray(np.cos(degrees[:, None] * theta), jnp.float32)  # [M + 1, Q], in float64 until here
    values = jnp.log(as_float(scale) * jnp.asarray((np.cos(theta) + 1) / 2, jnp.float32) + as_float(alpha))
    weights = jnp.where(degrees == 0, 1.0, 2.0) / QUADRATURE
    return weights * jnp.matmul(basis, values, precision=jax.lax.Precision.HIGHEST)


def chebyshev_eigen_score(
    embeddings: ArrayLike,
    probes: ArrayLike,
    *,
    num_terms: int = 20,
    alpha: ArrayLike = 1e-3,
    upper_bound: ArrayLike | None = None,
) -> Array:
    r"""`eigen_score` by a Chebyshev series of the logarithm and stochastic traces, O(M S K D), with no eigendecomposition.

    .. math:: \sum_{m=0}^{M} c_m \frac{1}{SK} \sum_s z_s^\top T_m(\tfrac{2}{s} \Sigma - I)\, z_s

    The consistent form of the paper's equations, which its repository does not compute. It pays from
    thousands of generations on.

    Args:
      embeddings: [K, D].
      probes: [S, K] with E z z^T = I, such as random signs. sqrt(K) times the unit vectors give the exact trace.
      num_terms: M >= 1.
      alpha: > 0.
      upper_bound: s > 0, at least the largest eigenvalue; above it the polynomials explode. None: estimated by 20
        steps of power iteration on the probes, at the cost of 20 more terms.

    Returns:
      scalar.

    Raises:
      ValueError: shapes that do not fit, `num_terms` below 1, or `alpha` or `upper_bound` not > 0.

    References:
      Mohammadzadeh et al., arXiv:2410.15460.
    """
    z = _centred(embeddings, alpha)
    _checks.rank("probes", probes, 2)
    if np.shape(probes)[1] != z.shape[0] or np.shape(probes)[0] == 0:
        raise ValueError(f"probes must have shape [S, {z.shape[0]}], got {np.shape(probes)}")
    probe = vary_with(as_float(probes).T, z)  # [K, S]: all of them side by side

    def gram(v: Array) -> Array:
        inner = jnp.matmul(z.T, v, precision=jax.lax.Precision.HIGHEST)
        return jnp.matmul(z, inner, precision=jax.lax.Precision.HIGHEST)

    if upper_bound is None:
        # A bound, not a part of the score: no gradient.
        scale = _upper_bound(lambda v: jax.lax.stop_gradient(gram(v)), jax.lax.stop_gradient(probe))
    else:
        _checks.positive("upper_bound", upper_bound)
        scale = as_float(upper_bound)
    scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny * 1e8)  # all embeddings constant
    coefficients = chebyshev_log_coefficients(num_terms, scale=scale, alpha=alpha)

    def shifted(v: Array) -> Array:
        return 2 / scale * gram(v) - v

    def trace(v: Array) -> Array:
        return jnp.sum(probe * v) / probe.size

    def term(carry: tuple[Array, Array], c: Array) -> tuple[tuple[Array, Array], Array]:
        before, now = carry
        return (now, 2 * shifted(now) - before), c * trace(now)

    _, terms = jax.lax.scan(term, (probe, shifted(probe)), coefficients[1:])
    return coefficients[0] * trace(probe) + jnp.sum(terms)


def _upper_bound(gram: Callable[[Array], Array], probe: Array) -> Array:
    """Scalar that hardly ever lies below the largest eigenvalue.

    The Rayleigh quotient of the first probe lies below it, and far below where the spectrum is flat and the iteration has
    not settled. The power 1/2k of the stochastic trace of the 2k-th power lies above it, but for the noise of the probes.
    """

    def power(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        v, logarithm = carry
        v = gram(v)
        norm = jnp.sqrt(jnp.sum(v**2))
        return (v / jnp.where(norm == 0, 1.0, norm), logarithm + jnp.log(norm)), None

    start = jnp.sqrt(jnp.sum(probe**2))
    begin = (probe / start, jnp.log(start / jnp.sqrt(probe.shape[1])))
    (block, logarithm), _ = jax.lax.scan(power, begin, None, length=POWER_STEPS)
    first, square = block[:, 0], jnp.sum(block[:, 0] ** 2)
    quotient = jnp.sum(first * gram(first[:, None])[:, 0]) / jnp.where(square == 0, 1.0, square)
    return jnp.maximum(RAYLEIGH_MARGIN * quotient, TRACE_MARGIN * jnp.exp(logarithm / POWER_STEPS))


def efficient_eigen_score(key: Array, embeddings: ArrayLike, *, num_probes: int = 20, **settings: Any) -> Array:
    """`chebyshev_eigen_score` with random signs for probes.

    Args:
      key: a PRNG key.
      embeddings: [K, D].
      num_probes: S >= 1. Default 20, as in the paper.
      **settings: `num_terms`, `alpha` and `upper_bound` of `chebyshev_eigen_score`.

    Returns:
      scalar, unbiased for the truncated series where `upper_bound` is given.

    Raises:
      ValueError: as `chebyshev_eigen_score`, or `num_probes` below 1.

    References:
      Mohammadzadeh et al., arXiv:2410.15460.
    """
    _checks.count("num_probes", num_probes)
    _checks.rank("embeddings", embeddings, 2)
    probes = jax.random.rademacher(key, (num_probes, np.shape(embeddings)[0]), jnp.float32)
    return chebyshev_eigen_score(embeddings, probes, **settings)
