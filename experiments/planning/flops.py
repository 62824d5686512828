"""Floating-point operations of a traced function, loops counted as often as they turn."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def count(jaxpr: Any, *, loops: bool = True) -> int:
    """FLOPs of the matrix products and convolutions of a jaxpr; without `loops` the inside of a scan is counted once.

    Of the branches of a conditional the dearest counts, and of a loop of unknown length one turn.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [count(inside, loops=loops) for inside in _inside(equation.params)]
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(inner, default=0)
        else:
            total += sum(inner) * (equation.params["length"] if name == "scan" and loops else 1)
    return total


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in params.values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
    summed = math.prod(kernel[axis] for axis in spec[1:])  # without the axis of output features
    return 2 * math.prod(equation.outvars[0].aval.shape) * summed
