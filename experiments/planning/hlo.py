"""What a compiled program sends between devices, read from its HLO text."""

import functools
import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")

_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.-]+)\s*\(.*->.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT\s+)?%?[\w.-]+\s*=\s*(.*?)\s([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"?known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


class _Computation(NamedTuple):
    sent: Counter[str]  # bytes by kind, of its own instructions
    calls: list[tuple[str, int]]  # other computations, and how often each runs


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes that each kind of collective results in on one device, in one run of the program.

    Counted is the size of the result: for an all-reduce the array that is reduced, for an all-gather the gathered whole,
    for a reduce-scatter the part that stays. A pair of start and done counts once, an instruction inside a loop as often
    as the loop is known to turn (once where that is not known), and every branch of a conditional.
    """
    entry, computations = _parse(text)

    @functools.cache
    def total(name: str) -> Counter[str]:
        own = computations.get(name)
        counted: Counter[str] = Counter()
        if own is None:
            return counted
        counted.update(own.sent)
        for called, times in own.calls:
            counted.update({kind: times * size for kind, size in total(called).items()})
        return counted

    return {kind: size for kind, size in sorted(total(entry).items()) if size}


def _parse(text: str) -> tuple[str, dict[str, _Computation]]:
    entry, computations = "", {}
    current = _Computation(Counter(), [])
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            current = computations[opened[2]] = _Computation(Counter(), [])
            entry = opened[2] if opened[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            result, opcode, rest = instruction.groups()
            kind = opcode.removesuffix("-done")
            if kind in KINDS:
                # The result of a start holds its operand too; that of the done is the result alone.
                current.sent[kind] += size_of(result)
            elif not opcode.endswith(("-done", "-update")):  # they name again what their start calls
                current.calls.extend(_called(opcode, rest))
    return entry, computations


def _called(opcode: str, rest: str) -> list[tuple[str, int]]:
    trips = _TRIPS.search(rest)
    times = int(trips[1]) if trips and opcode == "while" else 1
    names = _CALLED.findall(rest)
    for branches in _BRANCHES.findall(rest):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    return [(name, times) for name in names]


def size_of(shape: str) -> int:
    """Bytes of an HLO shape, such as f32[8,4]{1,0} or a tuple of several."""
    total = 0
    for dtype, sides in _ARRAY.findall(shape):
        total += math.ceil(_bits(dtype) / 8 * math.prod(int(side) for side in sides.split(",") if side))
    return total


def _bits(dtype: str) -> int:
    """bf16 -> 16, f8e4m3fn -> 8, pred -> 8."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
