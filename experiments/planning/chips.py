"""Accelerators that can be planned for, and the shapes they come in."""

import math
import re
from typing import NamedTuple

from experiments.engine.errors import UserError, unknown

GIB = 2**30
LOCAL = "local"


class Chip(NamedTuple):
    """What one device can do."""

    name: str
    memory: float  # bytes that a program may use
    bandwidth: float  # bytes a second between memory and the cores
    flops: float  # a second, in bfloat16: matrix units take float32 in bfloat16 passes too, unless told otherwise
    interconnect: float  # bytes a second, over all links to other chips together
    axes: int = 0  # of the grid of chips


# Bandwidth, FLOPs and interconnect (1600, 4800 and 3584 Gbit/s) are of Google's pages "TPU v5e", "TPU v5p" and "TPU v6e"
# (cloud.google.com/tpu/docs/v5e, /v5p, /v6e). Memory is what the compiler of libtpu 0.0.52 lets a program have; the pages
# say 16, 95 and 32 GiB.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 15.75 * GIB, 819e9, 197e12, 1600e9 / 8, axes=2),
        Chip("v5p", 95.73 * GIB, 2765e9, 459e12, 4800e9 / 8, axes=3),
        Chip("v6e", 31.24 * GIB, 1640e9, 918e12, 3584e9 / 8, axes=2),
    )
}
EXAMPLES = {2: "4x4", 3: "4x4x4"}


class Topology(NamedTuple):
    """A kind of chip and the sides of their grid; no sides: the devices of this machine."""

    kind: str
    sides: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.sides))}" if self.sides else self.kind

    @property
    def chips(self) -> int:
        return math.prod(self.sides)

    def doubled(self) -> "Topology":
        """Twice the chips: the shortest side, the last of several, is doubled."""
        at = max(i for i, side in enumerate(self.sides) if side == min(self.sides))
        return self._replace(sides=tuple(2 * side if i == at else side for i, side in enumerate(self.sides)))


def parse(text: str) -> Topology:
    """The topology that `--topology` names, such as v5e:16x16 or local."""
    if text == LOCAL:
        return Topology(LOCAL)
    kind, _, shape = text.partition(":")
    if kind not in CHIPS:
        known = [f"{chip.name}:{EXAMPLES[chip.axes]}" for chip in CHIPS.values()]
        raise unknown("--topology", text, [*known, LOCAL])
    axes = CHIPS[kind].axes
    if not re.fullmatch("x".join([r"[1-9]\d{0,3}"] * axes), shape):
        raise UserError(f"--topology: {kind} chips stand in {axes} axes, e.g. {kind}:{EXAMPLES[axes]}, got {text!r}")
    return Topology(kind, tuple(int(side) for side in shape.split("x")))
