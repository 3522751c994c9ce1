"""Figures of all seeds and arms, their differences, and what is wrong with them, in tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from qdgs_jax.image_measures import TONES

SETS = {"synthetic": "synthetic", "real": "real", "tuned": "real, fine-tuned"}
"""What was tested on -> its name in tables."""
ARMS = ("qdgs", "random")
"""Those that are compared."""

Row = Mapping[str, Any]


def figures_of(row: Row) -> dict[str, float]:
    """All that is compared of an arm's row, by name."""
    found = {"loss": row["loss"]}
    for key, name in SETS.items():
        if key in row:
            tested = row[key]
            found[name] = tested["accuracy"]
            found |= {f"{name}, {tone}": each for tone, each in tested["classes"].items()}
            found[f"{name}, true at 1 % false"] = tested["true_matches"]
    return {name: value for name, value in found.items() if value is not None}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures over seeds.

    Returns:
        "arms": arm -> figure -> "seeds", "mean", "spread", the standard deviation; "differences":
        the same of qdgs minus random, by seed, with the 95 % "interval" of Student's t of their
        mean (None for one seed); "sentences": what is wrong.
    """
    figures = {(row["arm"], row["seed"]): figures_of(row) for row in rows}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    of_arms = {arm: _over_seeds([figures[arm, seed] for seed in seeds]) for arm in arms}
    differences = {}
    if set(ARMS) <= set(arms):
        pairs = [tuple(figures[arm, seed] for arm in ARMS) for seed in seeds]
        by_seed = [{name: a[name] - b[name] for name in a.keys() & b.keys()} for a, b in pairs]
        names = of_arms[ARMS[0]]
        found = _over_seeds(by_seed)
        differences = {name: found[name] for name in names if name in found}
        for each in differences.values():
            each["interval"] = _interval(each["seeds"])
    return {"arms": of_arms, "differences": differences, "sentences": _sentences(rows)}


def _over_seeds(figures: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Of the figures that all seeds have."""
    names = [name for name in figures[0] if all(name in each for each in figures)]
    found = {}
    for name in names:
        values = [each[name] for each in figures]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        found[name] = {"seeds": values, "mean": float(np.mean(values)), "spread": spread}
    return found


def _interval(values: Sequence[float]) -> list[float] | None:
    if len(values) < 2:
        return None
    half = stats.t(len(values) - 1).ppf(0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


def _sentences(rows: Sequence[Row]) -> list[str]:
    """What the figures do not show at first sight."""
    said = []
    for row in rows:
        where = f"{row['arm']}, seed {row['seed']}"
        if row["arm"] != "none" and row["identities"] < row["asked"]:
            said.append(f"{where}: {row['identities']} identities of {row['asked']}.")
        for key, name in SETS.items():
            if key in row and row[key]["interval"][0] <= 0.5:
                said.append(f"{where}: no better than chance on {name} people.")
        tested = row["synthetic"]
        missing = [tone for tone in TONES if tone not in tested["classes"]]
        if tested["people"] < tested["asked"] and row["arm"] == rows[0]["arm"]:
            lacking = f", none of them {' or '.join(missing)}" if missing else ""
            said.append(
                f"Seed {row['seed']}: {tested['people']} people to test on of {tested['asked']}"
                f"{lacking}."
            )
    untrained = {row["seed"]: row["synthetic"]["accuracy"] for row in rows if row["arm"] == "none"}
    for row in rows:
        if row["synthetic"]["accuracy"] < untrained.get(row["seed"], 0):
            said.append(f"{row['arm']}, seed {row['seed']}: worse than random weights.")
    return said


def table(results: Mapping[str, Any]) -> str:
    """The contents of results.json in Markdown."""
    arms, differences = results["arms"], results["differences"]
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm))
    lines = _markdown(
        ["mean and standard deviation over seeds", *arms, "qdgs - random", "95 % interval"],
        [
            [name, *(_shown(name, arm.get(name)) for arm in arms.values()),
             _shown(name, differences.get(name), "+"), _span(name, differences.get(name))]
            for name in names
        ],
    )  # fmt: skip
    lines += ["", *_markdown(
        ["seed", "arm", "identities", *TONES, "loss", "synthetic",
         "pairs", "s"],
        [
            [str(row["seed"]), row["arm"], str(row["identities"]),
             *(str(row["tones"].get(tone, 0)) for tone in TONES),
             "-" if row["loss"] is None else f"{row['loss']:.2f}",
             f"{row['synthetic']['accuracy']:.1%}", str(row["synthetic"]["pairs"]),
             f"{row['seconds']:.0f}"]
            for row in results["rows"]
        ],
    )]  # fmt: skip
    return "\n".join([*lines, "", *results["sentences"]]).rstrip() + "\n"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def _number(name: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}" if name == "loss" else f"{100 * value:{sign}.1f}"


def _shown(name: str, figure: Mapping[str, Any] | None, sign: str = "") -> str:
    if figure is None:
        return "-"
    unit = "" if name == "loss" else " %"
    spread = f" ± {_number(name, figure['spread'])}" if len(figure["seeds"]) > 1 else ""
    return f"{_number(name, figure['mean'], sign)}{spread}{unit}"


def _span(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["interval"] is None:
        return "-"
    low, high = figure["interval"]
    return f"{_number(name, low, '+')} to {_number(name, high, '+')}"
