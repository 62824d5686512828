"""Costs of architectures by hand, and of sparse replacements against dense layers."""

import math

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
