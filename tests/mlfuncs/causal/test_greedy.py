"""GES by hand, on every class of four variables, against the best of all graphs, and on data with dropouts; bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import causal

MANY = 10**8  # samples, so many that a dependence gains, however weak, and that its cost is next to nothing


def population(edges, d, rng, low=0.25):
    """Covariance of linear structural equations over the edges, of weights in [low, 1] and of either sign."""
    weights = np.zeros((d, d))
    for i, j in edges:
        weights[i, j] = rng.choice([-1, 1]) * rng.uniform(low, 1)
    total = np.linalg.inv(np.eye(d) - weights)
    return total.T @ np.diag(rng.uniform(1, 2, d)) @ total


def local_score(covariance, count, j, parents):
    """The criterion of one variable and its parents, in float64: half of BIC, to be made large."""
    parents = list(parents)
    inside = covariance[np.ix_(parents, parents)]
    left = covariance[j, j] - covariance[j, parents] @ np.linalg.solve(inside, covariance[parents, j])
    return -0.5 * count * np.log(left) - len(parents) * np.log(count) / 2


def scorer(covariance, count, calls=None):
    """Gains of edges from differences of local scores; independent of what the library computes them by."""

    def score_change(i, j, parents):
        if calls is not None:
            calls.extend((int(a), int(b), tuple(np.flatnonzero(p))) for a, b, p in zip(i, j, parents, strict=True))
        return np.array([
            local_score(covariance, count, b, [*np.flatnonzero(p), a]) - local_score(covariance, count, b, np.flatnonzero(p))
            for a, b, p in zip(i, j, parents, strict=True)
        ])  # fmt: skip

    return score_change


def acyclic_graphs(d):
    """All directed acyclic graphs of d variables, bool [d, d] each."""
    pairs = list(itertools.combinations(range(d), 2))
    for ways in itertools.product((None, False, True), repeat=len(pairs)):
        graph = np.zeros((d, d), bool)
        for (i, j), way in zip(pairs, ways, strict=True):
            if way is not None:
                graph[(i, j) if way else (j, i)] = True
        if not np.linalg.matrix_power(graph.astype(int), d).any():
            yield graph


def links(matrix):
    return sorted((int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True))


GRAPHS = list(acyclic_graphs(4))


def test_graphs_of_four_variables_and_their_classes():
    """543 graphs in 185 classes, as counted by Robinson (1973) and by Gillispie and Perlman (2001)."""
    assert len(GRAPHS) == 543
    assert len({causal.equivalence_class(graph).tobytes() for graph in GRAPHS}) == 185


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([], []),
        ([(0, 1), (1, 2)], [(0, 1), (1, 0), (1, 2), (2, 1)]),  # chain
        ([(0, 1), (2, 1)], [(0, 1), (2, 1)]),  # collider
        ([(0, 1), (0, 2), (1, 3), (2, 3)], [(0, 1), (0, 2), (1, 0), (1, 3), (2, 0), (2, 3)]),  # diamond
    ],
)
def test_population_by_hand(edges, expected):
    """Exact correlations: the edges that every graph with the same independences has, and no others."""
    covariance = population(edges, 4, np.random.default_rng(0), low=0.5)
    precise = scorer(covariance, MANY)
    assert links(causal.greedy_equivalence_search(precise, 4)) == expected

    def by_correlation(i, j, parents):  # the same from the library's score
        rho = []
        for a, b, p in zip(i, j, parents, strict=True):
            chosen = [a, b, *np.flatnonzero(p)]
            inverse = np.linalg.inv(covariance[np.ix_(chosen, chosen)])
            rho.append(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))
        return causal.bic_score_change(np.array(rho), 100_000)

    assert links(causal.greedy_equivalence_search(by_correlation, 4)) == expected


def test_every_class_of_four_variables_is_found_from_its_population():
    """What the theory promises in the limit: the class itself, whichever of its graphs made the data."""
    rng = np.random.default_rng(2)
    classes = {causal.equivalence_class(graph).tobytes(): graph for graph in GRAPHS}
    for graph in classes.values():
        covariance = population(links(graph), 4, rng, low=0.5)
        found = causal.greedy_equivalence_search(scorer(covariance, MANY), 4)
        np.testing.assert_array_equal(found, causal.equivalence_class(graph), err_msg=str(links(graph)))


def best_class(covariance, count):
    """The class of the graph with the highest score of all, by enumeration, and that score."""
    d = len(covariance)
    local = {
        (j, parents): local_score(covariance, count, j, parents)
        for j in range(d)
        for size in range(d)
        for parents in itertools.combinations([k for k in range(d) if k != j], size)
    }
    total = [sum(local[j, tuple(np.flatnonzero(graph[:, j]).tolist())] for j in range(d)) for graph in GRAPHS]
    return causal.equivalence_class(GRAPHS[int(np.argmax(total))]), max(total)


def test_greedy_is_the_best_of_all_graphs_on_large_samples():
    """30 random graphs of four variables, 20,000 samples each: the greedy class has the best score in every one."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        graph = GRAPHS[rng.integers(len(GRAPHS))]
        truth = population(links(graph), 4, rng)
        data = rng.multivariate_normal(np.zeros(4), truth, 20_000)
        covariance = np.cov(data.T, bias=True)
        best, _ = best_class(covariance, 20_000)
        np.testing.assert_array_equal(causal.greedy_equivalence_search(scorer(covariance, 20_000), 4), best)


def test_small_samples_may_end_below_the_best_but_never_above():
    """60 samples of 40 graphs: every result is a class whose score is what its steps add up to, most are the best."""
    rng = np.random.default_rng(4)
    agree = 0
    for _ in range(40):
        graph = GRAPHS[rng.integers(len(GRAPHS))]
        covariance = np.cov(rng.multivariate_normal(np.zeros(4), population(links(graph), 4, rng), 60).T, bias=True)
        best, score = best_class(covariance, 60)
        found = causal.greedy_equivalence_search(scorer(covariance, 60), 4)
        member = next(g for g in GRAPHS if (causal.equivalence_class(g) == found).all())
        reached = sum(local_score(covariance, 60, j, np.flatnonzero(member[:, j])) for j in range(4))
        assert reached <= score + 1e-6
        agree += bool((found == best).all())
    assert agree >= 30


def test_the_order_of_variables_does_not_matter_and_nothing_is_asked_twice():
    rng = np.random.default_rng(5)
    for _ in range(5):
        edges = [(a, b) for a, b in itertools.combinations(range(6), 2) if rng.random() < 0.4]
        covariance, order, calls = population(edges, 6, rng, low=0.5), rng.permutation(6), []
        found = causal.greedy_equivalence_search(scorer(covariance, MANY, calls), 6)
        assert len(calls) == len(set(calls))
        assert all(a != b and a not in p and b not in p for a, b, p in calls)
        permuted = causal.greedy_equivalence_search(scorer(covariance[np.ix_(order, order)], MANY), 6)
        np.testing.assert_array_equal(permuted, found[np.ix_(order, order)])


def test_a_limit_on_parents():
    """Four independent causes of one effect: at most two of them are taken as parents."""
    covariance = population([(k, 4) for k in range(4)], 5, np.random.default_rng(6), low=0.5)
    free = causal.greedy_equivalence_search(scorer(covariance, 10_000), 5)
    assert links(free) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    calls = []
    causal.greedy_equivalence_search(scorer(covariance, 10_000, calls), 5, max_parents=2)
    assert max(len(p) for _, _, p in calls) == 1


def test_a_graph_is_found_through_dropouts():
    """A collider with a chain behind it, 4000 cells, three of ten values missed: deleting finds the class."""
    key = jax.random.key(0)
    a, b, c, d = jax.random.normal(key, (4, 4000))
    c = 0.9 * a - 0.9 * b + 0.5 * c
    data = causal.sample_dropout(jax.random.key(1), jnp.stack([a, b, c, 0.9 * c + 0.6 * d], 1) + 0.5, 0.3)
    found = causal.greedy_equivalence_search(
        lambda i, j, given: causal.zero_deleted_score_changes(data, i, j, given, penalty=1.0), 4
    )
    assert links(found) == [(0, 2), (1, 2), (2, 3)]


def test_bad_input():
    nothing = lambda i, j, parents: -np.ones(len(i))  # noqa: E731
    assert not causal.greedy_equivalence_search(nothing, 3).any()
    for count in (1, 0, 2.5):
        with pytest.raises(ValueError, match="num_variables"):
            causal.greedy_equivalence_search(nothing, count)
    with pytest.raises(ValueError, match="max_parents"):
        causal.greedy_equivalence_search(nothing, 3, max_parents=0)
    with pytest.raises(ValueError, match=r"score_change must give one value an edge, \(6,\), got \(\)"):
        causal.greedy_equivalence_search(lambda i, j, parents: 0.5, 3)
    with pytest.raises(ValueError, match="score_change must give numbers, got NaN for 6 of 6 edges"):
        causal.greedy_equivalence_search(lambda i, j, parents: np.full(len(i), np.nan), 3)
