"""A paper whose study is arithmetic, for tests of what stands around studies."""

import types

import jax
import jax.numpy as jnp

from configs.papers.common import arm, check, paper

BASELINE, METHOD = "baseline", "method, rate 0.5"


def config(**overrides):
    made = paper(
        title="On Sums",
        arxiv="0000.00000",
        functions=("robust.cauchy", "dropout.dropout"),
        claim="Adding helps.",
        headline="1000 points more",
        study="multi_sample_dropout",
        seeds=4,
    )
    made.settings = {"shared": {"offset": 1.0}, "gain": 0.0, "widths": (2, 3)}
    made.smoke = {"shared": {"offset": 2.0}}
    made.arms = (arm(BASELINE), arm(METHOD, gain=3.0))
    made.checks = (check("the method is larger", "score", METHOD, BASELINE, at_least=2.9, over="every seed"),)
    made.side = (check("its score is large", "score", METHOD, at_least=100.0),)
    made.update(overrides)
    return made


class Calls(list):
    """What a study was asked to do, in order."""


def study(vectorised, calls, *, prepares=False, fails_at=None):
    """A study that notes its calls; one that is not vectorised fails at the call of that number."""

    def prepare(config, key):
        calls.append(("prepare", config.offset))
        return {"a": {"b": jax.random.uniform(key) + config.offset}, "c": jnp.arange(2)}

    def run(config, key, shared=None):
        calls.append(("run", config.gain))
        if fails_at is not None and sum(kind == "run" for kind, _ in calls) == fails_at:
            raise KeyboardInterrupt
        base = jax.random.uniform(key) if shared is None else shared["a"]["b"]
        return {"score": base + config.gain, "size": config.widths[1]}

    module = types.SimpleNamespace(VECTORISED=vectorised, run=run, __name__="experiments.papers.sums")
    if prepares:
        module.prepare = prepare
    return module
