"""Nearest neighbours among stored features: a loss that asks for a majority of them, the classifier, the store.

A bank is two arrays, features [M, D] and labels [M] of which -1 marks an empty place, and an integer that says where the
next ones go: state to carry through a training loop, and to save with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, gather_batch, gather_over, own_rows, top_k, unit_vectors


class _Neighbours(NamedTuple):
    """Of each query [B, K], best first: similarity over temperature, label, and whether it is one at all."""

    scores: Array
    labels: Array
    found: Array

    def best(self, k: int) -> "_Neighbours":
        places = _places(self.scores, self.found, k)
        return _Neighbours(*(jnp.take_along_axis(part, places, axis=1) for part in self))

    def of_all(self, k: int, batch: int, axis_name: str | None) -> "_Neighbours":
        """The best of this device's queries, where each device knows those of all queries in its own part of the bank."""
        if axis_name is None:
            return self

        def exchange(part: Array) -> Array:
            parts = gather_over(part.astype(jnp.int32) if part.dtype == bool else part, axis_name)  # [devices, N, K]
            rows = jnp.moveaxis(parts, 0, 1).reshape(part.shape[0], -1)  # in the order of the bank, for ties
            return own_rows(rows, batch, axis_name).astype(part.dtype)

        return _Neighbours(*map(exchange, self)).best(k)


def _places(scores: Array, found: Array, k: int) -> Array:
    """[B, k] of the most similar ones found, the lower place of equal ones. Which ones is not differentiated."""
    ranked = jax.lax.stop_gradient(jnp.where(found, scores, -jnp.inf))
    return top_k(ranked, min(k, ranked.shape[1]))[1]


class _Search(NamedTuple):
    """Unit vectors: the queries of all devices [N, D], over temperature, and this device's part of the bank [M, D]."""

    queries: Array
    bank: Array
    labels: Array  # [M]
    scores: Array  # [N, M]
    found: Array  # [1, M] or [N, M]: which places count

    def best(self, k: int, label: Array | None = None) -> _Neighbours:
        """Of each query, with `label` [N, 1] among places that have it."""
        found = self.found if label is None else self.found & (self.labels == label)
        places = _places(self.scores, found, k)
        if places.shape[1] * self.bank.shape[1] <= self.bank.shape[0]:
            # Few features: their products again, for a derivative without one as large as that of all scores.
            scores = jnp.einsum("nd,nkd->nk", self.queries, self.bank[places], precision=jax.lax.Precision.HIGHEST)
        else:
            scores = jnp.take_along_axis(self.scores, places, axis=1)
        here = jnp.take_along_axis(jnp.broadcast_to(found, self.scores.shape), places, axis=1)
        return _Neighbours(scores, self.labels[places], here)


def _check_bank(bank: ArrayLike, bank_labels: ArrayLike) -> None:
    _checks.rank("bank", bank, 2)
    if np.size(bank) == 0:
        raise ValueError(f"bank must hold at least one place and feature, got shape {np.shape(bank)}")
    _checks.per_example("bank_labels", bank_labels, np.shape(bank)[0])
    _checks.integers("bank_labels", bank_labels)


def _check_queries(
    queries: ArrayLike, bank: ArrayLike, k: int, temperature: ArrayLike, exclude: ArrayLike | None
) -> None:
    _checks.rank("queries", queries, 2)
    if np.shape(queries)[1] != np.shape(bank)[1]:
        raise ValueError(
            f"queries and bank must have one number of features, got {np.shape(queries)[1]} and {np.shape(bank)[1]}"
        )
    _checks.count("k", k)
    _checks.rank("temperature", temperature, 0)
    _checks.positive("temperature", temperature)
    if exclude is not None:
        _checks.per_example("exclude", exclude, np.shape(queries)[0])
        _checks.integers("exclude", exclude)


def _search(
    queries: ArrayLike,
    bank: ArrayLike,
    bank_labels: ArrayLike,
    temperature: ArrayLike,
    exclude: ArrayLike | None,
    axis_name: str | None,
) -> _Search:
    f = unit_vectors(gather_batch(as_float(queries), axis_name)) / as_float(temperature)
    v, labels = unit_vectors(as_float(bank)), jnp.asarray(bank_labels, jnp.int32)
    scores = jnp.matmul(f, v.T, precision=jax.lax.Precision.HIGHEST)
    found = labels[None] >= 0
    if exclude is not None:
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * v.shape[0]
        own = gather_batch(jnp.asarray(exclude, jnp.int32), axis_name)
        found &= first + jnp.arange(v.shape[0]) != own[:, None]
    return _Search(f, v, labels, scores, found)


def _log_sum_exp(scores: Array, chosen: Array) -> Array:
    """[B] over the chosen ones; -inf, without gradient, where there are none."""
    some = jnp.any(chosen, axis=1)
    scores = jnp.where(chosen, scores, jnp.where(some, -jnp.inf, 0.0)[:, None])
    return jnp.where(some, jax.nn.logsumexp(scores, axis=1), -jnp.inf)


def leave_one_out_neighbours(
    queries: ArrayLike,
    query_labels: ArrayLike,
    bank: ArrayLike,
    bank_labels: ArrayLike,
    *,
    k: int = 20,
    temperature: ArrayLike = 0.07,
    exclude: ArrayLike | None = None,
    guarantee_positive: bool = True,
    axis_name: str | None = None,
) -> Array:
    r"""LOOK: the leave-one-out error of a weighted k-nearest-neighbour classifier, as a loss.

    .. math:: -\log \frac{\sum_{j \in N_k(i),\, y_j = y_i} e^{s_{ij} / \tau}}{\sum_{j \in N_k(i)} e^{s_{ij} / \tau}}

    with cosines s and the k most similar entries N_k. It is exactly 0 once all of them are of the query's class, however
    far other parts of the class lie: a class may keep several clusters. With k >= M it is neighbourhood component
    analysis. The paper's method section was not available: weights, k, temperature and `guarantee_positive` are inferred.

    Args:
      queries: [B, D] features, normalised here.
      query_labels: [B] integers.
      bank: [M, D] features, normalised here. A gradient passes, for entries that are from the current batch; `enqueue`
        stores constants. Which entries are neighbours is not differentiated.
      bank_labels: [M] integers, negative where a place is empty. Until the bank has k entries, all it has are used.
      k: >= 1, may exceed M. Default 20, of the common evaluation; well below the size of a class, so that it can split.
      temperature: tau > 0, scalar, may be traced. Default 0.07, likewise.
      exclude: [B] integers, place of the query itself in the bank, or -1. Other views of the same image are other places.
        None: no query is in the bank.
      guarantee_positive: adds the most similar entry of the query's class to neighbours that have none of it.
      axis_name: inside `shard_map` or `pmap`, an axis over which both queries and bank are split, with `exclude` counted
        in the whole bank. Only the k best of each part are exchanged. Where every device holds the whole bank, None.

    Returns:
      [B] losses >= 0. Without any entry of its class in the bank a query has 0, without gradient; an empty bank gives 0
      for all. With `guarantee_positive=False`, +inf where no neighbour has the query's class.

    Raises:
      ValueError: queries or bank without two axes or of other widths, a bank of no places, labels or `exclude` that are
        not integers, one an entry, `k` below 1, `temperature` not positive or a concrete `exclude` outside the bank.

    References:
      Feng et al., Rethinking Supervised Pre-training for Better Downstream Transferring, arXiv:2110.06014.
    """
    _check_bank(bank, bank_labels)
    _check_queries(queries, bank, k, temperature, exclude)
    batch, places = np.shape(queries)[0], np.shape(bank)[0]
    _checks.per_example("query_labels", query_labels, batch)
    _checks.integers("query_labels", query_labels)
    if exclude is not None and axis_name is None:
        _checks.within("exclude", exclude, -1, places - 1)
    search = _search(queries, bank, bank_labels, temperature, exclude, axis_name)
    labels = jnp.asarray(query_labels, jnp.int32)[:, None]
    nearest = search.best(k).of_all(k, batch, axis_name)
    if guarantee_positive:
        closest = search.best(1, gather_batch(labels, axis_name)).of_all(1, batch, axis_name)
        lacking = ~jnp.any(nearest.found & (nearest.labels == labels), axis=1, keepdims=True)
        closest = closest._replace(found=closest.found & lacking)
        nearest = _Neighbours(*(jnp.concatenate(both, axis=1) for both in zip(nearest, closest, strict=True)))
    return _vote_loss(nearest, nearest.labels == labels, 0.0 if guarantee_positive else jnp.inf)


def _vote_loss(neighbours: _Neighbours, same: Array, without: float) -> Array:
    """[B]: -log of the share of `same` in the vote; `without` where none is."""
    right = _log_sum_exp(neighbours.scores, neighbours.found & same)
    wrong = _log_sum_exp(neighbours.scores, neighbours.found & ~same)
    contested = (right > -jnp.inf) & (wrong > -jnp.inf)
    margin = jnp.where(contested, wrong - right, 0.0)
    uncontested = jnp.where(right == -jnp.inf, without, 0.0)
    # Not a difference of logarithms of sums: this is exact near 0. NaN similarities stay NaN.
    loss = jnp.where(contested, jax.nn.softplus(margin), uncontested)
    return jnp.where(jnp.isnan(right) | jnp.isnan(wrong), jnp.nan, loss)


def neighbour_class_probabilities(
    queries: ArrayLike,
    bank: ArrayLike,
    bank_labels: ArrayLike,
    *,
    num_classes: int,
    k: int = 20,
    temperature: ArrayLike = 0.07,
    exclude: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""The weighted k-nearest-neighbour classifier: neighbours vote with weights :math:`e^{s / \tau}`.

    Args:
      queries: [B, D] features, normalised here.
      bank: [M, D] features, normalised here.
      bank_labels: [M] integers below `num_classes`, negative where a place is empty.
      num_classes: C >= 1.
      k: >= 1, may exceed M. Default 20, of the common evaluation.
      temperature: tau > 0, scalar, may be traced. Default 0.07, likewise.
      exclude: [B] integers, place of the query itself in the bank, or -1. None: no query is in the bank.
      axis_name: as in `leave_one_out_neighbours`.

    Returns:
      [B, C] of sum 1; all 0 where a query has no neighbour, as with an empty bank.

    Raises:
      ValueError: as `leave_one_out_neighbours`; `num_classes` below 1 or concrete labels that reach it.

    References:
      Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, arXiv:1805.01978; Feng et al.,
      arXiv:2110.06014.
    """
    _check_bank(bank, bank_labels)
    _check_queries(queries, bank, k, temperature, exclude)
    _checks.count("num_classes", num_classes)
    if _checks.is_concrete(bank_labels) and np.max(np.asarray(bank_labels)) >= num_classes:
        raise ValueError(f"bank_labels must be below num_classes {num_classes}, got {np.max(np.asarray(bank_labels))}")
    batch, places = np.shape(queries)[0], np.shape(bank)[0]
    if exclude is not None and axis_name is None:
        _checks.within("exclude", exclude, -1, places - 1)
    search = _search(queries, bank, bank_labels, temperature, exclude, axis_name)
    scores, labels, found = search.best(k).of_all(k, batch, axis_name)
    total = _log_sum_exp(scores, found)[:, None]
    votes = jnp.where(found, jnp.exp(jnp.where(found, scores - total, 0.0)), 0.0)
    # Added up in place: no [B, k, C].
    classes = jnp.zeros((batch, num_classes), votes.dtype)
    return classes.at[jnp.arange(batch)[:, None], jnp.maximum(labels, 0)].add(votes)


def enqueue(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    pointer: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    axis_name: str | None = None,
) -> tuple[Array, Array, Array]:
    """Stores features in a ring buffer, over the oldest ones. Start with labels of -1 and a pointer of 0.

    Args:
      bank: [M, D].
      bank_labels: [M] integers, -1 where a place is empty.
      pointer: integer scalar from 0 to M - 1, the place of the next feature; may be traced.
      features: [B, D], B <= M; no gradient passes.
      labels: [B] integers.
      axis_name: inside `shard_map` or `pmap`, the axis over which features and labels are split. Every device holds the
        whole bank, and stores the global batch in its order.

    Returns:
      (bank, bank_labels, pointer) like the arguments, with the pointer behind the last feature.

    Raises:
      ValueError: widths that differ, a bank of no places, labels that are not integers, one a feature, more features
        (on all devices) than places, or a `pointer` that is not an integer or, where concrete, outside the bank.

    References:
      He et al., Momentum Contrast for Unsupervised Visual Representation Learning, arXiv:1911.05722; Feng et al.,
      arXiv:2110.06014.
    """
    _check_bank(bank, bank_labels)
    _checks.rank("features", features, 2)
    places = np.shape(bank)[0]
    if np.shape(features)[1] != np.shape(bank)[1]:
        raise ValueError(
            f"features and bank must have one number of features, got {np.shape(features)[1]} and {np.shape(bank)[1]}"
        )
    _checks.per_example("labels", labels, np.shape(features)[0])
    _checks.integers("labels", labels)
    _checks.rank("pointer", pointer, 0)
    _checks.integers("pointer", pointer)
    _checks.within("pointer", pointer, 0, places - 1)
    stored = gather_batch(jax.lax.stop_gradient(jnp.asarray(features)), axis_name)
    stored_labels = gather_batch(jnp.asarray(labels), axis_name)
    if stored.shape[0] > places:
        raise ValueError(f"features must fit into the bank, got {stored.shape[0]} for {places} places")
    bank, bank_labels, pointer = jnp.asarray(bank), jnp.asarray(bank_labels), jnp.asarray(pointer)
    at = (pointer + jnp.arange(stored.shape[0])) % places
    bank = bank.at[at].set(stored.astype(bank.dtype), unique_indices=True)
    bank_labels = bank_labels.at[at].set(stored_labels.astype(bank_labels.dtype), unique_indices=True)
    return bank, bank_labels, ((pointer + stored.shape[0]) % places).astype(pointer.dtype)
