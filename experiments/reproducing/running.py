"""Arms times seeds of a study: all seeds in one compiled call where the study can, what arms share computed once."""

import contextlib
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.engine import configuration
from experiments.reproducing import catalogue, rules
from experiments.reproducing.results import Results

# Without optimisations a study compiles three times as fast, which is what a run of seconds waits for.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
Advance = Callable[[str, int, int], None]  # arm, seeds done, seeds in all


def run(
    config: ml_collections.ConfigDict,
    results: Results,
    arms: Sequence[str],
    seeds: int,
    *,
    smoke: bool,
    advance: Advance,
) -> None:
    """Runs what `results` lacks, and keeps it there as it comes."""
    module = catalogue.study(config)
    options = FAST_COMPILE if smoke else None
    shared = Shared(module, config.study, Path(config.cache_dir), options)
    for arm in arms:
        missing = results.missing(arm, seeds)
        advance(arm, seeds - len(missing), seeds)
        settings = catalogue.settings(config, arm, smoke=smoke)
        for some in [missing] if module.VECTORISED else [[seed] for seed in missing]:
            if not some:  # said above: nothing to do
                continue
            began = time.perf_counter()
            found = _run(module, settings, some, shared, options)
            results.add(arm, found, time.perf_counter() - began)
            advance(arm, seeds - len(results.missing(arm, seeds)), seeds)
        rules.check_metrics(config, arm, results.metrics(arm))


def keys(seeds: Sequence[int]) -> jax.Array:
    """The key of every seed, the same for all arms."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def _run(
    module: ModuleType,
    settings: ml_collections.ConfigDict,
    seeds: list[int],
    shared: "Shared",
    options: dict[str, Any] | None,
) -> dict[int, dict[str, float]]:
    """Metrics of one arm, by seed."""
    given = (shared.get(settings.shared, seeds),) if hasattr(module, "prepare") else ()
    if module.VECTORISED:
        every = jax.vmap(lambda key, *given: module.run(settings, key, *given))
        found = jax.jit(every, compiler_options=options)(keys(seeds), *given)
    else:
        one = [jax.tree.map(lambda leaf: leaf[0], tree) for tree in given]
        found = {name: [value] for name, value in module.run(settings, keys(seeds)[0], *one).items()}
    columns = {name: np.asarray(jax.device_get(values), np.float64) for name, values in found.items()}
    for name, values in columns.items():
        if values.shape != (len(seeds),):
            raise ValueError(f"{module.__name__}: metric {name!r} must be a number, got shape {values.shape[1:]}")
    return {seed: {name: float(columns[name][row]) for name in columns} for row, seed in enumerate(seeds)}


class Shared:
    """What arms have in common, by seed: computed once, kept in a folder under the hash of the settings it comes from."""

    def __init__(self, module: ModuleType, study: str, cache_dir: Path, options: dict[str, Any] | None):
        self.module, self.folder, self._options = module, cache_dir / "papers", options
        self._name = f"{study}-{catalogue.source_fingerprint(module)}"
        self._held: tuple[str, dict[int, Any]] = ("", {})  # of the settings used last

    def get(self, settings: ml_collections.ConfigDict, seeds: Sequence[int]) -> Any:
        """Trees of `prepare` for some seeds, stacked along a first axis."""
        name = f"{self._name}-{configuration.fingerprint(settings)}"
        held = self._held[1] if self._held[0] == name else {}
        for seed in seeds:
            if seed not in held and (found := _load(self.folder / f"{name}-{seed}.npz")) is not None:
                held[seed] = found
        missing = [seed for seed in seeds if seed not in held]
        for some in [missing] if self.module.VECTORISED else [[seed] for seed in missing]:
            if some:
                for seed, tree in zip(some, self._prepare(settings, some), strict=True):
                    held[seed] = tree
                    _save(self.folder / f"{name}-{seed}.npz", tree)
        self._held = (name, held)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(held[seed] for seed in seeds))

    def _prepare(self, settings: ml_collections.ConfigDict, seeds: list[int]) -> list[Any]:
        if self.module.VECTORISED:
            every = jax.vmap(lambda key: self.module.prepare(settings, key))
            stacked = jax.device_get(jax.jit(every, compiler_options=self._options)(keys(seeds)))
            return [jax.tree.map(lambda leaf: leaf[row], stacked) for row in range(len(seeds))]  # noqa: B023
        return [jax.device_get(self.module.prepare(settings, keys(seeds)[0]))]


def _save(path: Path, tree: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    leaves: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in configuration.flatten(tree, separator="/")}
    np.savez(partial, **leaves)
    os.replace(partial, path)


def _load(path: Path) -> Any:
    """The nested dict of a file, None where there is none that can be read."""
    tree: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile, EOFError), np.load(path) as file:
        for name in file.files:
            node = tree
            *sections, last = name.split("/")
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = file[name]
        return tree
    return None
