"""Every reference case, eager and compiled: numbers of the papers' official code, or of a float64 derivation."""

import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlfuncs

# Functions that plan on the host and can't be traced.
ON_HOST = {
    "mlfuncs.architecture_search.knapsack_removal",
    "mlfuncs.metrics.per_region_overlap_area",
    "mlfuncs.selection.keep_balanced",
}

# Functions that cases name and whose room has not got them yet.
AWAITED: set[str] = {
    "mlfuncs.guidance.classifier_guided_denoised",
    "mlfuncs.guidance.equivalent_guidance_scale",
    "mlfuncs.guidance.manifold_constrained_ddim_inversion_step",
    "mlfuncs.guidance.manifold_constrained_ddim_step",
    "mlfuncs.guidance.sample_classifier_guided",
    "mlfuncs.guidance.sample_manifold_constrained",
    "mlfuncs.guidance.tempered_log_probability",
}

CASES = [
    pytest.param(case, id=f"{file.stem}-{number}-{case['function'].rsplit('.', 1)[1]}")
    for file in sorted((pathlib.Path(__file__).parent / "reference").glob("*.json"))
    for number, case in enumerate(json.loads(file.read_text()))
    if case["function"].split(".")[1] in mlfuncs.__all__ and case["function"] not in AWAITED
]


def decode(node):
    if isinstance(node, dict):
        if "array" in node:
            return jnp.asarray(np.array(node["array"], dtype=node.get("dtype", "float32")))
        if set(node) == {"py"}:
            return eval(node["py"], {"jnp": jnp, "jax": jax, "np": np})
        if set(node) == {"key"}:
            return jax.random.key(node["key"])
        return {name: decode(value) for name, value in node.items()}
    return [decode(value) for value in node] if isinstance(node, list) else node


def compare(actual, expected, case):
    if isinstance(expected, dict):
        assert set(expected) <= set(actual)
        for name, value in expected.items():
            compare(actual[name], value, case)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            compare(ours, theirs, case)
    else:
        expected = np.asarray(expected)
        assert np.shape(actual) == expected.shape
        np.testing.assert_allclose(
            np.asarray(actual, np.float64),
            expected.astype(np.float64),
            rtol=case.get("rtol", 1e-5),
            atol=case.get("atol", 1e-6),
        )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("case", CASES)
def test_reference(case, compiled):
    room, name = case["function"].rsplit(".", 1)
    function = getattr(importlib.import_module(room), name)
    arguments = {name: decode(value) for name, value in case["args"].items()}
    if "raises" in case:
        with pytest.raises(ValueError):
            function(**arguments)
        return
    if compiled and case["function"] not in ON_HOST:
        arrays = {name: value for name, value in arguments.items() if isinstance(value, jax.Array)}
        rest = {name: value for name, value in arguments.items() if name not in arrays}
        actual = jax.jit(lambda arrays: function(**arrays, **rest))(arrays)
    else:
        actual = function(**arguments)
    compare(actual, decode(case["expect"]), case)


def test_what_is_awaited_is_not_there():
    for name in AWAITED:
        room, function = name.rsplit(".", 1)
        assert not hasattr(importlib.import_module(room), function), f"{name} is here: take it from AWAITED"


def test_cases_are_found():
    assert len(CASES) >= 18
