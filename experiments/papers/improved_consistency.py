"""Improved against original consistency training, and the improved one with one choice taken back at a time."""

import ml_collections
from jax import Array

from experiments.papers import training

VECTORISED = False


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, float]:
    """Trains `config.run` and measures the Fréchet distances of samples drawn in one step and in two."""
    last = training.engine_run(config.run, key, config.cache_dir).last
    return {name: value for name, value in last.items() if name.startswith("frechet_distance_")}
