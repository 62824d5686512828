"""The planning program as a user calls it, on eight virtual devices and, where its compiler is installed, for a TPU."""

import json
import os

import jax
import numpy as np
import pytest

from experiments import tasks
from experiments.engine import command_line, loop
from experiments.engine.errors import UserError
from experiments.planning import flops, program, worker
from tests.experiments import helpers
from tests.experiments.helpers import small

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
FLAGS = (
    "--config=configs/consistency/digits.py",
    "--config.batch_size=64",
    "--config.model.width=64",
    "--config.model.depth=1",
)
PLAN = ("experiments.plan", *FLAGS)


def has_compiler() -> bool:
    try:
        return bool(worker.find_compiler())
    except UserError:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="libtpu is not installed")


def only_line(result):
    assert result.returncode == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_eight_devices_of_this_machine():
    answer = helpers.program(*PLAN, "--topology=local", "--json", **EIGHT)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    plan = json.loads(answer.stdout)
    assert plan["fits"]
    assert plan["chips"] == 8
    # The gradients of all parameters in float32, and a few sums.
    assert 4 * plan["parameters"] <= plan["collective_bytes"]["all-reduce"] <= 4.1 * plan["parameters"]
    assert plan["argument_bytes"] > 16 * plan["parameters"]  # parameters, two moments, average
    assert plan["bytes_per_chip"] < plan["memory_per_chip"]
    parts = ("compute_seconds", "memory_seconds", "collective_seconds")
    assert plan["step_seconds"] == pytest.approx(max(plan[parts[0]], plan[parts[1]]) + plan[parts[2]])
    assert plan["chip_hours"] == pytest.approx(6000 * plan["step_seconds"] * 8 / 3600)


def test_the_table():
    answer = helpers.program(*PLAN, "--topology=local", "--config.mesh.fsdp=4", **EIGHT)
    assert answer.returncode == 0, answer.stderr
    for word in ("parameters", "temporaries", "all-gather", "FLOPs", "6,000 steps at best", "chip-hours"):
        assert word in answer.stdout
    assert answer.stdout.strip().splitlines()[-1].startswith("fits: ")
    assert "\x1b" not in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (PLAN, "--topology is required"),
        ((*PLAN, "--topology=v9:4x4"), "known: local, v5e:4x4, v5p:4x4x4, v6e:4x4"),
        ((*PLAN, "--topology=v5e:4"), "v5e chips stand in 2 axes, e.g. v5e:4x4"),
        ((*PLAN, "--topology=v5e:4x0"), "v5e:4x4"),
        ((*PLAN, "--topology=v5p:4x4"), "v5p chips stand in 3 axes, e.g. v5p:4x4x4"),
        (
            (*PLAN, "--topology=local", "--config.batch_size=12"),
            "config.batch_size 12 must be a multiple of the 8 parts",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, match):
    assert match in only_line(helpers.program(*arguments, **EIGHT))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"mesh.data": 16}, "between 1 and 8 devices"),
        ({"mesh.fsdp": 3}, "does not divide the 8 devices"),
        ({"batch_size": 12}, "config.batch_size 12 must be a multiple of"),
        ({"batch_size": 4096}, "larger than the data"),
        ({"model.width": 0}, "model.width"),
        ({"log_every": 0}, "config.log_every"),
        ({"accumulate": 0}, "config.accumulate must be >= 1, got 0"),
        ({"data.name": "nosuch"}, "unknown config.data.name 'nosuch'"),
    ],
)
def test_a_config_that_could_not_be_run_is_refused(fields, match):
    with pytest.raises(UserError, match=match):
        made("consistency/digits", **fields)


@pytest.mark.skipif(has_compiler(), reason="libtpu is installed")
def test_a_missing_compiler_is_one_line():
    assert "pip install -e '.[plan]'" in only_line(helpers.program(*PLAN, "--topology=v5e:4x4"))


def made(name, **fields):
    config = small(name, **{"mesh.data": -1, "steps": 1000, **fields})
    return program.make(tasks.resolve(config), jax.devices())


TINY = {
    "model.channels": 8,
    "model.head_channels": 0,
    "model.channel_multipliers": (1,),
    "model.blocks_per_level": 1,
    "model.attention_resolutions": (),
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("consistency/imagenet64", TINY),
        ("consistency/cifar10", {"method": "distillation", **TINY, **{f"teacher.{k}": v for k, v in TINY.items()}}),
        ("consistency/latent_digits", {}),
        ("consistency/digits", {"method": "easy_tuning"}),
        ("classification/digits", {}),
        ("language/shakespeare", {"model.width": 16, "model.depth": 1}),
        ("language/facts_distillation", {"model.width": 16, "teacher.model.width": 16}),
        ("classification/digits", {"evaluate_every": 10, "checkpoint.best": "test_accuracy"}),
    ],
)
def test_nothing_but_shapes_is_needed(name, fields, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFUNCS_DATA", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    planned = made(name, **fields)
    assert flops.count(planned.step.trace(*planned.arguments).jaxpr.jaxpr) > 0
    assert planned.state_bytes > 4 * planned.parameters
    assert not list(tmp_path.iterdir())  # nothing was trained, and nothing cached


def test_streamed_and_resident_data():
    streamed = made("consistency/imagenet64", **TINY)
    assert streamed.waiting_bytes == loop.SELECTION_BYTES // 8
    resident = made("consistency/cifar10", **TINY)
    assert resident.waiting_bytes == 0
    assert resident.argument_bytes > 50_000 * 32 * 32 * 3


def test_parts_of_a_batch_are_counted():
    def counted(accumulate, loops):
        planned = made("consistency/digits", batch_size=64, accumulate=accumulate)
        return flops.count(planned.step.trace(*planned.arguments).jaxpr.jaxpr, loops=loops)

    assert counted(4, True) == counted(1, True)
    assert counted(4, False) == pytest.approx(counted(1, True) / 4, rel=0.01)


def test_products_and_convolutions():
    def function(x, w, image, kernel):
        def turn(carry, _):
            return carry @ w, None

        image = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.scan(turn, x, None, length=5)[0], image

    shapes = ((2, 3), (3, 3), (1, 8, 8, 4), (3, 3, 4, 6))
    jaxpr = jax.make_jaxpr(function)(*(np.ones(shape, np.float32) for shape in shapes)).jaxpr
    assert flops.count(jaxpr) == 5 * 2 * 2 * 3 * 3 + 2 * 64 * 6 * 9 * 4


def test_a_worker_that_fails_is_one_line():
    said = "I0000 noise\nTraceback (most recent call last):\n  File x\njax.errors.JaxRuntimeError: INTERNAL: bad\nSee https://x"
    assert worker._last_line(said, 1) == "jax.errors.JaxRuntimeError: INTERNAL: bad"
    assert "killed" in worker._last_line("", -9)
    assert "status 3" in worker._last_line("", 3)


@pytest.mark.parametrize(
    ("maker", "accelerators", "told"),
    [
        ("0x8086", [], "0"),
        (command_line.GOOGLE, [], None),
        ("0x8086", ["/dev/accel0"], None),
    ],
)
def test_programs_without_a_tpu_leave_its_library_alone(maker, accelerators, told, monkeypatch, tmp_path):
    vendor = tmp_path / "vendor"
    vendor.write_text(f"{maker}\n")
    found = {"/sys/bus/pci/devices/*/vendor": [str(vendor)], "/dev/accel*": accelerators}
    monkeypatch.setattr(command_line.glob, "glob", lambda pattern: found.get(pattern, []))
    monkeypatch.delenv("TPU_LOAD_LIBRARY", raising=False)
    command_line._leave_the_tpu_library()
    assert os.environ.pop("TPU_LOAD_LIBRARY", None) == told


@needs_compiler
def test_a_tpu_that_is_not_here():
    def traces():
        return {path for path in ("/tmp/libtpu_lockfile", "/tmp/tpu_logs") if os.path.exists(path)}

    before, plans = traces(), {}
    large = ("--config.batch_size=1024", "--config.model.width=256")
    for shape, fields in (("2x2", ()), ("4x4", ()), ("4x4", ("--config.mesh.fsdp=4", "--config.accumulate=2"))):
        answer = helpers.program(*PLAN, *large, f"--topology=v5e:{shape}", "--json", *fields)
        assert answer.returncode == 0, answer.stderr
        assert answer.stderr == ""
        plans[shape, fields] = json.loads(answer.stdout)
    assert traces() == before
    four, sixteen, split = plans.values()
    # Layers this small are padded: only roughly in proportion.
    assert four["flops_per_chip"] == pytest.approx(4 * sixteen["flops_per_chip"], rel=0.3)
    assert 3.9 * four["parameters"] <= sum(four["collective_bytes"].values()) <= 2.5 * 4 * four["parameters"]
    assert split["argument_bytes"] < sixteen["argument_bytes"]
    assert split["collective_bytes"]["all-gather"] > 0
    line = only_line(helpers.program(*PLAN, "--topology=v5e:4x4", "--config.mesh.data=4"))
    assert "config.mesh has 4 devices, and v5e:4x4 has 16 chips" in line
