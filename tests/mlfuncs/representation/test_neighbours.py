"""Neighbours and their bank: by hand and against a loop, edges, gradients, ring buffer, split batches, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import representation

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
RANDOM = np.random.default_rng(0)
BANK = RANDOM.normal(size=(16, 3)).astype(np.float32)
BANK_LABELS = np.array([0, 1, 2, -1, 0, 0, 1, 2, 2, 1, 0, 3, -1, 1, 2, 0])
OWN = np.array([0, 5, 11, -1, 9, 2, -1, 7])  # of the queries; 11 is the only one of its class
LABELS = np.array([0, 0, 3, 2, 1, 2, 4, 2])  # no entry of class 4
QUERIES = np.where(OWN[:, None] >= 0, BANK[OWN], RANDOM.normal(size=(8, 3))).astype(np.float32)
SETTINGS = {"k": 3, "temperature": 0.1}


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def vote(query, bank, labels, own, k, temperature, label=None):
    """One query in float64: [(label, weight)] of its neighbours; with `label`, the closest of it where none is there."""
    scores = unit(bank) @ unit(query) / temperature
    places = [j for j in np.argsort(-scores, kind="stable") if labels[j] >= 0 and j != own]
    chosen = places[:k]
    if label is not None and label not in labels[chosen]:
        chosen += [j for j in places if labels[j] == label][:1]
    return [(labels[j], np.exp(scores[j])) for j in chosen]


def textbook_loss(k, temperature, guarantee=True):
    losses = []
    for query, label, own in zip(QUERIES, LABELS, OWN, strict=True):
        votes = vote(query, BANK, BANK_LABELS, own, k, temperature, label if guarantee else None)
        right = sum(weight for c, weight in votes if c == label)
        share = right / sum(weight for _, weight in votes)
        losses.append(-np.log(share) if right else (0.0 if guarantee else np.inf))
    return losses


def look(**more):
    arguments = {"exclude": OWN, **SETTINGS, **more}
    return representation.leave_one_out_neighbours(QUERIES, LABELS, BANK, BANK_LABELS, **arguments)


@pytest.mark.parametrize("guarantee", [True, False])
@pytest.mark.parametrize("k", [1, 3, 16, 50])
def test_loss_agrees_with_a_loop(k, guarantee):
    expected = textbook_loss(k, 0.1, guarantee)
    np.testing.assert_allclose(look(k=k, guarantee_positive=guarantee), expected, rtol=1e-4, atol=1e-6)


def test_loss_by_hand():
    # Cosines 1, 0 and -1 of labels 1, 0 and 0 with temperature 1; a fourth place is empty.
    bank = jnp.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [5.0, 0.0]])
    arguments = jnp.array([[7.0, 0.0]] * 2), jnp.array([1, 0]), bank, jnp.array([1, 0, 0, -1])
    loss = partial(representation.leave_one_out_neighbours, *arguments, temperature=1.0)
    e = np.e
    np.testing.assert_allclose(loss(k=2), [np.log(1 + 1 / e), np.log(1 + e)], rtol=1e-5)
    np.testing.assert_allclose(loss(k=9), [np.log(1 + (1 + 1 / e) / e), np.log(1 + e / (1 + 1 / e))], rtol=1e-5)
    # The only neighbour is of class 1: the second query gets the closest of class 0 as well.
    np.testing.assert_allclose(loss(k=1), [0, np.log(1 + e)], rtol=1e-5)
    np.testing.assert_allclose(loss(k=1, guarantee_positive=False), [0, np.inf])
    # The first place left out: of class 1 there is nothing.
    np.testing.assert_allclose(loss(k=2, exclude=jnp.array([0, 0])), [0, 0])


def test_all_neighbours_and_the_own_entry_left_out_is_neighbourhood_component_analysis():
    scores = unit(BANK) @ unit(BANK).T / 0.5
    labels = np.arange(16) % 3
    np.fill_diagonal(scores, -np.inf)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = -np.log(np.sum(shares * (labels[:, None] == labels), axis=1))
    loss = representation.leave_one_out_neighbours(
        BANK, labels, BANK, labels, k=16, temperature=0.5, exclude=np.arange(16)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_class_may_keep_several_clusters():
    """Two far clusters of one class, each with others of its own: no loss and no pull between them."""
    bank = jnp.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    labels = jnp.array([0, 0, 0, 0, 1, 1])
    loss = lambda bank, k: representation.leave_one_out_neighbours(  # noqa: E731
        bank, labels, bank, labels, k=k, exclude=jnp.arange(6)
    ).sum()
    value, slope = jax.value_and_grad(loss)(bank, 1)
    assert value == 0
    np.testing.assert_array_equal(slope, np.zeros_like(bank))
    assert loss(bank, 6) > 0


def test_invariances():
    rotation = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0].astype(np.float32)
    scales = RANDOM.uniform(0.1, 10, (16, 1)).astype(np.float32)
    loss = partial(representation.leave_one_out_neighbours, **SETTINGS)
    value = look()
    turned = loss(3 * QUERIES @ rotation, LABELS, BANK * scales @ rotation, BANK_LABELS, exclude=OWN)
    np.testing.assert_allclose(turned, value, rtol=1e-3, atol=1e-5)
    order = RANDOM.permutation(16)
    moved = np.where(OWN >= 0, np.argsort(order)[OWN], -1)
    np.testing.assert_allclose(loss(QUERIES, LABELS, BANK[order], BANK_LABELS[order], exclude=moved), value, rtol=1e-5)


def test_the_classifier_votes():
    settings = {**SETTINGS, "num_classes": 5, "exclude": OWN}
    shares = representation.neighbour_class_probabilities(QUERIES, BANK, BANK_LABELS, **settings)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    for row, query, own in zip(shares, QUERIES, OWN, strict=True):
        expected = np.zeros(5)
        for label, weight in vote(query, BANK, BANK_LABELS, own, **SETTINGS):
            expected[label] += weight
        np.testing.assert_allclose(row, expected / expected.sum(), rtol=1e-4, atol=1e-6)
    # What the classifier gives to the label is what the loss takes the logarithm of.
    right = np.take_along_axis(np.asarray(shares), LABELS[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(np.exp(-look(guarantee_positive=False)), right, rtol=1e-4, atol=1e-6)


def test_equal_similarities_go_to_the_lower_place():
    bank, labels = jnp.ones((4, 2)), jnp.array([2, 0, 1, 1])
    shares = representation.neighbour_class_probabilities(jnp.ones((1, 2)), bank, labels, num_classes=3, k=2)
    np.testing.assert_allclose(shares, [[0.5, 0.0, 0.5]], rtol=1e-5)


@pytest.mark.parametrize("guarantee", [True, False])
def test_empty_and_degenerate_banks(guarantee):
    empty = np.full(16, -1)
    loss = partial(representation.leave_one_out_neighbours, **SETTINGS, guarantee_positive=guarantee)

    def total(queries, bank, labels):
        losses = loss(queries, LABELS, bank, labels)
        return jnp.sum(jnp.where(jnp.isfinite(losses), losses, 0.0))

    np.testing.assert_array_equal(loss(QUERIES, LABELS, BANK, empty), np.full(8, 0 if guarantee else np.inf))
    shares = representation.neighbour_class_probabilities(QUERIES, BANK, empty, num_classes=5)
    np.testing.assert_array_equal(shares, np.zeros((8, 5)))
    one_class = loss(QUERIES, np.zeros(8, int), BANK, np.zeros(16, int), exclude=OWN)
    np.testing.assert_array_equal(one_class, np.zeros(8))
    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))
    for queries, bank, labels in (
        (QUERIES, BANK, BANK_LABELS),
        (0 * QUERIES, BANK, BANK_LABELS),
        (QUERIES, 0 * BANK, BANK_LABELS),
        (QUERIES, BANK, empty),
    ):
        for slope in slopes(queries, bank, labels):
            assert np.all(np.isfinite(slope))


def test_numbers_at_their_limits():
    # Similarities over temperature 2000 apart: no overflow, and the loss is their difference.
    loss = partial(representation.leave_one_out_neighbours, jnp.array([[1.0, 0.0]]), k=2, temperature=1e-3)
    bank = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(loss(jnp.array([1]), bank, jnp.array([0, 1])), [2000.0], rtol=1e-5)
    np.testing.assert_allclose(loss(jnp.array([0]), bank, jnp.array([0, 1])), [0.0])
    assert np.isnan(loss(jnp.array([0]), bank * jnp.nan, jnp.array([0, 0])))
    assert loss(jnp.array([0]), bank.astype(jnp.bfloat16), jnp.array([0, 1])).dtype == jnp.float32


def test_gradients_reach_queries_and_those_entries_that_are_neighbours():

    def loss(q, b):
        return representation.leave_one_out_neighbours(q, LABELS[:1], b, BANK_LABELS, exclude=OWN[:1], **SETTINGS).sum()

    slope, in_bank = jax.grad(loss, argnums=(0, 1))(jnp.asarray(QUERIES[:1]), jnp.asarray(BANK))
    assert np.any(slope)
    scores = unit(BANK) @ unit(QUERIES[0])
    places = [j for j in np.argsort(-scores) if BANK_LABELS[j] >= 0 and j != OWN[0]][:3]
    assert set(np.flatnonzero(np.any(in_bank != 0, axis=1))) <= set(places)
    step = 1e-3 * np.asarray(slope)
    numeric = (loss(QUERIES[:1] + step, BANK) - loss(QUERIES[:1] - step, BANK)) / 2
    np.testing.assert_allclose(numeric, np.sum(np.square(slope)) * 1e-3, rtol=0.02)


def push(state, numbers, **more):
    features = jnp.asarray(numbers, jnp.float32)[:, None]
    return representation.enqueue(*state, features, jnp.asarray(numbers, jnp.int32), **more)


def test_the_ring_buffer_keeps_the_newest_in_their_places():
    state = jnp.zeros((5, 1)), jnp.full(5, -1), 0
    state = push(state, [1, 2, 3])
    np.testing.assert_array_equal(state[1], [1, 2, 3, -1, -1])
    assert int(state[2]) == 3
    state = push(state, [4, 5, 6])
    np.testing.assert_array_equal(state[1], [6, 2, 3, 4, 5])
    state = push(state, [7, 8, 9, 10, 11])  # as many as there are places
    np.testing.assert_array_equal(state[1], [11, 7, 8, 9, 10])
    np.testing.assert_array_equal(state[0][:, 0], state[1])
    assert int(state[2]) == 1
    same = push(state, [])
    np.testing.assert_array_equal(same[1], state[1])


def test_the_state_of_a_loop_keeps_its_types_and_stores_constants():
    state = jnp.zeros((5, 1), jnp.bfloat16), jnp.full(5, -1, jnp.int8), jnp.int32(4)

    def step(state, number):
        return push(state, number + jnp.arange(2)), None

    last, _ = jax.lax.scan(step, state, jnp.array([10, 20, 30]))
    assert [part.dtype for part in last] == [part.dtype for part in state]
    np.testing.assert_array_equal(last[1], [11, 20, 21, 30, 31])
    stored = lambda f: representation.enqueue(*state, f, jnp.zeros(2, int))[0].sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(stored)(jnp.ones((2, 1))), np.zeros((2, 1)))


def test_enqueuing_a_split_batch_is_enqueuing_the_whole():
    state = jnp.zeros((20, 3)), jnp.full(20, -1), jnp.int32(15)
    expected = representation.enqueue(*state, BANK, BANK_LABELS)
    function = partial(representation.enqueue, axis_name="data")
    specs = (P(), P(), P(), P("data"), P("data"))
    across = jax.jit(jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=P()))(*state, BANK, BANK_LABELS)
    for ours, theirs in zip(across, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    copies = jax.tree.map(lambda x: jnp.stack([x] * 8), state)
    by_pmap = jax.pmap(function, axis_name="data")(*copies, BANK.reshape(8, 2, 3), BANK_LABELS.reshape(8, 2))
    for ours, theirs in zip(by_pmap, expected, strict=True):
        for device in (0, 7):
            np.testing.assert_array_equal(ours[device], theirs)


@pytest.mark.parametrize("k", [3, 50])
def test_a_split_bank_gives_the_neighbours_of_the_whole(k):
    """Values and gradients, ties over devices included."""
    tied = BANK.copy()
    tied[9], tied[13] = tied[1], tied[1]
    settings = {"k": k, "temperature": 0.1}

    def loss(queries, bank, axis_name=None, exclude=OWN, labels=LABELS, bank_labels=BANK_LABELS):
        more = {**settings, "axis_name": axis_name, "exclude": exclude}
        shares = representation.neighbour_class_probabilities(queries, bank, bank_labels, num_classes=5, **more)
        return representation.leave_one_out_neighbours(queries, labels, bank, bank_labels, **more), shares

    def across(queries, bank):
        body = lambda q, b, own, labels, of_bank: loss(q, b, "data", own, labels, of_bank)  # noqa: E731
        split = jax.shard_map(body, mesh=MESH, in_specs=(P("data"),) * 5, out_specs=P("data"))
        return jax.jit(split)(queries, bank, OWN, LABELS, BANK_LABELS)

    for ours, theirs in zip(across(QUERIES, tied), loss(QUERIES, tied), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    slopes = (jax.grad(lambda q, b, f=f: f(q, b)[0].mean(), argnums=(0, 1))(QUERIES, tied) for f in (across, loss))
    for ours, theirs in zip(*slopes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def wrong(**changed):
    arguments = {"queries": QUERIES, "query_labels": LABELS, "bank": BANK, "bank_labels": BANK_LABELS, **changed}
    return representation.leave_one_out_neighbours(**arguments)


def wrongly_stored(**changed):
    arguments = {"bank": BANK, "bank_labels": BANK_LABELS, "pointer": 0, "features": QUERIES, "labels": LABELS}
    return representation.enqueue(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: wrong(k=0), "k must"),
        (lambda: wrong(temperature=0.0), "temperature"),
        (lambda: wrong(queries=QUERIES[:, :2]), "2 and 3"),
        (lambda: wrong(queries=QUERIES[0]), "queries"),
        (lambda: wrong(bank=BANK[:0], bank_labels=BANK_LABELS[:0]), "at least one place"),
        (lambda: wrong(bank_labels=BANK_LABELS[:3]), "bank_labels"),
        (lambda: wrong(bank_labels=BANK_LABELS * 1.0), "bank_labels must hold integers"),
        (lambda: wrong(query_labels=LABELS[:3]), "query_labels"),
        (lambda: wrong(query_labels=LABELS * 1.0), "query_labels must hold integers"),
        (lambda: wrong(exclude=OWN[:3]), "exclude"),
        (lambda: wrong(exclude=OWN * 1.0), "exclude must hold integers"),
        (lambda: wrong(exclude=OWN + 10), r"exclude must be in \[-1, 15\]"),
        (
            lambda: representation.neighbour_class_probabilities(QUERIES, BANK, BANK_LABELS, num_classes=3),
            "below num_classes 3, got 3",
        ),
        (
            lambda: representation.neighbour_class_probabilities(QUERIES, BANK, BANK_LABELS, num_classes=5, k=-1),
            "k must",
        ),
        (lambda: wrongly_stored(features=QUERIES[:, :2]), "2 and 3"),
        (lambda: wrongly_stored(labels=LABELS[:3]), "labels"),
        (lambda: wrongly_stored(labels=LABELS * 1.0), "labels must hold integers"),
        (lambda: wrongly_stored(bank=BANK[:5], bank_labels=BANK_LABELS[:5]), "8 for 5 places"),
        (lambda: wrongly_stored(pointer=16), "pointer"),
        (lambda: wrongly_stored(pointer=1.0), "pointer must hold integers"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
