"""Several models that teach each other, and a gate that picks teachers for each example."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, safe_sqrt, sum_over
from mlfuncs.distillation._divergences import blended_rows, mutual_rows
from mlfuncs.distillation._rows import check_classes, check_temperature, over_rows, scaled
from mlfuncs.distillation.logits import kullback_leibler

LEAST_SHARE = 1e-12  # of the gate's mass, below which a teacher counts as this


def mutual(logits: ArrayLike, *, temperature: ArrayLike = 4.0) -> Array:
    r"""Every model learns from every other: :math:`\sum_{i \ne j} T^2\, KL(p_j \| p_i)` of softened predictions.

    Gradients pass to both sides of every pair, which is then pulled from both (a symmetric divergence).

    Args:
      logits: [M, B, C] of M >= 1 models.
      temperature: T > 0, a scalar (may be traced). Default 4, the paper's.

    Returns:
      [B] values >= 0, in at least float32; 0 for one model. A class that every model masks with -inf adds nothing, one that
      only some mask gives infinity. The caller adds the models' cross-entropies.

    Raises:
      ValueError: not three axes, no model or class, or T <= 0.

    References:
      Li et al., MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation, arXiv:2507.07015;
      Zhang et al., Deep Mutual Learning, arXiv:1706.00384.
    """
    _checks.rank("logits", logits, 3)
    check_classes("logits", logits)
    check_temperature(temperature)
    z = jnp.asarray(logits)
    if z.shape[0] == 0:
        raise ValueError(f"logits must hold at least one model, got shape {z.shape}")
    # Each model an array of its own, so that none is copied to stand beside the others; two arrays [M, B, C] are held.
    total = over_rows(lambda *models: mutual_rows(scaled(jnp.stack(models, -2), temperature)), *z, held=2 * z.size)
    return jnp.multiply(temperature, temperature * total)


def _check_gate(student: ArrayLike, teachers: ArrayLike, gate: ArrayLike) -> tuple[Array, Array, Array]:
    """[B, C], [M, B, C] without gradient, and [B, M]."""
    _checks.rank("student_logits", student, 2)
    check_classes("student_logits", student)
    if np.ndim(teachers) != 3 or np.shape(teachers)[1:] != np.shape(student) or np.shape(teachers)[0] == 0:
        raise ValueError(
            f"teacher_logits must have shape [M, *{np.shape(student)}] as student_logits, got {np.shape(teachers)}"
        )
    expected = (np.shape(student)[0], np.shape(teachers)[0])
    if np.shape(gate) != expected:
        raise ValueError(f"gate_probabilities must have shape {expected}, one row an example, got {np.shape(gate)}")
    _checks.non_negative("gate_probabilities", gate)
    return jnp.asarray(student), jax.lax.stop_gradient(jnp.asarray(teachers)), as_float(gate)


def routed_teachers(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    gate_probabilities: ArrayLike,
    *,
    k: int = 1,
    temperature: ArrayLike = 4.0,
    weighted: bool = False,
) -> Array:
    r"""Distillation from the k teachers that a gate prefers, for each example its own.

    .. math:: \frac1k \sum_{m \in \mathrm{top}_k(\pi_b)} T^2\, KL(p_m \| q)

    As in the official code no gradient reaches the gate: `load_balance` alone trains it, and teachers end up used evenly.
    With `weighted` each term has its gate probability over those of the k, in place of 1 / k, and the gate learns which of
    them are close to the student. With k = 1 that weight is 1 and it learns nothing: take k >= 2 or `blended_teachers`.

    Args:
      student_logits: [B, C].
      teacher_logits: [M, B, C], M >= 1. Constants: no gradient passes. What the gate does not pick does not count.
      gate_probabilities: pi [B, M] >= 0; rows need not sum to 1. Of equal ones the lower index is picked. Compute them from
        a student without gradient, unless the code's gradient from the gate into the student is wanted.
      k: in [1, M]. Default 1, as in the paper.
      temperature: T > 0, a scalar (may be traced). Default 4.
      weighted: whether terms are weighted by the gate.

    Returns:
      [B] values >= 0, in at least float32; NaN where the gate's row holds NaN.

    Raises:
      ValueError: shapes that do not fit, concrete negative probabilities, k outside [1, M], or T <= 0.

    References:
      Li et al., arXiv:2507.07015.
    """
    student, teachers, gate = _check_gate(student_logits, teacher_logits, gate_probabilities)
    _checks.count("k", k)
    if k > teachers.shape[0]:
        raise ValueError(f"k must be at most the number of teachers, {teachers.shape[0]}, got {k}")
    mass, chosen = jax.lax.top_k(gate, k)
    picked = jnp.take_along_axis(teachers, chosen.T[:, :, None], axis=0, mode="promise_in_bounds")
    terms = kullback_leibler(jnp.broadcast_to(student, picked.shape), picked, temperature=temperature)
    if weighted:
        total = jnp.sum(mass, axis=1, keepdims=True)
        weights = jnp.where(total > 0, mass / jnp.where(total > 0, total, 1.0), 1 / k)
        value = jnp.sum(weights.T * terms, axis=0)
    else:
        value = jnp.mean(terms, axis=0)
    return jnp.where(jnp.any(jnp.isnan(gate), axis=1), jnp.nan, value)


def blended_teachers(
    student_logits: ArrayLike, teacher_logits: ArrayLike, gate_probabilities: ArrayLike, *, temperature: ArrayLike = 4.0
) -> Array:
    r"""Distillation from one soft teacher, the mean of all teachers' logits under a gate, :math:`\sum_m \pi_m z_m`.

    Logits are mixed, not probabilities. The gate gets a gradient, through the teacher's side of the divergence.

    Args:
      student_logits: [B, C].
      teacher_logits: [M, B, C], M >= 1. Constants: no gradient passes.
      gate_probabilities: pi [B, M] >= 0; rows need not sum to 1.
      temperature: T > 0, a scalar (may be traced). Default 4, the paper's.

    Returns:
      [B] values :math:`T^2\, KL` >= 0, in at least float32. A class masked by -inf in a teacher with any weight is masked.

    Raises:
      ValueError: shapes that do not fit, concrete negative probabilities, or T <= 0.

    References:
      Li et al., arXiv:2507.07015.
    """
    student, teachers, gate = _check_gate(student_logits, teacher_logits, gate_probabilities)
    check_temperature(temperature)
    divergence = over_rows(
        lambda s, pi, z: blended_rows(scaled(s, temperature), pi / temperature, z),
        student,
        gate,
        jnp.moveaxis(teachers, 0, 1),
    )
    return jnp.multiply(temperature, temperature * divergence)


def load_balance(gate_probabilities: ArrayLike, *, mode: str = "kl", axis_name: str | None = None) -> Array:
    r"""How unevenly a gate uses its teachers over a batch, with :math:`\bar\pi = \overline{\pi_b}` over examples.

    "kl" is :math:`\frac1M \sum_m \frac1M (\log \frac1M - \log \bar\pi_m)`, the divergence of the uniform distribution from
    the mean, over M once more as in the official code; "cv" is the standard deviation (M - 1) of :math:`\bar\pi_m` over
    their mean. The gate's rows may each be sharp.

    Args:
      gate_probabilities: pi [B, M] >= 0, B >= 1.
      mode: "kl" or "cv".
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: the mean is over all of it.

    Returns:
      scalar, 0 for even use, in at least float32. For "kl" a share below 1e-12 counts as that, with gradient 0; "cv" of
      gates that are all 0 is 0.

    Raises:
      ValueError: not two axes, empty, another mode, one teacher for "cv", or concrete negative probabilities.

    References:
      Li et al., arXiv:2507.07015.
    """
    _checks.rank("gate_probabilities", gate_probabilities, 2)
    _checks.one_of("mode", mode, ("kl", "cv"))
    count, teachers = np.shape(gate_probabilities)
    if count == 0 or teachers == 0:
        raise ValueError(f"gate_probabilities must hold an example and a teacher, got shape {(count, teachers)}")
    if mode == "cv" and teachers < 2:
        raise ValueError("gate_probabilities must hold at least 2 teachers for mode 'cv', got 1")
    _checks.non_negative("gate_probabilities", gate_probabilities)
    mean = sum_over(jnp.sum(as_float(gate_probabilities), axis=0), axis_name) / sum_over(count, axis_name)
    if mode == "kl":
        return jnp.mean(-np.log(teachers) - jnp.log(jnp.maximum(mean, LEAST_SHARE))) / teachers
    centre = jnp.mean(mean)
    deviation = safe_sqrt(jnp.sum((mean - centre) ** 2) / (teachers - 1))
    return deviation / jnp.where(centre == 0, 1.0, centre)
