"""A paper's study from end to end at tiny sizes, as `reproduce --smoke` runs it."""

import pathlib

from experiments.reproducing import catalogue, program


def smoke(name: str, folder: pathlib.Path) -> dict:
    """The results, by arm; every metric that a rule asks of an arm is there, or this fails."""
    config = catalogue.load(name)
    config.cache_dir = str(folder / "cache")
    catalogue.check(config)
    arms = program.measure(name, config, folder, smoke=True)["arms"]
    assert list(arms) == catalogue.smoke_arms(config)
    assert all(set(records) == {"0"} for records in arms.values())
    return arms
