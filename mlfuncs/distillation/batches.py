"""Distillation losses that compare a whole batch of predictions with another: transport between them, correlations."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from mlfuncs import _checks, transport
from mlfuncs._arrays import as_float, float_dtype, gather_batch, safe_sqrt, sum_over, vary_with
from mlfuncs.distillation import _rows
from mlfuncs.distillation._rows import (
    block_at,
    check_pair,
    check_temperature,
    normalizers,
    over_rows,
    pieces,
    scaled,
)

ROWS_AT_ONCE = 8  # of a matrix of distances
CORRELATION_EPSILON = 1e-8  # of the official code, in the denominator


def _check_batch(student_logits: ArrayLike, teacher_logits: ArrayLike, temperature: ArrayLike) -> tuple[Array, Array]:
    _checks.rank("student_logits", student_logits, 2)
    student, teacher = check_pair(student_logits, teacher_logits)
    if student.shape[0] == 0:
        raise ValueError(f"student_logits must hold at least one example, got shape {student.shape}")
    check_temperature(temperature)
    return student, teacher


def _row_normalizers(logits: Array, temperature: ArrayLike) -> tuple[Array, Array]:
    """As `normalizers`, on a block of rows at a time."""
    # The largest logit is a shift: its gradient cancels.
    constant, fixed = jax.lax.stop_gradient((logits, temperature))
    top = over_rows(lambda x: normalizers(x, fixed)[0][:, 0], constant)
    log_total = over_rows(lambda x: normalizers(x, temperature)[1][:, 0], logits)
    return top[:, None], log_total[:, None]


def _probabilities(chunk: Array, temperature: ArrayLike, normalizer: tuple[Array, Array]) -> Array:
    return jnp.exp((scaled(chunk, temperature) - normalizer[0]) - normalizer[1])


def _chunk_width(logits: Array) -> int:
    """Classes that are held at once of logits [B, C]."""
    return max(1, _rows.block() // logits.shape[0])


def _in_chunks(width: int, *arrays: Array) -> tuple[Array, ...]:
    """Arrays [B, C] as [B, chunks, about `width`]; masked classes at the end where the chunks need them."""
    classes = arrays[0].shape[1]
    chunks = pieces(classes, -(-classes // width), classes)
    rest = -classes % chunks
    whole = (jnp.pad(x, [(0, 0), (0, rest)], constant_values=-jnp.inf) if rest else x for x in arrays)
    return tuple(x.reshape(x.shape[0], chunks, -1) for x in whole)


def _chunk(index: Array, whole: tuple[Array, ...], classes: int) -> tuple[tuple[Array, ...], Array]:
    """The chunks at a place, and which of their classes there are."""
    width = whole[0].shape[2]
    return block_at(whole, index), index * width + jnp.arange(width) < classes


def _over_class_chunks(add: Callable[..., Any], start: Any, width: int, *arrays: Array) -> Any:
    """Folds `add(total, chunks, valid)` over chunks of about `width` classes of arrays [B, C]; padded classes are masked."""
    classes = arrays[0].shape[1]
    if classes <= width:
        return add(start, arrays, jnp.ones(classes, bool))
    whole = _in_chunks(width, *(x.astype(float_dtype(x)) for x in arrays))

    @jax.checkpoint
    def step(total: Any, index: Array) -> tuple[Any, None]:
        return add(total, *_chunk(index, whole, classes)), None

    return jax.lax.scan(step, start, jnp.arange(whole[0].shape[1]))[0]


@jax.custom_jvp
def _distances(q: Array, p: Array) -> Array:
    """[B, N] L1 distances between the rows of q [B, C] and of p [N, C], without an array [B, N, C]."""
    return _by_rows(lambda rows: jnp.sum(jnp.abs(rows[:, None] - p), axis=-1), q)


def _distances_jvp(arguments: tuple[Array, Array], changes: tuple[Array, Array]) -> tuple[Array, Array]:
    q, p = arguments
    total = jnp.zeros((q.shape[0], p.shape[0]), q.dtype)
    if not isinstance(changes[0], SymbolicZero):
        total += _distance_changes(q, p, changes[0])
    if not isinstance(changes[1], SymbolicZero):
        total += _distance_changes(p, q, changes[1]).T
    return _distances(q, p), total


def _distance_changes(q: Array, p: Array, change: Array) -> Array:
    """[B, N] changes of the distances with q."""
    by_class = p.T

    def of_rows(rows: Array, given: Array) -> Array:
        # Summed over a leading axis of classes: carried back it is a sum over the contiguous one of rows.
        return jnp.sum(jnp.sign(rows[:, :, None] - by_class) * given[:, :, None], axis=1)

    return _by_rows(of_rows, q, change)


_distances.defjvp(_distances_jvp, symbolic_zeros=True)


def _by_rows(function: Callable[..., Array], *arrays: Array) -> Array:
    """`function` of a few rows of arrays [B, C] at a time; every n-th, so that a batch that is split stays split."""
    batch = arrays[0].shape[0]
    if batch <= ROWS_AT_ONCE:
        return function(*arrays)
    padded = (jnp.pad(x, ((0, -batch % ROWS_AT_ONCE), (0, 0))) for x in arrays)
    whole = tuple(x.reshape(ROWS_AT_ONCE, -1, x.shape[1]) for x in padded)

    # Made again for the gradient, so that no array [B, N, C] is kept.
    @jax.checkpoint
    def block(index: Array) -> Array:
        return function(*(jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False) for x in whole))

    values = jnp.moveaxis(jax.lax.map(block, jnp.arange(whole[0].shape[1])), 0, 1)
    return values.reshape(-1, values.shape[2])[:batch]


def _prediction_distances(student: Array, teacher: Array, temperature: ArrayLike) -> Array:
    """[B, N] L1 distances between softened predictions, without an array [B, N, C]."""
    of_student, of_teacher = _row_normalizers(student, temperature), _row_normalizers(teacher, temperature)

    def add(total: Array, chunks: tuple[Array, Array], _: Array) -> Array:
        q = _probabilities(chunks[0], temperature, of_student)
        p = _probabilities(chunks[1], temperature, of_teacher)
        return total + _distances(q, p)

    start = vary_with(jnp.zeros((student.shape[0], teacher.shape[0]), of_student[0].dtype), student)
    return _over_class_chunks(add, start, _chunk_width(teacher), student, teacher)


def sinkhorn(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 2.0,
    regularization: ArrayLike = 0.1,
    iterations: int = 20,
    axis_name: str | None = None,
) -> Array:
    r"""Sinkhorn distance between a batch of student predictions and one of teacher predictions (SinKD).

    .. math:: D_{ij} = \|q_i - p_j\|_1, \quad r_i = B \sum_j P_{ij} D_{ij}

    P is the entropic plan of D between uniform masses (`transport.sinkhorn_plan`). Which teacher row belongs to which
    student row does not matter. Gradients pass through the cost and through the iterations, on both sides. The official
    code multiplies the sum by 0.001 or 0.0008: such factors are the caller's.

    Args:
      student_logits: [B, C], B and C >= 1. Tokens are rows: flatten [B, L, C].
      teacher_logits: like `student_logits`. Gradients pass to it too.
      temperature: T > 0, a scalar (may be traced). Default 2 (the code; it ignores its argument).
      regularization: lambda > 0, a scalar (may be traced). Default 0.1; D lies in [0, 2].
      iterations: >= 1. Default 20, as the code calls it.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: the plan is that of the global batch.
        None takes one plan for the rows that are here, which is what the official code does under data parallelism.

    Returns:
      [B] row costs >= 0, in at least float32: their sum is the official number, their mean the transport distance. At
      s = t they are positive (entropic blur) and vanish as lambda does. B = 1: the L1 distance. Memory grows with B^2 and
      not with B^2 C.

    Raises:
      ValueError: not two axes, shapes differ, empty, T or lambda <= 0, or iterations < 1.

    References:
      Cui et al., Sinkhorn Distance Minimization for Knowledge Distillation, arXiv:2402.17110.
    """
    student, teacher = _check_batch(student_logits, teacher_logits, temperature)
    _checks.rank("regularization", regularization, 0)
    teacher = gather_batch(teacher, axis_name)
    cost = _prediction_distances(student, teacher, temperature)
    plan = transport.sinkhorn_plan(cost, regularization=regularization, iterations=iterations, axis_name=axis_name)
    return teacher.shape[0] * jnp.sum(plan * cost, axis=1)


def _pearson(moments: Array) -> Array:
    """Correlation from the centred sums aa, bb and ab on the first axis; 0 where one side is constant."""
    aa, bb, ab = moments
    return ab / (safe_sqrt(aa) * safe_sqrt(bb) + CORRELATION_EPSILON)


def _moments(a: Array, b: Array, axis: int) -> Array:
    return jnp.stack([jnp.sum(a * a, axis), jnp.sum(b * b, axis), jnp.sum(a * b, axis)])


def _pearson_slopes(moments: Array) -> Array:
    """Derivatives of the correlation in aa, bb and ab."""
    return jax.vjp(_pearson, moments)[1](jnp.ones_like(moments[0]))[0]


def _pulled(slopes: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Derivatives in a and b, by those of their moments: of centred values, what centring changes cancels."""
    return 2 * slopes[0] * a + slopes[2] * b, 2 * slopes[1] * b + slopes[2] * a


class _Softened(NamedTuple):
    """What a chunk of classes needs of all of them: normalisers of the rows, their means, and sums over the batch."""

    normalizers: list[tuple[Array, Array]]
    row_means: list[Array]
    temperature: Array
    sums: Callable[[ArrayLike], Array]
    size: Array

    @staticmethod
    def of(pair: tuple[Array, Array], temperature: Array, axis_name: str | None) -> "_Softened":
        sums = functools.partial(sum_over, axis_name=axis_name)
        # Probabilities sum to 1, or to 0 where every class is masked.
        masked = [jnp.all(jnp.isneginf(x), axis=1, keepdims=True) for x in pair]
        means = [jnp.where(nothing, 0, 1 / pair[0].shape[1]) for nothing in masked]
        found = [_row_normalizers(x, temperature) for x in pair]
        return _Softened(found, means, temperature, sums, sums(pair[0].shape[0]))

    def probabilities(self, chunks: tuple[Array, ...]) -> list[Array]:
        pairs = zip(chunks, self.normalizers, strict=True)
        return [_probabilities(x, self.temperature, normalizer) for x, normalizer in pairs]

    def rows(self, pair: list[Array], valid: Array) -> list[Array]:
        return [jnp.where(valid, x - mean, 0.0) for x, mean in zip(pair, self.row_means, strict=True)]

    def columns(self, pair: list[Array]) -> tuple[list[Array], Array]:
        """Columns less their means over the batch, and their moments."""
        centred = [x - self.sums(jnp.sum(x, axis=0)) / self.size for x in pair]
        return centred, self.sums(_moments(centred[0], centred[1], 0))


def _correlation_totals(softened: _Softened, pair: tuple[Array, Array], *, pulled: bool) -> tuple[Array, Array, Array]:
    """Moments of the rows [3, B], the sum of the columns' correlations, and with `pulled` for either side [2, B] the sums
    over classes of its probabilities times the derivatives of that sum in them."""
    here = pair[0].shape[0]

    def add(total: tuple[Array, ...], chunks: tuple[Array, ...], valid: Array) -> tuple[Array, ...]:
        both = softened.probabilities(chunks)
        columns, moments = softened.columns(both)
        rows = softened.rows(both, valid)
        found = (total[0] + _moments(rows[0], rows[1], 1), total[1] + jnp.sum(_pearson(moments)))
        if not pulled:
            return found
        slopes = _pulled(_pearson_slopes(moments), *columns)
        return *found, total[2] + jnp.stack([jnp.sum(x * slope, 1) for x, slope in zip(both, slopes, strict=True)])

    kind = softened.normalizers[0][0].dtype
    zeros = lambda *shape: vary_with(jnp.zeros(shape, kind), pair[0])  # noqa: E731
    start = (zeros(3, here), jnp.zeros((), kind), *([zeros(2, here)] if pulled else []))
    totals = _over_class_chunks(add, start, _chunk_width(pair[0]), *pair)
    return totals if pulled else (*totals, zeros(2, here))


def _correlation_value(
    axis_name: str | None, student: Array, teacher: Array, temperature: Array, weights: tuple[Array, Array]
) -> Array:
    """beta (1 - mean correlation of rows) + gamma (1 - mean correlation of columns) of softened predictions."""
    softened = _Softened.of((student, teacher), temperature, axis_name)
    return _weighted_terms(softened, (student, teacher), weights, pulled=False)[0]


_correlation = jax.custom_jvp(_correlation_value, nondiff_argnums=(0,))


def _weighted_terms(
    softened: _Softened, pair: tuple[Array, Array], weights: tuple[Array, Array], *, pulled: bool
) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]]:
    """The value, its two terms, and what `_correlation_gradients` wants."""
    row_moments, column_total, of_columns = _correlation_totals(softened, pair, pulled=pulled)
    inter = 1 - softened.sums(jnp.sum(_pearson(row_moments))) / softened.size
    intra = 1 - column_total / pair[0].shape[1]
    return weights[0] * inter + weights[1] * intra, (inter, intra), (row_moments, of_columns)


def _correlation_gradients(
    softened: _Softened,
    pair: tuple[Array, Array],
    weights: tuple[Array, Array],
    totals: tuple[Array, Array],
    sides: list[int],
) -> list[Array]:
    """Gradients [B, C] of `_correlation` in the logits of the `sides` asked for, in their dtype, by chunks of classes.

    In logits z: q (g - sum_c q g) / tau, of g in the probabilities q.
    """
    (row_moments, of_columns), classes = totals, pair[0].shape[1]
    of_row, of_column = -weights[0] / softened.size, -weights[1] / classes
    row_slopes = _pearson_slopes(row_moments)
    # Centred rows sum to 0: sum_c q a is aa, and sum_c q b is ab.
    within = 2 * row_slopes[:2] * row_moments[:2] + row_slopes[2] * row_moments[2]
    mean = (of_row * within + of_column * of_columns)[..., None]
    whole = _in_chunks(_chunk_width(pair[0]), *pair)

    def step(gradients: list[Array], index: Array) -> tuple[list[Array], None]:
        chunks, valid = _chunk(index, whole, classes)
        both = softened.probabilities(chunks)
        columns, moments = softened.columns(both)
        by_columns = _pulled(_pearson_slopes(moments), *columns)
        by_rows = _pulled(row_slopes[..., None], *softened.rows(both, valid))
        made = [
            both[k] * (of_row * by_rows[k] + of_column * by_columns[k] - mean[k]) / softened.temperature for k in sides
        ]
        pairs = zip(gradients, made, strict=True)
        return [jax.lax.dynamic_update_index_in_dim(g, x.astype(g.dtype), index, 1) for g, x in pairs], None

    start = [vary_with(jnp.zeros(whole[k].shape, float_dtype(pair[k])), pair[0]) for k in sides]
    gradients = jax.lax.scan(step, start, jnp.arange(whole[0].shape[1]))[0]
    return [g.reshape(g.shape[0], -1)[:, :classes] for g in gradients]


def _correlation_jvp(axis_name: str | None, arguments: Any, changes: Any) -> tuple[Array, Array]:
    student, teacher, temperature, weights = arguments
    pair, softened = (student, teacher), _Softened.of((student, teacher), temperature, axis_name)
    value, terms, totals = _weighted_terms(softened, pair, weights, pulled=True)
    change = jnp.zeros_like(value)
    sides = [k for k in range(2) if not isinstance(changes[k], SymbolicZero)]
    if sides:
        gradients = _correlation_gradients(softened, pair, weights, totals, sides)
        products = [
            g.astype(value.dtype) * changes[k].astype(value.dtype) for k, g in zip(sides, gradients, strict=True)
        ]
        change += sum(softened.sums(jnp.sum(product)) for product in products)
    if not isinstance(changes[2], SymbolicZero):
        at = lambda temperature: _correlation_value(axis_name, *pair, temperature, weights)  # noqa: E731
        change += jax.jvp(at, (temperature,), (changes[2],))[1]
    for term, of_weight in zip(terms, changes[3], strict=True):
        if not isinstance(of_weight, SymbolicZero):
            change += term * of_weight
    return value, change


_correlation.defjvp(_correlation_jvp, symbolic_zeros=True)


def correlation(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    inter_weight: ArrayLike = 1.0,
    intra_weight: ArrayLike = 1.0,
    axis_name: str | None = None,
) -> Array:
    r"""Correlation distance between softened predictions (DIST), within examples and within classes.

    .. math:: \tau^2 \big[ \beta\, (1 - \overline{\rho(q_{i,:}, p_{i,:})})
              + \gamma\, (1 - \overline{\rho(q_{:,c}, p_{:,c})}) \big]

    rho is the Pearson correlation, with 1e-8 added to its denominator as in the official code: rows or columns that are
    constant on either side have rho = 0; what they pass is finite, but large where the other side is not constant.

    Args:
      student_logits: [B, C], B and C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      temperature: tau > 0, a scalar (may be traced). Defaults 1, 1, 1; DIST on CIFAR has tau = 4, beta = gamma = 2.
      inter_weight: beta, for the mean over examples.
      intra_weight: gamma, for the mean over classes, which depends on the whole batch.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: the loss is that of the global batch.

    Returns:
      scalar in [0, 2 tau^2 (beta + gamma)] up to rounding, in at least float32. B = 1 or C = 1: the columns or the rows are
      constant and their term is its weight, tau^2 included, with gradient 0.

    Raises:
      ValueError: not two axes, shapes differ, empty, or tau <= 0.

    References:
      Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536; as a baseline arXiv:2506.12542.
    """
    student, teacher = _check_batch(student_logits, teacher_logits, temperature)
    # Python numbers leave the precision to the logits.
    kind = jnp.result_type(as_float(student), as_float(teacher), temperature, inter_weight, intra_weight)
    weights = (jnp.asarray(inter_weight, kind), jnp.asarray(intra_weight, kind))
    # One chunk is kept for the backward pass; of several the gradients are made at once.
    plain = student.shape[1] <= _chunk_width(student)
    function = _correlation_value if plain else _correlation
    value = function(axis_name, student, teacher, jnp.asarray(temperature, kind), weights)
    return jnp.multiply(temperature, temperature * value)
