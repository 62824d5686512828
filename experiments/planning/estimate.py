"""From a compiler's numbers to time, memory, a verdict, and the smallest change that would make a run fit."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_collections

from experiments.planning.chips import CHIPS, LOCAL, Chip, Topology

COMPILATIONS = 4  # of changed configs, at most
GRADIENT_BYTES = 4  # a parameter

Numbers = dict[str, Any]  # what the worker found


class Estimate(NamedTuple):
    """One step on one of the chips, unless said otherwise."""

    topology: Topology
    chip: Chip
    compiled: bool  # False: the compiler refused for want of memory, and only FLOPs and bytes are known
    devices: int
    parameters: int  # of the whole model
    arguments: float
    temporaries: float
    output: float  # beside the state, which is written in place
    waiting: float  # batches of the steps to come
    code: float  # the compiled program
    needed: float  # bytes of all this
    flops: float
    accessed: float  # bytes between memory and cores
    collectives: dict[str, int]  # bytes by kind

    @property
    def fits(self) -> bool:
        return self.compiled and self.needed <= self.chip.memory

    @property
    def compute_seconds(self) -> float:
        return self.flops / self.chip.flops

    @property
    def memory_seconds(self) -> float:
        return self.accessed / self.chip.bandwidth

    @property
    def collective_seconds(self) -> float:
        return sum(self.collectives.values()) / self.chip.interconnect if self.collectives else 0.0

    @property
    def step_seconds(self) -> float:
        """The roofline, and communication behind it: the compiler hides some of that, and no chip stays at its peak."""
        return max(self.compute_seconds, self.memory_seconds) + self.collective_seconds


def estimate(numbers: Numbers, topology: Topology) -> Estimate:
    """What the worker's numbers mean on the chips of a topology."""
    compiled, waiting = "arguments" in numbers, numbers["waiting_bytes"]
    output = max(0, numbers["output"] - numbers["aliased"]) if compiled else 0
    needed = numbers["needed_bytes"] if not compiled else 0
    arguments = numbers["arguments"] if compiled else numbers["argument_bytes"]
    temporaries = numbers["temporaries"] if compiled else max(0.0, needed - arguments)
    code = numbers.get("code", 0)
    return Estimate(
        topology=topology,
        chip=Chip(**numbers["chip"]) if topology.kind == LOCAL else CHIPS[topology.kind],
        compiled=compiled,
        devices=numbers["devices"],
        parameters=numbers["parameters"],
        arguments=arguments,
        temporaries=temporaries,
        output=output,
        waiting=waiting,
        code=code,
        needed=arguments + temporaries + output + waiting + code,
        flops=numbers["flops"],
        accessed=numbers.get("accessed", 0.0),
        collectives=numbers.get("collectives", {}),
    )


class Change(NamedTuple):
    """Another config or topology, as a user would type it."""

    fields: tuple[tuple[str, Any], ...] = ()
    topology: Topology | None = None

    @property
    def flags(self) -> str:
        typed = [f"--config.{path}={value}" for path, value in self.fields]
        return " ".join([*typed, *([f"--topology={self.topology.name}"] if self.topology else [])])

    def applied(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        config = ml_collections.ConfigDict(config.to_dict())
        config.update_from_flattened_dict(dict(self.fields))
        return config


def changes(config: ml_collections.ConfigDict, numbers: Numbers, topology: Topology) -> Iterator[Change]:
    """Changes that should make the run fit by arithmetic, the cheapest first."""
    now = estimate(numbers, topology)
    gradients = min(GRADIENT_BYTES * now.parameters, now.temporaries)
    kept = now.needed - numbers["state_bytes"] - now.temporaries
    mesh, batch = numbers["mesh"], config.batch_size

    def predicted(fewer: float = 1, parts: int = 1) -> float:
        """`fewer`: what activations are divided by; `parts`: over how many more chips the state is split."""
        return kept + (numbers["state_bytes"] + gradients) / parts + (now.temporaries - gradients) / fewer

    def enough(fewer: float = 1, parts: int = 1) -> bool:
        return predicted(fewer, parts) <= now.chip.memory

    each = batch // (mesh["data"] * mesh["fsdp"] * config.accumulate)  # examples that a device takes at once
    halvings = [2**i for i in range(1, each.bit_length()) if each % 2**i == 0]
    splits = [2**i for i in range(1, mesh["data"].bit_length()) if mesh["data"] % 2**i == 0]
    if config.model.get("remat", True) is False:
        yield Change((("model.remat", True),))  # what it spares isn't known before it is compiled
    for times in halvings:
        if enough(times):
            yield Change((("accumulate", config.accumulate * times),))
    for parts in splits:
        if enough(1, parts):
            yield Change(_split(config, mesh, parts))
    for parts in splits:
        for times in halvings:
            if enough(times, parts) and not enough(times) and not enough(1, parts):
                yield Change(((("accumulate", config.accumulate * times)), *_split(config, mesh, parts)))
    if topology.kind != LOCAL:
        larger, times = topology.doubled(), 2
        while times <= each and each % times == 0 and not enough(times):
            larger, times = larger.doubled(), 2 * times
        if times <= each and each % times == 0 and -1 in dict(config.mesh).values():
            yield Change(topology=larger)


def _split(config: ml_collections.ConfigDict, mesh: dict[str, int], parts: int) -> tuple[tuple[str, Any], ...]:
    """The fields that split the state over `parts` times as many devices."""
    split = ("mesh.fsdp", mesh["fsdp"] * parts)
    return (split,) if config.mesh.data == -1 else (("mesh.data", mesh["data"] // parts), split)


def smallest_change(
    config: ml_collections.ConfigDict,
    numbers: Numbers,
    topology: Topology,
    compile_step: Callable[[ml_collections.ConfigDict, Topology], Numbers],
) -> tuple[Change, Estimate] | None:
    """The first change that fits when it is compiled, or None where none of those tried does."""
    for _, change in zip(range(COMPILATIONS), changes(config, numbers, topology), strict=False):
        place = change.topology or topology
        changed = estimate(compile_step(change.applied(config), place), place)
        if changed.fits:
            return change, changed
    return None
