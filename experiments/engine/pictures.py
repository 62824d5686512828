"""PNG files: grids of images side by side, and curves over training. Texts go into files of their own."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np

from experiments.engine.task import Panels, Shown

PANEL_INCHES = 3.2
MOST_COLUMNS = 3
Interval = Callable[[Sequence[float]], tuple[float, float]]
FLOOR = "floor"  # the distance of real examples to other real ones, drawn beneath that of generated ones


def grid(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] as one picture [rows (H + 1), columns (W + 1), C], nearly square, with thin white lines."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + 1), (place % columns) * (width + 1)
        picture[top : top + height, left : left + width] = image
    return picture


def are_texts(shown: Shown) -> TypeGuard[list[str]]:
    """Whether these are texts and no pictures."""
    return bool(shown) and isinstance(shown[0], str)


def ending(shown: Shown) -> str:
    """Of the name of a file with pictures or texts."""
    return ".txt" if are_texts(shown) else ".png"


def write(path: Path, shown: Shown) -> None:
    """Pictures as one PNG file, texts as one below the other."""
    if are_texts(shown):
        partial = path.with_name(path.name + ".partial")
        partial.write_text(headed(shown), encoding="utf-8")
        os.replace(partial, path)
    else:
        write_panels(path, cast(Panels, shown))


def headed(texts: Sequence[str]) -> str:
    """Texts below each other, each under its number."""
    return "".join(f"--- {number} ---\n{text}\n" for number, text in enumerate(texts))


def write_panels(path: Path, panels: Panels) -> None:
    """Grids side by side, each under its title."""
    figure = _figure(PANEL_INCHES * len(panels), PANEL_INCHES + 0.3)
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, images) in zip(axes[0], panels, strict=True):
        picture = grid(images)
        axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    _write(figure, path)


def write_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """The loss, and what was measured at evaluations, over steps. Nothing is drawn without a record."""
    measured = sorted({name for record in records for name in record} - {"step", "loss", "steps_per_second"})
    plots = [["loss"], *_families(measured)]
    plots = [names for names in plots if any(name in record for record in records for name in names)]
    if not plots:
        return
    figure = _figure(4.2 * len(plots), 3.2)
    axes = figure.subplots(1, len(plots), squeeze=False)
    for axis, names in zip(axes[0], plots, strict=True):
        values: list[float] = []
        for name in names:
            points = [(record["step"], record[name]) for record in records if name in record]
            style = {"color": "gray", "linestyle": "--"} if name.endswith(f"_{FLOOR}") else {}
            marker = "." if len(points) < 40 else None
            axis.plot(*zip(*points, strict=True), label=name, marker=marker, **style)
            values += [value for _, value in points]
        if min(values) > 0 and max(values) > 5 * min(values):
            axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_title(names[0] if len(names) == 1 else _stem(names[0]).replace("_", " "))
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize="small")
    _write(figure, path)


def write_points(
    path: Path,
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    interval: Interval,
    *,
    most_columns: int = MOST_COLUMNS,
) -> None:
    """A panel for each metric, its arms beneath each other: every value a point, and the mean with its interval."""
    columns = min(most_columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    arms = list(dict.fromkeys(arm for found in panels.values() for arm in found))
    figure = _figure(2.2 + 3.4 * columns, 0.8 + lines * (0.9 + 0.3 * len(arms)))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, found) in zip(axes.flat, panels.items(), strict=False):
        for arm, values in found.items():
            place, finite = arms.index(arm), [value for value in values if math.isfinite(value)]
            seeds = {"color": "C0", "alpha": 0.6, "markersize": 5, "markeredgewidth": 0, "zorder": 3}
            axis.plot(finite, [place] * len(finite), "o", **seeds)
            if len(finite) == len(values):
                low, high = interval(values)
                mean = float(np.mean(values))
                reach = [[mean - low], [high - mean]] if math.isfinite(low) else None
                axis.errorbar(mean, place, xerr=reach, fmt="|", color="gray", capsize=3, markersize=11)
        everything = [value for values in found.values() for value in values if math.isfinite(value)]
        if everything and min(everything) > 0 and max(everything) > 30 * min(everything):
            axis.set_xscale("log")
        axis.set_title(name.replace("_", " "), fontsize="medium")
        axis.set_yticks(range(len(arms)), arms)
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    _write(figure, path)


def _stem(name: str) -> str:
    """The name of a family: without the number of steps, or the word for what real data reach."""
    head, _, tail = name.rpartition("_")
    return head if tail.isdigit() or tail == FLOOR else name


def _families(names: Sequence[str]) -> list[list[str]]:
    """Metrics that differ in what follows the last underscore (frechet_distance_1, _2, _floor) share a plot."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(_stem(name), []).append(name)
    return list(families.values())


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # here, so that the first step of a run does not wait for it

    return Figure(figsize=(width, height))


def _write(figure: Any, path: Path) -> None:
    figure.tight_layout()
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)
