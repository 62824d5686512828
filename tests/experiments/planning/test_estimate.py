"""Arithmetic of time, memory and the changes that are tried, with numbers worked out by hand."""

import ml_collections
import pytest

from experiments.planning import chips, estimate, report
from experiments.planning.chips import CHIPS, GIB

POD = chips.parse("v5e:4x4")


def numbers(**given):
    return {
        "devices": 16,
        "mesh": {"data": 16, "fsdp": 1},
        "parameters": 250_000_000,
        "state_bytes": 4e9,
        "argument_bytes": 4.1e9,
        "waiting_bytes": 0,
        "flops": 197e12,
        "chip": None,
        **given,
    }


COMPILED = {
    "arguments": 4.1e9,
    "temporaries": 5e9,
    "output": 4e9 + 100,
    "aliased": 4e9,
    "code": 1000,
    "accessed": 819e9 * 2,
    "collectives": {"all-reduce": 10**9, "all-gather": 10**9},
}


def config(**fields):
    base = {
        "batch_size": 4096,
        "accumulate": 1,
        "mesh": {"data": -1, "fsdp": 1},
        "model": {"name": "unet", "remat": True},
    }
    return ml_collections.ConfigDict({**base, **fields})


def test_time_and_memory():
    found = estimate.estimate(numbers(**COMPILED, waiting_bytes=64), POD)
    assert found.needed == 4.1e9 + 5e9 + 100 + 64 + 1000
    assert found.output == 100  # the state is written where it was
    assert found.fits
    assert found.compute_seconds == pytest.approx(1)
    assert found.memory_seconds == pytest.approx(2)
    assert found.collective_seconds == pytest.approx(2e9 / 200e9)  # 1600 Gbit/s
    assert found.step_seconds == pytest.approx(2.01)


def test_a_program_that_the_compiler_refused():
    found = estimate.estimate(numbers(needed_bytes=22.8 * GIB), POD)
    assert not found.fits
    assert not found.compiled
    assert found.needed == pytest.approx(22.8 * GIB)
    assert found.step_seconds == pytest.approx(1)  # of FLOPs alone
    # The size that the compiler names may round to that of the memory.
    assert not estimate.estimate(numbers(needed_bytes=15.75 * GIB), POD).fits


def test_times_of_a_step_that_was_not_compiled_are_unknown():
    unknown = {"memory_traffic_bytes", "collective_bytes", "memory_seconds", "collective_seconds"}
    unknown |= {"step_seconds", "total_seconds", "chip_hours"}
    refused = report.plain(estimate.estimate(numbers(needed_bytes=22.8 * GIB), POD), 3600)
    assert {name for name, value in refused.items() if value is None} == unknown
    compiled = report.plain(estimate.estimate(numbers(**COMPILED), POD), 3600)
    assert compiled["chip_hours"] == pytest.approx(2.01 * 16)
    assert compiled["total_seconds"] == pytest.approx(3600 * 2.01)


def flags(config, numbers, topology=POD):
    return [change.flags for change in estimate.changes(config, numbers, topology)]


def test_changes_come_cheapest_first():
    refused = numbers(needed_bytes=22.8 * GIB)
    tried = flags(config(), refused)
    # 24.5e9 - 4e9 state - 0.1e9 batch: 20.4e9 of temporaries, of which 1e9 are gradients; 16.9e9 bytes are there.
    assert tried[0] == "--config.accumulate=2"  # 5.1e9 + 9.7e9
    assert "--config.mesh.fsdp=2" not in tried  # 0.1e9 + 2.5e9 + 19.4e9 are still too much
    assert tried[-1] == "--topology=v5e:4x8"
    assert flags(config(model={"name": "unet", "remat": False}), refused)[0] == "--config.model.remat=True"
    assert "remat" not in flags(config(model={"name": "mlp"}), refused)[0]


def test_a_large_state_is_split():
    large = numbers(state_bytes=30e9, argument_bytes=30e9, needed_bytes=32e9)
    tried = flags(config(), large)
    assert tried[0] == "--config.mesh.fsdp=2"  # 15e9 of state, 0.5e9 of gradients, 1e9 of activations
    fixed = flags(config(mesh={"data": 16, "fsdp": 1}), large)
    assert fixed[0] == "--config.mesh.data=8 --config.mesh.fsdp=2"
    assert not any("topology" in flag for flag in tried)  # more chips don't help a state that each of them holds


def test_a_batch_that_can_not_be_halved():
    tried = flags(config(batch_size=16), numbers(needed_bytes=22.8 * GIB))
    assert not any("accumulate" in flag or "topology" in flag for flag in tried)


def test_the_first_change_that_fits_when_compiled_is_taken():
    asked = []

    def compile_step(config, topology):
        asked.append((config.accumulate, topology.name))
        return numbers(**COMPILED) if config.accumulate == 4 else numbers(needed_bytes=17 * GIB)

    refused = numbers(needed_bytes=22.8 * GIB)
    change, found = estimate.smallest_change(config(), refused, POD, compile_step)
    assert change.flags == "--config.accumulate=4"
    assert found.fits
    assert asked == [(2, "v5e:4x4"), (4, "v5e:4x4")]


def test_the_number_of_compilations_is_bounded():
    asked = []

    def compile_step(config, topology):
        asked.append(config)
        return numbers(needed_bytes=17 * GIB)

    assert estimate.smallest_change(config(), numbers(needed_bytes=22.8 * GIB), POD, compile_step) is None
    assert len(asked) == estimate.COMPILATIONS


@pytest.mark.parametrize(
    ("name", "larger"), [("v5e:4x4", "v5e:4x8"), ("v5e:4x8", "v5e:8x8"), ("v5p:2x2x1", "v5p:2x2x2")]
)
def test_more_chips(name, larger):
    assert chips.parse(name).doubled().name == larger


def test_the_table_of_chips():
    assert chips.parse("v5p:4x4x4").chips == 64
    assert {chip.name: chip.interconnect for chip in CHIPS.values()} == {"v5e": 200e9, "v5p": 600e9, "v6e": 448e9}
