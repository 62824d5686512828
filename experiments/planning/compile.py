"""The worker of a plan: compiles a step for a topology in a process of its own, and writes what it found to a file.

usage: python -m experiments.planning.compile REQUEST RESULT

Standard input stays open as long as somebody waits for the result.
"""

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import ml_collections

from experiments.engine.errors import UserError

# What the TPU compiler says of a program that is too large for its chip; the sizes are in GiB.
TOO_LARGE = re.compile(r"RESOURCE_EXHAUSTED.*?\(([\d.]+)([KMG])\) exceeds available HBM", re.DOTALL)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def measure(config: ml_collections.ConfigDict, kind: str, name: str) -> dict[str, Any]:
    """The numbers of a step of a resolved config on a topology."""
    import jax

    from experiments.planning import chips, flops, hlo, program

    local = kind == chips.LOCAL
    devices = jax.devices() if local else _devices(name)
    made = program.make(config, devices)
    if made.devices != len(devices) and not local:
        raise UserError(
            f"config.mesh has {made.devices} devices, and {name} has {len(devices)} chips: "
            "set one axis of config.mesh to -1, or give their number"
        )
    traced = made.step.trace(*made.arguments)
    arithmetic = flops.count(traced.jaxpr.jaxpr)
    numbers: dict[str, Any] = {
        "devices": made.devices,
        "parameters": made.parameters,
        "mesh": made.mesh,
        "state_bytes": made.state_bytes,
        "argument_bytes": made.argument_bytes,
        "waiting_bytes": made.waiting_bytes,
        "flops": arithmetic / made.devices,
        "chip": _measured_chip(devices) if local else None,
    }
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        too_large = TOO_LARGE.search(str(error))
        if not too_large:
            raise
        return {**numbers, "needed_bytes": float(too_large[1]) * UNITS[too_large[2]]}
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text()
    # The compiler counts the inside of a loop once.
    turns = arithmetic / max(1, flops.count(traced.jaxpr.jaxpr, loops=False))
    return {
        **numbers,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "output": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "flops": cost["flops"] * turns,
        "accessed": cost.get("bytes accessed", 0.0) * turns,
        "collectives": hlo.collective_bytes(text),
    }


def _devices(name: str) -> list[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"--topology: the compiler knows no {name} ({reason[:200]})") from error


def _measured_chip(devices: list[Any]) -> dict[str, Any]:
    from experiments.planning import measured

    return measured.chip(devices)._asdict()


def _end_with_the_caller() -> None:
    """A caller that is killed closes our standard input; nobody waits for the result any more."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    _end_with_the_caller()
    request, result = (Path(argument) for argument in sys.argv[1:])
    asked = json.loads(request.read_text())
    try:
        answer = measure(ml_collections.ConfigDict(asked["config"]), asked["kind"], asked["topology"])
    except UserError as error:
        answer = {"error": str(error)}
    result.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
