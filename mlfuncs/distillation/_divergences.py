"""Divergences of single rows of scaled logits z = logits / T [..., C], with their derivatives in closed form.

Traced derivatives would walk back through softmax, masks and guards; the closed forms need the two softmaxes alone.
"""

import math

import jax.numpy as jnp
from jax import Array

from mlfuncs._arrays import as_float, map_slices, sum_of_slices
from mlfuncs.distillation._rows import at_label, log_probabilities, softmax, weighted, with_gradients

NEAR = 0.7  # log-ratios below which the excess is summed as a series: its terms vanish fast and nothing cancels


def _remainder(ratio: Array) -> Array:
    """e^-r - 1 + r for |r| < NEAR, from its series: exact to the last digits where the plain sum keeps none."""
    terms = range(2, 10 if ratio.dtype == jnp.float32 else 19)
    total = jnp.zeros_like(ratio)
    for n in reversed(terms):
        total = total * ratio + (-1) ** n / math.factorial(n)
    return total * ratio * ratio


def excess(ratio: Array, p: Array, q: Array) -> Array:
    """p r - p + q for each class, r = log(p / q): never negative, exact to second order where p and q are near.

    Where p is 0 the ratio does not matter, NaN included.
    """
    held = ~(p <= 0)
    near = jnp.abs(ratio) < NEAR
    value = jnp.where(near, p * _remainder(jnp.where(near, ratio, 0.0)), p * jnp.where(held, ratio, 0.0) + (q - p))
    return jnp.where(held, value, q)


def _centred(weights: Array, values: Array) -> Array:
    """w (v - sum w v): a derivative in probabilities w, taken back through their softmax. Weights of 0 add nothing."""
    values = jnp.where(weights <= 0, 0.0, values)
    # Twice: where one class has nearly all weight, the first mean leaves of its value what rounding has made of it.
    values -= jnp.sum(weights * values, axis=-1, keepdims=True)
    return weights * (values - jnp.sum(weights * values, axis=-1, keepdims=True))


def _without_mass(z: Array) -> Array:
    return jnp.max(z, axis=-1) == -jnp.inf


def _kullback_leibler(z_p: Array, z_q: Array) -> Array:
    (p, log_p), (q, log_q) = softmax(z_p), softmax(z_q)
    total = jnp.sum(excess(log_p - log_q, p, q), axis=-1)
    # A row without mass is no distribution: it asks for nothing, where the sum would give that of q.
    return jnp.where(_without_mass(z_p), 0.0, total)


def _kullback_leibler_in_p(z_p: Array, z_q: Array) -> Array:
    p, log_p = softmax(z_p)
    return _centred(p, log_p - log_probabilities(z_q))


def _kullback_leibler_in_q(z_p: Array, z_q: Array) -> Array:
    return jnp.where(_without_mass(z_p)[..., None], 0.0, softmax(z_q)[0] - softmax(z_p)[0])


kullback_leibler_rows = with_gradients(_kullback_leibler, _kullback_leibler_in_p, _kullback_leibler_in_q)
"""KL(p || q) of p = softmax(z_p) and q = softmax(z_q)."""


def _from_mean(values: Array) -> Array:
    """[..., M, C]: what each of M models has above their mean, exactly 0 where all agree."""
    apart = values - values[..., :1, :]
    total = sum_of_slices(lambda x: x, jnp.moveaxis(apart, -2, 0))
    return apart - total[..., None, :] / values.shape[-2]


def _mutual_parts(z: Array) -> tuple[Array, Array, Array]:
    """p and, from their means over models, p and log p; the last is not finite for a class that a model masks."""
    p, log_p = softmax(z)
    return p, _from_mean(p), _from_mean(log_p)


def _mutual(z: Array) -> Array:
    p, p_apart, log_apart = _mutual_parts(z)
    # A class that some model masks: infinite where another gives it mass, else nothing.
    masked = jnp.where(p > 0, jnp.inf, p)
    terms = jnp.where(jnp.isfinite(log_apart), p_apart * log_apart, masked)
    return z.shape[-2] * jnp.sum(terms, axis=(-2, -1))


def _mutual_in_z(z: Array) -> Array:
    p, p_apart, log_apart = _mutual_parts(z)
    return z.shape[-2] * (_centred(p, jnp.where(jnp.isfinite(log_apart), log_apart, 0.0)) + p_apart)


mutual_rows = with_gradients(_mutual, _mutual_in_z)
r"""The sum of KL(p_j || p_i) over all pairs of M models [..., M, C], p_m = softmax(z_m).

With means over models it is :math:`M \sum_{m,c} (p_{mc} - \bar p_c) (\log p_{mc} - \overline{\log p}_c)`: no pair is formed.
"""


def _blend(gate: Array, teachers: Array) -> Array:
    """[..., C] from [..., M] and [..., M, C]; a class that a teacher with weight masks is masked."""

    def share(weight: Array, z: Array) -> Array:
        weight = weight[..., None]
        return jnp.where(jnp.isneginf(z), jnp.where(weight > 0, -jnp.inf, weight), weight * z)

    return sum_of_slices(share, jnp.moveaxis(gate, -1, 0), jnp.moveaxis(as_float(teachers), -2, 0))


def _blended_in_gate(z_q: Array, gate: Array, teachers: Array) -> Array:
    slope = _kullback_leibler_in_p(_blend(gate, teachers), z_q)

    # Teacher by teacher: products of all at once would be written out on CPUs.
    def of_one(z: Array) -> Array:
        return jnp.sum(jnp.where(jnp.isneginf(z), 0.0, slope * z), axis=-1)

    return jnp.moveaxis(map_slices(of_one, jnp.moveaxis(as_float(teachers), -2, 0)), 0, -1)


blended_rows = with_gradients(
    lambda z_q, gate, teachers: _kullback_leibler(_blend(gate, teachers), z_q),
    lambda z_q, gate, teachers: _kullback_leibler_in_q(_blend(gate, teachers), z_q),
    _blended_in_gate,
)
"""KL(p || q) of p = softmax(sum_m gate_m teachers_m), q = softmax(z_q); no derivative in the teachers [..., M, C]."""


def _to_mixture(z_q: Array, z_p: Array, mixture: Array) -> tuple[Array, Array, Array, Array]:
    """q, log(q / m), p, log(p / m), m = b p + (1 - b) q; the logarithms are 0 where neither has mass."""
    (q, log_q), (p, log_p) = softmax(z_q), softmax(z_p)
    masked = jnp.isneginf(log_q) & jnp.isneginf(log_p)
    held_q, held_p = jnp.where(masked, 0.0, log_q), jnp.where(masked, 0.0, log_p)
    # log m relative to the larger of the two: exactly 0 where they agree.
    larger = jnp.maximum(held_q, held_p)
    weight = jnp.where(held_q <= held_p, 1 - mixture, mixture)
    over_larger = jnp.log1p(weight * jnp.expm1(jnp.minimum(held_q, held_p) - larger))
    return q, (held_q - larger) - over_larger, p, (held_p - larger) - over_larger


def _jensen_shannon(z_q: Array, z_p: Array, mixture: Array) -> Array:
    q, q_to_m, p, p_to_m = _to_mixture(z_q, z_p, mixture)
    m = mixture * p + (1 - mixture) * q
    return jnp.sum(mixture * excess(p_to_m, p, m) + (1 - mixture) * excess(q_to_m, q, m), axis=-1)


def _jensen_shannon_in_q(z_q: Array, z_p: Array, mixture: Array) -> Array:
    q, q_to_m, _, _ = _to_mixture(z_q, z_p, mixture)
    return (1 - mixture) * _centred(q, q_to_m)


def _jensen_shannon_in_p(z_q: Array, z_p: Array, mixture: Array) -> Array:
    _, _, p, p_to_m = _to_mixture(z_q, z_p, mixture)
    return mixture * _centred(p, p_to_m)


def _jensen_shannon_in_mixture(z_q: Array, z_p: Array, mixture: Array) -> Array:
    """KL(p || m) - KL(q || m): what m changes cancels."""
    q, q_to_m, p, p_to_m = _to_mixture(z_q, z_p, mixture)
    m = mixture * p + (1 - mixture) * q
    return jnp.sum(excess(p_to_m, p, m) - excess(q_to_m, q, m), axis=-1)


jensen_shannon_rows = with_gradients(
    _jensen_shannon, _jensen_shannon_in_q, _jensen_shannon_in_p, _jensen_shannon_in_mixture
)
"""b KL(p || m) + (1 - b) KL(q || m) of q = softmax(z_q), p = softmax(z_p) and the mixture's weight b on p."""


def _total_variation(z_q: Array, z_p: Array) -> Array:
    return jnp.sum(jnp.abs(softmax(z_q)[0] - softmax(z_p)[0]), axis=-1) / 2


def _total_variation_in_q(z_q: Array, z_p: Array) -> Array:
    q, p = softmax(z_q)[0], softmax(z_p)[0]
    return _centred(q, jnp.sign(q - p) / 2)


total_variation_rows = with_gradients(
    _total_variation, _total_variation_in_q, lambda z_q, z_p: _total_variation_in_q(z_p, z_q)
)
"""sum |p - q| / 2."""


def _cross_entropy(z: Array, weights: Array) -> Array:
    return -jnp.sum(weighted(weights, log_probabilities(z)), axis=-1)


def _cross_entropy_in_z(z: Array, weights: Array) -> Array:
    return jnp.sum(weights, axis=-1, keepdims=True) * softmax(z)[0] - weights


def _cross_entropy_in_weights(z: Array, weights: Array) -> Array:
    return jnp.where(weights != 0, -log_probabilities(z), 0.0)


cross_entropy_rows = with_gradients(_cross_entropy, _cross_entropy_in_z, _cross_entropy_in_weights)
"""-sum w log softmax(z), where classes of weight 0 add nothing. Weights need not sum to 1."""


def _label_cross_entropy_in_z(z: Array, labels: Array) -> Array:
    return softmax(z)[0] - (jnp.arange(z.shape[-1]) == labels[..., None])


label_cross_entropy_rows = with_gradients(
    lambda z, labels: -at_label(log_probabilities(z), labels), _label_cross_entropy_in_z
)
"""-log softmax(z) at the label; infinite where its class is masked."""
