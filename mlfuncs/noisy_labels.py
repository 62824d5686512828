"""Learning from wrong labels: which examples of a batch to trust."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, floor_share, gather_batch, own_rows, sum_over


def _check_forget_rate(forget_rate: ArrayLike) -> None:
    _checks.non_negative("forget_rate", forget_rate)
    if _checks.is_concrete(forget_rate) and not np.all(np.asarray(forget_rate) < 1):
        raise ValueError(f"forget_rate must be in [0, 1), got {forget_rate!r}")


def forget_rate_schedule(epoch: ArrayLike, *, forget_rate: ArrayLike = 0.2, num_gradual: int = 5) -> Array:
    r"""Share of a batch that is not trusted, :math:`R(e) = \tau \min(e / (T_k - 1), 1)`.

    Args:
      epoch: e >= 0, of any shape.
      forget_rate: tau in [0, 1), the share of wrong labels. Default 0.2 (CIFAR, ANIMAL-10N; 0.3 for Clothing1M).
      num_gradual: T_k >= 0 epochs from 0 to tau, ends included; 0: tau from the start; 1: 0 in the first epoch alone.
        Default 5 (from scratch; 0 in fine-tuning).

    Returns:
      rates in [0, 1), like `epoch`.

    Raises:
      ValueError: `forget_rate` outside [0, 1) or a negative `num_gradual`.

    References:
      Han et al., Co-teaching, arXiv:1804.06872; Chen et al., arXiv:2206.13140.
    """
    _check_forget_rate(forget_rate)
    _checks.count("num_gradual", num_gradual, 0)
    e, tau = as_float(epoch), as_float(forget_rate)
    if num_gradual == 0:
        return jnp.broadcast_to(tau, e.shape)
    ramp = jnp.clip(e / max(1, num_gradual - 1), 0, 1)
    return tau * jnp.where(e < num_gradual, ramp if num_gradual > 1 else 0.0, 1.0)


def small_loss_mask(losses: ArrayLike, forget_rate: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""The :math:`\lfloor (1 - R) B \rfloor` examples with the smallest losses: the likeliest to be labelled right.

    Args:
      losses: [B]. Of equal ones the first is kept; NaN is kept last.
      forget_rate: R in [0, 1), may be traced.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: the ranking is that of the global
        batch. None ranks the examples that are here.

    Returns:
      bool [B], True where an example is kept. No gradient passes.

    Raises:
      ValueError: `losses` not [B], or a concrete `forget_rate` outside [0, 1).

    References:
      Han et al., arXiv:1804.06872; Chen et al., arXiv:2206.13140.
    """
    _checks.rank("losses", losses, 1)
    _check_forget_rate(forget_rate)
    here = as_float(losses)
    whole = gather_batch(here, axis_name)
    order = jnp.argsort(whole, stable=True)  # NaN last
    ranks = jnp.zeros(whole.shape, jnp.int32).at[order].set(jnp.arange(whole.shape[0], dtype=jnp.int32))
    return own_rows(ranks < floor_share(1 - as_float(forget_rate), whole.shape[0]), here.shape[0], axis_name)


def co_teaching_loss(
    losses_a: ArrayLike,
    losses_b: ArrayLike,
    keep_for_a: ArrayLike,
    keep_for_b: ArrayLike,
    *,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    r"""Losses of two networks, each on the examples that the other one trusts.

    Scaled by B/n, so that their mean over the batch is the mean over the n kept examples.

    Args:
      losses_a: [B] of network a.
      losses_b: [B] of network b, on the same or on other examples.
      keep_for_a: bool [B], what a learns from: `small_loss_mask` of b's losses on a's examples.
      keep_for_b: bool [B], likewise from a.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: B and n are those of the global one.

    Returns:
      two [B] arrays; zeros where nothing is kept. No gradient passes through the choice.

    Raises:
      ValueError: shapes that differ.

    References:
      Han et al., arXiv:1804.06872.
    """

    def kept(name: str, losses: ArrayLike, mask_name: str, mask: ArrayLike) -> Array:
        _checks.rank(name, losses, 1)
        _checks.same_shape(name, losses, mask_name, mask)
        losses, mask = as_float(losses), jnp.asarray(mask, bool)
        count, size = sum_over(jnp.sum(mask), axis_name), sum_over(losses.shape[0], axis_name)
        scale = jnp.where(count > 0, size / jnp.maximum(count, 1), 0.0)
        return jnp.where(mask, losses, 0.0) * scale

    return kept("losses_a", losses_a, "keep_for_a", keep_for_a), kept("losses_b", losses_b, "keep_for_b", keep_for_b)
