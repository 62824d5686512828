"""Costs of architectures by hand, and of sparse replacements against dense layers."""

import math

import numpy as np
import pytest

from mlfuncs import architecture_search, sparsity


def test_multiply_adds_by_hand():
    assert architecture_search.layer_flops((64, 48), 1, 1.0) == 3072
    assert architecture_search.layer_flops((3, 3, 16, 32), 28 * 28, 0.25) == 9 * 16 * 32 * 784 // 4
    assert architecture_search.layer_flops((5,), 2, 0.0) == 0
    assert isinstance(architecture_search.layer_flops((3, 3), 1, 0.5), int)


@pytest.mark.parametrize("sparse", [0.5, 0.75, 0.9, 0.95])
@pytest.mark.parametrize("inside", [64, 200, 512])
@pytest.mark.parametrize("outside", [64, 300])
@pytest.mark.parametrize("taps", [1, 9])
def test_sparse_replacements_cost_as_much(sparse, inside, outside, taps):
    """Within 5 % for widths of at least 64, with the masks' densities; 1 / (1 - s) is whole for these sparsities."""
    flops = architecture_search.layer_flops
    dense = flops((taps, inside, outside), 1, 1.0)
    settings = {"in_features": inside, "out_features": outside, "sparsity": sparse, "kernel_size": taps}
    width = lambda family, **k: sparsity.iso_flop_width(family=family, **{**settings, **k})  # noqa: E731

    wide_out = width("wide", in_features=outside, out_features=inside)
    assert math.isclose(flops((taps, width("wide"), wide_out), 1, 1 - sparse), dense, rel_tol=0.05)
    assert math.isclose(width("parallel") * flops((taps, inside, outside), 1, 1 - sparse), dense, rel_tol=0.05)
    hidden = width("factorized")
    both = flops((taps, inside, hidden), 1, 1 - sparse) + flops((hidden, outside), 1, 1 - sparse)
    assert math.isclose(both, dense, rel_tol=0.05)
    rank = width("doped")
    doped = flops((taps, inside, outside), 1, 1 - sparse)
    doped += (flops((taps, inside, rank), 1, 1.0) + flops((rank, outside), 1, 1.0)) if rank else 0
    assert math.isclose(doped, dense, rel_tol=0.05)


def test_bad_sizes_of_layers():
    for shape in ((), (0, 3), (2.5, 3)):
        with pytest.raises(ValueError, match="shape"):
            architecture_search.layer_flops(shape, 1, 1.0)
    with pytest.raises(ValueError, match="positions"):
        architecture_search.layer_flops((2, 3), 0, 1.0)
    for density in (-0.1, 1.1):
        with pytest.raises(ValueError, match="density"):
            architecture_search.layer_flops((2, 3), 1, density)


def test_parameters_of_transformers():
    count = architecture_search.transformer_parameter_count
    # H = 2, one layer, all heads, R = 1, no embeddings: attention 4 + 12 + 12, feed-forward 8 + 2 + 6, top 4 + 4.
    assert count(1, 12, 2, 1.0, embeddings=0) == 28 + 16 + 8
    assert 108e6 < count(12, 12, 768, 4) < 111e6  # BERT-base
    heads = np.array([7, 10])
    np.testing.assert_allclose(count(4, heads, 128, 2.0), [count(4, h, 128, 2.0) for h in (7, 10)])
    for bad, match in (((0, 7, 128, 2.0), "layers"), ((4, 7, -1, 2.0), "hidden"), ((4, 7, 128, 0.0), "ratio")):
        with pytest.raises(ValueError, match=match):
            count(*bad)
    with pytest.raises(ValueError, match="max_heads"):
        count(4, 7, 128, 2.0, max_heads=0)
