"""Running sums along ranked classes [..., C], by recurrences that neither overflow nor cancel.

On a CPU each runs through the classes one at a time, over all rows at once. Where rows are few, it runs through pieces of
the classes side by side and then through the pieces: about sqrt(C) steps in place of C. Elsewhere, where a step costs more
than its arithmetic, neighbours are joined pairwise, in log C steps.
"""

import jax
import jax.numpy as jnp
from jax import Array

from mlfuncs._arrays import vary_with

LANES = 1024  # numbers that a step works on, about


def tail_log_sum_exp(scores: Array) -> Array:
    """Z_k = log sum_{l >= k} exp s_l; -inf where no class is left that is not masked."""
    return jnp.asarray(jax.lax.platform_dependent(scores, cpu=_tails_in_steps, default=_tails_in_pairs))


def discounted_sums(weights: Array, tails: Array) -> Array:
    """A_k = sum_{l <= k} w_l exp(Z_k - Z_l), of tails Z that never rise: no factor is above 1. w_k where Z is -inf."""
    return jnp.asarray(
        jax.lax.platform_dependent(weights, tails, cpu=_discounted_in_steps, default=_discounted_in_pairs)
    )


def _tails_in_pairs(scores: Array) -> Array:
    return jax.lax.associative_scan(_log_add, scores, reverse=True, axis=scores.ndim - 1)


def _discounted_in_pairs(weights: Array, tails: Array) -> Array:
    def join(before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
        return before[0] * after[0], before[1] * after[0] + after[1]

    falls = _falls(tails, jnp.concatenate([tails[..., :1], tails[..., :-1]], axis=-1))
    # The first fall, which is that of nothing, tells of a NaN alone.
    return jax.lax.associative_scan(join, (falls, weights + 0 * falls), axis=-1)[1]


def _tails_in_steps(scores: Array) -> Array:
    pieces = _pieces(scores, -jnp.inf)
    inside = _tails(pieces)
    later = jnp.moveaxis(inside[0], -1, 0)
    if later.shape[0] > 1:
        later = jnp.concatenate([_tails(later)[1:], jnp.full_like(later[:1], -jnp.inf)])
        inside = _log_add(inside, jnp.moveaxis(later, 0, -1))
    return _whole(inside, scores.shape)


def _discounted_in_steps(weights: Array, tails: Array) -> Array:
    pieces, levels = _pieces(weights, 0.0), _pieces(tails, -jnp.inf)
    sums = _discounted(pieces, levels)
    if sums.shape[-1] > 1:
        ends = jnp.moveaxis(levels[-1], -1, 0)
        before = _discounted(jnp.moveaxis(sums[-1], -1, 0), ends)[:-1]
        before = jnp.moveaxis(jnp.concatenate([jnp.zeros_like(before[:1]), before]), 0, -1)
        level_before = jnp.moveaxis(jnp.concatenate([jnp.full_like(ends[:1], jnp.inf), ends[:-1]]), 0, -1)
        sums += before * _falls(levels, level_before)
    return _whole(sums, weights.shape)


def _pieces(x: Array, fill: float) -> Array:
    """[steps, rows, pieces] of [..., C], padded with `fill` at the end."""
    classes = x.shape[-1]
    rows = x.size // classes
    count = max(1, min(classes, LANES // max(1, rows)))
    steps = -(-classes // count)
    x = jnp.pad(x.reshape(rows, classes), ((0, 0), (0, steps * count - classes)), constant_values=fill)
    return jnp.moveaxis(x.reshape(rows, count, steps), -1, 0)


def _whole(pieces: Array, shape: tuple[int, ...]) -> Array:
    x = jnp.moveaxis(pieces, 0, -1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2])[:, : shape[-1]].reshape(shape)


def _tails(scores: Array) -> Array:
    """`tail_log_sum_exp` along the first axis."""

    def step(state: tuple[Array, Array], score: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        top, total = state
        higher = jnp.maximum(top, score)
        state = higher, total * jnp.exp(top - higher) + jnp.exp(score - higher)
        return state, state

    lowest = jnp.full_like(scores[0], jnp.finfo(scores.dtype).min)
    start = vary_with(lowest, scores), vary_with(jnp.zeros_like(lowest), scores)
    top, total = jax.lax.scan(step, start, scores, reverse=True)[1]
    some = ~(total <= 0)
    return jnp.where(some, top + jnp.log(jnp.where(some, total, 1.0)), -jnp.inf)


def _log_add(a: Array, b: Array) -> Array:
    some = ~(jnp.isneginf(a) & jnp.isneginf(b))
    return jnp.where(some, jnp.logaddexp(jnp.where(some, a, 0.0), b), -jnp.inf)


def _falls(tails: Array, before: Array) -> Array:
    """exp(Z_k - Z_before), 0 where nothing is left."""
    left = ~jnp.isneginf(tails)
    return jnp.where(left, jnp.exp(jnp.where(left, tails, 0.0) - jnp.where(left, before, 0.0)), 0.0)


def _discounted(weights: Array, tails: Array) -> Array:
    """`discounted_sums` along the first axis."""

    def step(total: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        weight, fall = given
        total = total * fall + weight
        return total, total

    falls = _falls(tails, jnp.concatenate([tails[:1], tails[:-1]]))
    return jax.lax.scan(step, vary_with(jnp.zeros_like(weights[0]), weights), (weights, falls))[1]
