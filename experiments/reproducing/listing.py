"""The catalogue as a table: papers, what to call, claims and verdicts. The README's comes from here too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.table import Table

from experiments.engine.errors import UserError
from experiments.engine.logs import CONSOLE
from experiments.reproducing import catalogue, results, rules, showing
from experiments.reproducing.rules import Numbers

KEPT = catalogue.ROOT / "docs" / "results"
README, PAPERS = catalogue.ROOT / "README.md", catalogue.ROOT / "docs" / "papers.md"
BEGIN, END = "<!-- catalogue: made by python -m experiments.catalogue -->", "<!-- end of catalogue -->"
NOT_RUN = "not measured yet"
MOST_FUNCTIONS = 3  # of a paper that the README names; docs/papers.md has all


def kept(name: str) -> dict[str, Any] | None:
    """The kept result of a paper's last full run."""
    path = KEPT / f"{name}.json"
    return results.read(path) if path.exists() else None


def numbers(tree: Mapping[str, Any]) -> Numbers:
    """Values of a kept result."""
    return {
        arm: {metric: [float("nan") if v is None else v for v in values] for metric, values in metrics.items()}
        for arm, metrics in tree["arms"].items()
    }


def keep(path: Path) -> str:
    """Takes a finished `results.json` into docs/results, and gives the paper's name.

    Raises:
      UserError: the results are not of the paper's config as it stands, or not finished.
    """
    tree = results.read(path)
    name = tree["paper"]
    config = catalogue.load(name)
    wanted = catalogue.fingerprint(config)
    if tree["hash"] != wanted:
        raise UserError(f"{path} is of config {tree['hash']}, and configs/papers/{name}.py is {wanted}: run it again")
    every = [str(seed) for seed in range(config.seeds)]
    for arm in catalogue.arms(config):
        lacking = [seed for seed in every if seed not in tree["arms"].get(arm, {})]
        if lacking:
            raise UserError(f"{path} lacks seeds {', '.join(lacking)} of arm {arm!r}: run it to its end")
    arms = {
        arm: {metric: [tree["arms"][arm][seed][metric] for seed in every] for metric in tree["arms"][arm]["0"]}
        for arm in catalogue.arms(config)
    }
    small = {field: tree[field] for field in ("paper", "hash", "device", "date", "versions")}
    KEPT.mkdir(parents=True, exist_ok=True)
    results.write(KEPT / f"{name}.json", {**small, "seconds": round(tree["seconds"]), "arms": arms})
    return name


def verdict(config: ml_collections.ConfigDict, tree: Mapping[str, Any] | None) -> str:
    """From the kept numbers and the rule as it stands."""
    return NOT_RUN if tree is None else rules.verdict(rules.judge(config, numbers(tree))[0])


def row(name: str) -> list[str]:
    """Paper, what to call, claim, verdict, numbers, in Markdown."""
    config, tree = catalogue.load(name), kept(name)
    paper = f"[{config.title}](https://arxiv.org/abs/{config.arxiv})"
    shown = config.functions[:MOST_FUNCTIONS]
    calls = ", ".join(f"`{function}`" for function in shown) + ", …" * (len(shown) < len(config.functions))
    told = verdict(config, tree)
    measured = ""
    if tree is not None:
        main, _ = rules.judge(config, numbers(tree))
        told = f"[{told}](docs/papers.md#{anchor(name)})"
        first = next(each for each in main if not each.condition)
        measured = f"{first.says}: {first.measured}; {sum(each.holds for each in main)} of {len(main)} checks hold"
    return [paper, calls, config.claim, told, measured]


def anchor(name: str) -> str:
    return name.replace("_", "-")


def readme_table() -> str:
    """The catalogue of the README."""
    titles = ["paper", "what you call", "claim", "in miniature", "measured"]
    lines = [titles, ["---"] * len(titles), *map(row, catalogue.names())]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def readme(text: str) -> str:
    """The README's text with the catalogue as it is now."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"README.md has no place for the catalogue, between {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{readme_table()}\n{END}{tail}"


def papers() -> str:
    """docs/papers.md: every measured paper with its table and checks."""
    parts = [
        "# Papers in miniature",
        "",
        "Made by `python -m experiments.catalogue` from `configs/papers` and `docs/results`. Means over seeds ± half of",
        "the 95 % interval (Student's t). The numbers are made again, with a picture, by",
        "`python -m experiments.reproduce --config=configs/papers/NAME.py`.",
        "",
    ]
    for name in catalogue.names():
        config, tree = catalogue.load(name), kept(name)
        if tree is not None:
            found = numbers(tree)
            page = showing.to_markdown(config, found, rules.judge(config, found), tree, level=2)
            origin = f"`configs/papers/{name}.py`, config {tree['hash']}, {tree['seconds']} s."
            parts += [f'<a id="{anchor(name)}"></a>', "", page, origin, ""]
    return "\n".join(parts)


def stale() -> list[str]:
    """What no longer matches the configs and the kept results, in words."""
    found = []
    for path in sorted(KEPT.glob("*.json")):
        tree = results.read(path)
        if path.stem not in catalogue.names():
            found.append(f"{path.name}: there is no such paper")
            continue
        config = catalogue.load(path.stem)
        if tree["hash"] != catalogue.fingerprint(config):
            found.append(f"{path.name}: made by config {tree['hash']}, which is now {catalogue.fingerprint(config)}")
        elif any(len(values) != config.seeds for arm in tree["arms"].values() for values in arm.values()):
            found.append(f"{path.name}: it has not {config.seeds} seeds")
    if readme(README.read_text()) != README.read_text():
        found.append("README.md: the catalogue is not as the configs and results are")
    if not PAPERS.exists() or papers() != PAPERS.read_text():
        found.append("docs/papers.md: it is not as the configs and results are")
    return found


def to_terminal(names: Sequence[str]) -> None:
    """Prints the catalogue."""
    table = Table(title=f"{len(names)} papers")
    for title in ("name", "paper", "rooms", "in miniature"):
        table.add_column(title)
    for name in names:
        config = catalogue.load(name)
        table.add_row(name, config.title, ", ".join(catalogue.rooms(config)), verdict(config, kept(name)))
    CONSOLE.print(table)


def summary(told: Mapping[str, str]) -> None:
    """Prints what became of every paper."""
    table = Table(title=f"{len(told)} papers")
    table.add_column("name")
    table.add_column("outcome")
    for name, said in told.items():
        table.add_row(name, said)
    CONSOLE.print(table)
