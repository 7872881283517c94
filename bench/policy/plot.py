"""`python plot.py FOLDER < pictures.json`: draws FOLDER/policy.png and .svg. Needs matplotlib and nothing of Canopy.

The picture brings its own light ground, so that it reads the same in pages of either colour. The colours are those of
Okabe and Ito ("Color universal design", 2008), which people with any kind of colour vision can tell apart; every line
also has a marker of its own, and its name beside it.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found]

mpl.use("agg")
mpl.rcParams["svg.hashsalt"] = "canopy"  # the same picture gives the same file
from matplotlib import pyplot  # type: ignore[import-not-found]  # noqa: E402

INK, PALE, GROUND = "#1f2a24", "#c9d1cb", "#ffffff"
STYLES: dict[str, dict[str, Any]] = {
    "central queue": {"color": "#7a7a7a", "linewidth": 5, "alpha": 0.45, "marker": ""},
    "hold-high": {"color": "#009E73", "marker": "o", "linewidth": 2.4},
    "shortest queue": {"color": "#56B4E9", "marker": "s"},
    "two choices": {"color": "#0072B2", "marker": "^"},
    "round robin": {"color": "#E69F00", "marker": "D"},
    "paper": {"color": "#D55E00", "marker": "X", "linewidth": 2.4},
}
CAPTIONS = {"mean": "mean time in system", "p99": "99th percentile"}
APART = 0.062  # least distance of two labels, as a share of the axis


def main() -> None:
    """Reads, draws, writes."""
    folder, pictures = Path(sys.argv[1]), json.load(sys.stdin)
    figure, axes = pyplot.subplots(
        len(pictures),
        2,
        figsize=(11, 4.7 * len(pictures)),
        squeeze=False,
        facecolor=GROUND,
        layout="constrained",
    )
    for row, picture in zip(axes, pictures, strict=True):
        for axis, measure in zip(row, CAPTIONS, strict=True):
            _panel(axis, picture, measure)
    figure.suptitle(pictures[0]["notes"], fontsize=10, color=INK, x=0.01, ha="left")
    figure.savefig(folder / "policy.png", dpi=160)
    figure.savefig(folder / "policy.svg", metadata={"Date": None})


def _panel(axis: Any, picture: dict[str, Any], measure: str) -> None:
    loads = sorted({load for line in picture["lines"] for load in line["loads"]})
    for line in picture["lines"]:
        style = {
            "linewidth": 1.8,
            "markersize": 6,
            **STYLES.get(line["name"], {"color": INK, "marker": "."}),
        }
        axis.plot(line["loads"], line[measure], label=line["name"], clip_on=False, **style)
    axis.set_yscale("log")
    axis.set_xlim(loads[0], loads[-1])
    axis.set_xticks(loads, [f"{load:g}" for load in loads])
    lowest, highest = axis.get_ylim()
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if lowest <= tick <= highest]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(PALE)
    axis.tick_params(colors=INK, length=0)
    axis.set_facecolor(GROUND)
    axis.set_xlabel("load (share of all slots)", color=INK)
    axis.set_title(
        f"{CAPTIONS[measure]}, in service times ({picture['law']})",
        loc="left",
        fontsize=11,
        color=INK,
    )
    _name_lines(axis, picture["lines"], measure, loads[-1])


def _name_lines(axis: Any, lines: list[dict[str, Any]], measure: str, last: float) -> None:
    """Every line's name at its right end; names that would touch are moved apart."""
    low, high = (math.log(limit) for limit in axis.get_ylim())
    ends = sorted(
        (((math.log(line[measure][-1]) - low) / (high - low), line) for line in lines if line["loads"][-1:] == [last]),
        key=lambda end: end[0],
    )  # fmt: skip
    heights = _apart([height for height, _ in ends])
    for height, (_, line) in zip(heights, ends, strict=True):
        axis.text(
            1.025,
            height,
            line["name"],
            transform=axis.transAxes,
            va="center",
            color=_dark(line["name"]),
        )
    for line in lines:
        if line["loads"] and line["loads"][-1] != last:
            name = line["name"] + (" (saturates)" if line["saturates"] else "")
            end = (line["loads"][-1], line[measure][-1])
            axis.annotate(
                name,
                end,
                (-8, 5),
                textcoords="offset points",
                ha="right",
                color=_dark(line["name"]),
            )


def _apart(heights: list[float]) -> list[float]:
    """The heights, lowest first, moved as little as it takes: what touches becomes a stack around its own middle."""
    stacks: list[list[float]] = []
    for height in heights:
        stacks.append([height])
        while len(stacks) > 1 and _bottom(stacks[-1]) < _bottom(stacks[-2]) + APART * len(
            stacks[-2]
        ):
            above = stacks.pop()
            stacks[-1] += above
    return [_bottom(stack) + APART * place for stack in stacks for place in range(len(stack))]


def _bottom(stack: list[float]) -> float:
    """Where its lowest one lies."""
    return sum(stack) / len(stack) - APART * (len(stack) - 1) / 2


def _dark(name: str) -> str:
    """Pale colours are no colours for letters: 60 % of the line's own."""
    colour = mpl.colors.to_rgb(STYLES.get(name, {}).get("color", INK))
    return mpl.colors.to_hex([0.6 * part for part in colour])


if __name__ == "__main__":
    main()
