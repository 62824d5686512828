"""Distillation of sequence models: divergences summed over tokens, and where responses come from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import example_keys, expand_like
from mlfuncs.distillation._divergences import jensen_shannon_rows, kullback_leibler_rows
from mlfuncs.distillation._rows import check_pair, check_temperature, over_rows, scaled
from mlfuncs.distillation.logits import check_mixture


def sequence_divergence(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    mask: ArrayLike,
    *,
    divergence: str = "forward",
    mixture: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    normalize_by_length: bool = False,
) -> Array:
    r"""Divergence between the next-token distributions of teacher and student, summed over a response.

    .. math:: \sum_i D\big(\pi_T(\cdot \mid x, y_{<i}),\, \pi_S(\cdot \mid x, y_{<i})\big)

    Exact over the vocabulary at every position. With responses y drawn from the teacher the forward divergence estimates
    the KL of whole sequences, with responses from the student the reverse one; with others it is a training loss.

    Args:
      student_logits: [B, L, V], V >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      mask: [B, L], True or 1 where a token counts. What stands elsewhere, NaN included, does not matter.
      divergence: "forward", KL(teacher || student); "reverse"; or "jensen_shannon".
      mixture: in (0, 1), the weight of the teacher in "jensen_shannon", a scalar (may be traced).
      temperature: T > 0, a scalar (may be traced). No factor T^2.
      normalize_by_length: whether to divide by the number of tokens that count in each sequence.

    Returns:
      [B] values >= 0, in at least float32. A sequence without such tokens gives 0. Long responses weigh more unless
      normalised.

    Raises:
      ValueError: not three axes, shapes that do not fit, a concrete mask other than 0 and 1, an unknown divergence, a
        mixture outside (0, 1) where it is used, or T <= 0.

    References:
      Tiapkin et al., On Teacher Hacking in Language Model Distillation, arXiv:2502.02671.
    """
    _checks.rank("student_logits", student_logits, 3)
    student, teacher = check_pair(student_logits, teacher_logits)
    if np.shape(mask) != student.shape[:2]:
        raise ValueError(f"mask must have shape {student.shape[:2]}, got {np.shape(mask)}")
    if _checks.is_concrete(mask) and not np.isin(np.asarray(mask, np.float64), (0, 1)).all():
        raise ValueError("mask must hold 0 and 1 only")
    _checks.one_of("divergence", divergence, ("forward", "reverse", "jensen_shannon"))
    if divergence == "jensen_shannon":
        check_mixture(mixture)
    check_temperature(temperature)
    counts = jnp.asarray(mask) != 0

    def rows(s: Array, t: Array, counts: Array) -> Array:
        # Harmless logits in the place of padding, so that nothing of it reaches the gradient either.
        z_q, z_p = (scaled(jnp.where(counts[..., None], x, 0), temperature) for x in (s, t))
        if divergence == "jensen_shannon":
            values = jensen_shannon_rows(z_q, z_p, jnp.asarray(mixture))
        else:
            values = kullback_leibler_rows(*((z_p, z_q) if divergence == "forward" else (z_q, z_p)))
        return jnp.where(counts, values, 0.0)

    total = jnp.sum(over_rows(rows, student, teacher, counts), axis=1)
    return total / jnp.maximum(jnp.sum(counts, axis=1), 1) if normalize_by_length else total


def choose_source(
    key: Array, fresh: Any, stored: Any, *, fresh_fraction: ArrayLike, axis_name: str | None = None
) -> Any:
    """Mixes a batch of new responses with one of stored responses, by a coin for each example.

    Args:
      key: a PRNG key.
      fresh: pytree of arrays [B, ...], such as responses generated in this step.
      stored: a tree like `fresh`.
      fresh_fraction: probability in [0, 1] that an example is the fresh one, a scalar (may be traced).
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: coins are those of the global batch.

    Returns:
      a tree like `fresh`. All leaves of an example come from one side. The coin of example i depends on the key and on i
      alone; 0 and 1 choose one side throughout.

    Raises:
      ValueError: trees of another structure or shapes of leaves, leaves of different batch, or a fraction outside [0, 1].

    References:
      Tiapkin et al., arXiv:2502.02671; the switch of Agarwal et al., arXiv:2306.13649, for each example on its own.
    """
    _checks.same_trees("fresh", fresh, "stored", stored)
    _checks.rank("fresh_fraction", fresh_fraction, 0)
    _checks.rate("fresh_fraction", fresh_fraction)
    leaves = jax.tree.leaves(fresh)
    for leaf in leaves:
        _checks.batched("a leaf of fresh", leaf)
        if np.shape(leaf)[0] != np.shape(leaves[0])[0]:
            raise ValueError(
                f"leaves of fresh must have one batch, got {np.shape(leaves[0])[0]} and {np.shape(leaf)[0]}"
            )
    if not leaves:
        return fresh
    keys = example_keys(key, np.shape(leaves[0])[0], axis_name)
    use_fresh = jax.vmap(jax.random.uniform)(keys) < fresh_fraction

    def choose(new: ArrayLike, old: ArrayLike) -> Array:
        new = jnp.asarray(new)
        return jnp.where(expand_like(use_fresh, new), new, jnp.asarray(old, new.dtype))

    return jax.tree.map(choose, fresh, stored)
