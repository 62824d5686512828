"""The papers: every file of configs/papers, and the study that each names."""

import copy
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from configs.papers.common import OVER
from experiments.engine import configuration
from experiments.engine.errors import UserError, unknown

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, STUDIES = ROOT / "configs" / "papers", ROOT / "experiments" / "papers"
NO_STUDY = frozenset({"__init__", "common", "digits_noise", "probes", "training"})
COMPARE = ("value", "difference", "ratio")
BEST = ("max", "min", "median")
FIELDS = (
    "title",
    "arxiv",
    "functions",
    "claim",
    "headline",
    "study",
    "seeds",
    "cache_dir",
    "settings",
    "smoke",
    "arms",
)


def names() -> list[str]:
    """All papers, by the names of their files."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in NO_STUDY)


def load(name: str) -> ml_collections.ConfigDict:
    """The config of a paper."""
    if name not in names():
        raise unknown("paper", name, names())
    return importlib.import_module(f"configs.papers.{name}").get_config()


def rooms(config: ml_collections.ConfigDict) -> list[str]:
    """The rooms of the library that a paper's functions live in."""
    return list(dict.fromkeys(function.split(".")[0] for function in config.functions))


def chosen(only: str) -> list[str]:
    """The papers of some rooms, or of some names, given with commas between; empty: all."""
    wanted = [word.strip() for word in only.split(",") if word.strip()]
    found = {name: {name, *rooms(load(name))} for name in names()}
    for word in wanted:
        if not any(word in words for words in found.values()):
            raise unknown("--only", word, {word for words in found.values() for word in words})
    return [name for name, words in found.items() if not wanted or words & set(wanted)]


def study(config: ml_collections.ConfigDict) -> ModuleType:
    """The module that measures a paper."""
    known = sorted(path.stem for path in STUDIES.glob("*.py") if path.stem not in NO_STUDY)
    if config.study not in known:
        raise unknown("config.study", config.study, known)
    return importlib.import_module(f"experiments.papers.{config.study}")


def arms(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    """Settings of every arm over those of the paper, by the arm's name, in the order of the config."""
    return {arm["name"]: copy.deepcopy(dict(arm["settings"])) for arm in config.arms}


def settings(config: ml_collections.ConfigDict, arm: str, *, smoke: bool) -> ml_collections.ConfigDict:
    """What a study reads for one arm."""
    merged = ml_collections.ConfigDict(copy.deepcopy(config.settings.to_dict()))
    merged.cache_dir = config.cache_dir
    merge(merged, arms(config)[arm], f"arm {arm!r}")
    if smoke:
        merge(merged, copy.deepcopy(config.smoke.to_dict()), "config.smoke")
    if "cache_dir" in merged.shared:  # of a study whose `prepare` needs runs that are cached
        merged.shared.cache_dir = config.cache_dir
    return merged


def smoke_arms(config: ml_collections.ConfigDict) -> list[str]:
    """`config.smoke_arms`, or all but those that differ from an earlier one in floats alone, which run the same program."""
    if config.smoke_arms:
        return list(config.smoke_arms)
    found: dict[str, str] = {}
    for name in arms(config):
        fields = configuration.flatten(settings(config, name, smoke=True).to_dict())
        form = repr([(path, "float" if isinstance(value, float) else value) for path, value in fields])
        found.setdefault(form, name)
    return list(found.values())


def merge(base: ml_collections.ConfigDict, over: dict[str, Any], whose: str) -> None:
    """Puts settings over others in place, section by section; a field that is not there is refused."""
    for name, value in over.items():
        if name not in base:
            raise UserError(f"{whose} sets {name!r}, which config.settings does not have; it has {', '.join(base)}")
        if isinstance(value, dict) and isinstance(base[name], ml_collections.ConfigDict):
            merge(base[name], value, whose)
        else:
            with base.ignore_type():
                base[name] = value


def fingerprint(config: ml_collections.ConfigDict, *, smoke: bool = False) -> str:
    """Twelve hexadecimal digits of all that changes the numbers: the study, and the settings of every arm."""
    every = {name: settings(config, name, smoke=smoke).to_dict() for name in arms(config)}
    return configuration.fingerprint(ml_collections.ConfigDict({"study": config.study, "arms": _listed(every)}))


def source_fingerprint(module: ModuleType) -> str:
    """The same of a study's source, so that what an older form of it computed is not taken for this one's."""
    return configuration.digest(inspect.getsource(module))


def _listed(every: dict[str, Any]) -> dict[str, Any]:
    # Names of arms may hold dots, which names of config fields may not.
    return {
        f"arm_{index}": {"called": name, "with": given} for index, (name, given) in enumerate(sorted(every.items()))
    }


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses a config that could not be judged, before anything is computed."""
    for field in FIELDS:
        if field not in config:
            raise UserError(f"config.{field} is missing: this is no config of a paper (see configs/papers)")
    study(config)
    if not isinstance(config.seeds, int) or config.seeds < 1:
        raise UserError(f"config.seeds must be >= 1, got {config.seeds}")
    called = [arm["name"] for arm in config.arms]
    if not called:
        raise UserError("config.arms is empty: a study compares at least one")
    for name in called:
        if called.count(name) > 1:
            raise UserError(f"config.arms names {name!r} twice")
        settings(config, name, smoke=True)
    if all(rule["condition"] for rule in config.checks):
        raise UserError("config.checks is empty, or conditions alone: nothing says what counts as reproduced")
    for field, named in (("smoke_arms", config.smoke_arms), ("entries", [e["arm"] for e in config.get("entries", ())])):
        for name in named:
            if name not in called:
                raise unknown(f"arm in config.{field}", name, called)
    for rule in (*config.checks, *config.side):
        for side in ("of", "against"):
            for name in several(rule[side]):
                if name not in called:
                    raise unknown(f"arm in the check {rule['says']!r}", name, called)
        for field, known in (("over", OVER), ("compare", COMPARE), ("best", BEST)):
            if rule[field] not in known:
                raise unknown(f"{field} in the check {rule['says']!r}", rule[field], known)
        if rule["at_least"] is None and rule["at_most"] is None:
            raise UserError(f"the check {rule['says']!r} has no bound: give at_least or at_most")
        if (rule["compare"] == "value") != (not rule["against"]):
            raise UserError(f"the check {rule['says']!r} compares by {rule['compare']!r} with {rule['against']!r}")


def several(value: Any) -> tuple[str, ...]:
    """One name or several as a tuple; an empty name is none."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) if value else ()
