"""Says what a run would need on devices that are not here: memory, FLOPs, traffic, time, and whether it fits.

usage: python -m experiments.plan --config=FILE --topology=KIND:SHAPE [--json] [--config.field=value ...]

  --config    file with get_config(), e.g. configs/consistency/imagenet64.py
  --topology  v5e:16x16, v5p:4x4x4, v6e:8x8 (any shape of these TPUs), or local, the devices of this machine
  --json      prints one JSON object instead of a table

One training step is compiled for the whole mesh of the config, minutes for a large network; no TPU, data or trained teacher
is needed. The TPU compiler comes with `pip install -e '.[plan]'`.
"""

import json
from typing import Any

from absl import flags

from experiments.engine import command_line

_CONFIG = command_line.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", "", "kind and shape of the chips")
_JSON = flags.DEFINE_bool("json", False, "print one JSON object")


def main() -> None:
    from experiments import tasks
    from experiments.planning import chips, report, worker
    from experiments.planning.estimate import estimate, smallest_change

    topology = chips.parse(_TOPOLOGY.value)
    if topology.kind != chips.LOCAL:
        worker.find_compiler()  # refused now, before the config is looked at
    config = tasks.resolve(command_line.given_config(_CONFIG))
    numbers = worker.numbers(config, topology)
    found = estimate(numbers, topology)
    changed = None if found.fits else smallest_change(config, numbers, topology, worker.numbers)
    if _JSON.value:
        answer: dict[str, Any] = report.plain(found, config.steps)
        if not found.fits:
            answer["change"] = (
                {"flags": changed[0].flags, **report.plain(changed[1], config.steps)} if changed else None
            )
        print(json.dumps(answer))
    else:
        report.show(found, changed, config.steps)


if __name__ == "__main__":
    command_line.run(main, required=("config", "topology"))
