"""PC and its orientations by hand, on random graphs and on data; classes of graphs; bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import causal


def separated(edges, i, j, given):
    """Whether the set d-separates i and j in the graph: no path in the moral graph of their ancestors avoids it."""
    ancestors, grown = {i, j, *given}, True
    while grown:
        before = len(ancestors)
        ancestors |= {a for a, b in edges if b in ancestors}
        grown = len(ancestors) > before
    links = {frozenset(e) for e in edges if set(e) <= ancestors}
    for k in ancestors:
        links |= {frozenset(p) for p in itertools.combinations([a for a, b in edges if b == k and a in ancestors], 2)}
    reached, grown = {i}, True
    while grown:
        before = len(reached)
        reached |= {b for link in links for a in link for b in link if a in reached and b not in given}
        grown = len(reached) > before
    return j not in reached


def oracle(edges, calls=None):
    def p_value(i, j, conditioning):
        if calls is not None:
            calls.append((np.asarray(i), np.asarray(j), np.asarray(conditioning)))
        return [
            float(separated(edges, a, b, set(np.flatnonzero(s)))) for a, b, s in zip(i, j, conditioning, strict=True)
        ]

    return p_value


def links(matrix):
    return sorted((int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True))


def discovered(edges, d):
    return causal.orient_skeleton(*causal.pc_skeleton(oracle(edges), d))


def test_chain_and_collider():
    skeleton, separating = causal.pc_skeleton(oracle([(0, 1), (1, 2)]), 3)
    assert links(skeleton) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert separating == {(0, 2): (1,)}
    assert links(causal.orient_skeleton(skeleton, separating)) == links(skeleton)  # chain: no direction is implied
    skeleton, separating = causal.pc_skeleton(oracle([(0, 1), (2, 1)]), 3)
    assert separating == {(0, 2): ()}
    assert links(causal.orient_skeleton(skeleton, separating)) == [(0, 1), (2, 1)]


def test_first_rule_of_meek():
    # 0 -> 2 <- 1 and 2 -> 3: the last edge can't point back, or it would be another collider.
    assert links(discovered([(0, 2), (1, 2), (2, 3)], 4)) == [(0, 2), (1, 2), (2, 3)]


def test_second_rule_of_meek():
    # 0 -> 1 -> 2 and 0 - 2; the arrows come from colliders with 3 and 4.
    edges = [(0, 1), (3, 1), (1, 2), (4, 2), (0, 2), (3, 2)]
    assert links(discovered(edges, 5)) == sorted(edges)
    # The rule alone: arrows as given v-structures, the third edge by acyclicity.
    skeleton = np.zeros((4, 4), bool)
    for a, b in [(0, 1), (3, 1), (1, 2), (0, 2)]:
        skeleton[a, b] = skeleton[b, a] = True
    # 0 -> 1 <- 3 (collider); 3 -> 1 - 2 gives 1 -> 2 (rule 1); 0 -> 1 -> 2 and 0 - 2 give 0 -> 2 (rule 2).
    separating = {(0, 3): (), (2, 3): (1,)}
    assert links(causal.orient_skeleton(skeleton, separating)) == [(0, 1), (0, 2), (1, 2), (3, 1)]


def test_third_rule_of_meek():
    # 0 - 1 -> 3 <- 2 - 0, 1 and 2 apart, 0 - 3: the edge 0 - 3 must point to 3; 0 - 1 and 0 - 2 stay open.
    edges = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert links(discovered(edges, 4)) == sorted([(0, 1), (1, 0), (0, 2), (2, 0), (0, 3), (1, 3), (2, 3)])


def test_skeletons_of_random_graphs_are_exact_and_do_not_depend_on_order():
    rng = np.random.default_rng(0)
    for _ in range(10):
        d = 6
        order = rng.permutation(d)
        edges = [(int(order[a]), int(order[b])) for a, b in itertools.combinations(range(d), 2) if rng.random() < 0.4]
        skeleton, separating = causal.pc_skeleton(oracle(edges), d)
        assert set(links(skeleton)) == {e for a, b in edges for e in ((a, b), (b, a))}
        for (i, j), given in separating.items():
            assert i < j
            assert separated(edges, i, j, set(given))
        directed = causal.orient_skeleton(skeleton, separating)
        # Whatever is directed agrees with the truth.
        for i, j in links(directed):
            assert directed[j, i] or (i, j) in edges


def test_a_depth_is_one_call_and_limits_hold():
    calls = []
    causal.pc_skeleton(oracle([(0, 1), (1, 2), (2, 3), (0, 3)], calls), 4)
    assert [int(c.sum(1).min()) for _, _, c in calls] == [int(c.sum(1).max()) for _, _, c in calls] == [0, 1, 2]
    for i, j, conditioning in calls:
        rows = np.arange(len(i))
        assert not conditioning[rows, i].any()
        assert not conditioning[rows, j].any()
    skeleton, _ = causal.pc_skeleton(oracle([(0, 1), (1, 2)]), 3, max_conditioning=0)
    assert skeleton.sum() == 6  # the chain's ends need a set of one
    # The level: a p-value of 0.06 removes at 0.05, not at 0.1.
    weak = lambda i, j, conditioning: np.full(len(i), 0.06)  # noqa: E731
    assert causal.pc_skeleton(weak, 3)[0].sum() == 0
    assert causal.pc_skeleton(weak, 3, alpha=0.1)[0].sum() == 6


def test_pc_on_data():
    """The chain a -> b -> c, by tests on 5000 cells."""
    a, b, c = jax.random.normal(jax.random.key(0), (3, 5000))
    b = 0.8 * a + 0.6 * b
    data = jnp.stack([a, b, 0.8 * b + 0.6 * c], axis=1)
    test = jax.jit(jax.vmap(lambda i, j, s: causal.zero_deleted_independence_test(data, i, j, s)))
    skeleton, separating = causal.pc_skeleton(test, 3, alpha=1e-3)
    assert links(skeleton) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert separating == {(0, 2): (1,)}


def matrix(edges, d):
    graph = np.zeros((d, d))
    for i, j in edges:
        graph[i, j] = -0.5  # weights of structural equations, of either sign
    return graph


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([], []),
        ([(0, 1), (1, 2)], [(0, 1), (1, 0), (1, 2), (2, 1)]),  # a chain, and the fork below: one class
        ([(1, 0), (1, 2)], [(0, 1), (1, 0), (1, 2), (2, 1)]),
        ([(0, 1), (2, 1)], [(0, 1), (2, 1)]),  # a collider
        ([(0, 1), (2, 1), (0, 2)], [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]),  # shielded: all orders agree
        ([(0, 1), (0, 2), (1, 3), (2, 3)], [(0, 1), (0, 2), (1, 0), (1, 3), (2, 0), (2, 3)]),  # diamond
    ],
)
def test_classes_by_hand(edges, expected):
    assert links(causal.equivalence_class(matrix(edges, 4))) == expected


def test_classes_are_those_of_the_search_with_perfect_tests():
    rng = np.random.default_rng(1)
    for _ in range(20):
        order = rng.permutation(6)
        edges = [(int(order[a]), int(order[b])) for a, b in itertools.combinations(range(6), 2) if rng.random() < 0.4]
        np.testing.assert_array_equal(causal.equivalence_class(matrix(edges, 6)), discovered(edges, 6))


def test_bad_input():
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            causal.pc_skeleton(oracle([]), 3, alpha=alpha)
    with pytest.raises(ValueError, match="num_variables"):
        causal.pc_skeleton(oracle([]), 1)
    with pytest.raises(ValueError, match="max_conditioning"):
        causal.pc_skeleton(oracle([]), 3, max_conditioning=-1)
    with pytest.raises(ValueError, match="p_value"):
        causal.pc_skeleton(lambda i, j, s: 0.5, 3)
    for adjacency in (np.ones((2, 3)), np.array([[0, 1], [0, 0]])):
        with pytest.raises(ValueError, match="adjacency"):
            causal.orient_skeleton(adjacency, {})
    for edges in ([(0, 1), (1, 0)], [(0, 1), (1, 2), (2, 0)], [(3, 3)]):
        with pytest.raises(ValueError, match=r"directed must be acyclic, got a cycle"):
            causal.equivalence_class(matrix(edges, 4))
    with pytest.raises(ValueError, match=r"directed must be square, got shape \(2, 3\)"):
        causal.equivalence_class(np.zeros((2, 3)))
