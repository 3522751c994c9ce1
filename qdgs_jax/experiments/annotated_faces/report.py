"""What the arms found, as figures, a table and pictures."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from qdgs_jax import image_measures
from qdgs_jax.bins import draw_evenly
from qdgs_jax.datasets.candidates import distinct
from qdgs_jax.experiments.annotated_faces.arms import Found, Random, Reader, in_batches
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig
from qdgs_jax.experiments.annotated_faces.groups import Groups
from qdgs_jax.experiments.annotated_faces.judge import MISSING, Judge, agreement
from qdgs_jax.problem import Problem
from qdgs_jax.runs import figures, verdict
from qdgs_jax.typing import Array, Latents, Params

TILE = 128
"""Longer side of the images that are judged and shown, in pixels, at most."""
ACROSS = 12
"""Images of a group in a picture."""
RANDOM = 1000
"""Random faces on which judge and classifier are compared."""


class Report:
    """Figures of arms, by images that are rendered and read again, which is no arm's call."""

    def __init__(
        self,
        problem: Problem,
        reader: Reader,
        groups: Groups,
        config: AnnotatedFacesConfig,
        judge: Judge | None,
    ) -> None:
        self._reader, self._groups = reader, groups
        self._config, self._judge = config, judge
        self._subjects = _subjects(problem, groups) if judge else {}
        self._typical_share = verdict.make_typical_share(problem)

        @jax.jit
        def render(params: Params, latents: Latents) -> tuple[Array]:
            images = jnp.clip(problem.generator.render(params, latents), 0, 1)
            height, width = images.shape[1:3]
            shrunk = min(1.0, TILE / max(height, width))
            sides = (max(1, round(shrunk * each)) for each in (height, width))
            if shrunk < 1:
                images = jax.image.resize(images, (len(images), *sides, 3), "linear")
            return (jnp.round(255 * images).astype(jnp.uint8),)

        self._render = functools.partial(render, problem.params["generator"])

    def images(self, latents: np.ndarray) -> np.ndarray:
        """Small images [n, H, W, 3] uint8 of latents [n, D]."""
        return in_batches(self._render, latents, self._reader.size)[0]

    def row(self, arm: str, found: Found, sheet: Path) -> dict[str, Any]:
        """Figures of an arm; draws its picture."""
        groups, config = self._groups, self._config
        count = np.bincount(found.groups, minlength=len(groups))
        drawn = draw_evenly(
            found.groups, len(groups), len(groups) * config.images_a_group, config.seed,
            repeat=False,
        )  # fmt: skip
        counts = {name: int(n) for name, n in zip(groups.names, count, strict=True)}
        latents, group = found.latents[drawn], found.groups[drawn]
        measures, embeddings = self._reader(latents)
        images = self.images(latents)
        draw_sheet(sheet, groups.names, count, group, images)
        agrees = groups.assign(measures, config.confidence) == group
        judged = None
        if self._judge:
            judged = agreement(groups, self._subjects, groups.values[group], self._judge(images))
        return {
            "arm": arm,
            "calls": found.calls,
            "images": int(count.sum()),
            "groups_reached": int((count > 0).sum()),
            "rarest_group": int(count.min()),
            "shares": _ends(count),
            "drawn": len(drawn),
            "drawn_shares": _ends(np.bincount(group, minlength=len(groups))),
            "classifier_agrees": float(agrees.mean()) if len(drawn) else None,
            "judge_agrees": judged,
            "people": int(distinct(embeddings, config.same_person).sum()),
            "typical": self._typical_share(latents) if len(drawn) else None,
            "seconds": found.seconds,
            "seconds_an_image": found.seconds / count.sum() if count.sum() else None,
            "unreached": [name for name, n in counts.items() if not n],
            "groups": counts,
            **found.about,
        }

    def judge_on_random(self, random: Random) -> dict[str, Any] | str:
        """How the judge agrees with the classifier on random faces that this is confident of; and
        their rank correlations on all of them. A sentence if there is no judge."""
        if not self._judge:
            return MISSING
        latents, measures = random.latents[:RANDOM], random.measures[:RANDOM]
        opinion = self._judge(self.images(latents))
        probabilities = self._groups.probabilities(measures)
        sure = np.all(
            [probabilities[place].max(axis=1) >= self._config.confidence
             for place in self._subjects.values()], axis=0,
        )  # fmt: skip
        values = np.stack([each.argmax(axis=1) for each in probabilities], axis=1)
        of_sure = {name: each[sure] for name, each in opinion.items()}
        columns = self._groups.columns
        return {
            "faces": len(latents),
            "confident": int(sure.sum()),
            "agrees": agreement(self._groups, self._subjects, values[sure], of_sure),
            "rank_correlation": {
                subject: float(spearmanr(opinion[subject], measures[:, columns[place]]).statistic)
                for subject, place in self._subjects.items()
            },
        }


def _subjects(problem: Problem, groups: Groups) -> dict[str, int]:
    """What the judge reads as well -> position of the attribute."""
    found = {}
    for place, column in enumerate(groups.columns):
        name = problem.config.measures[column].classifier
        model, _, reading = name.rpartition(":")
        if image_measures.weights_of(name) == model != "":
            found[reading] = place
    return found


def _ends(count: np.ndarray) -> list[float] | None:
    """Smallest and largest share of the groups."""
    return [float(end / count.sum()) for end in (count.min(), count.max())] if count.any() else None


def draw_sheet(
    path: Path, names: Sequence[str], count: np.ndarray, group: np.ndarray, images: np.ndarray
) -> None:
    """Images of each group in a row.

    Args:
        count: found in each group, for its label.
        group, images: of those drawn, [n] and [n, H, W, 3] uint8.
    """
    height, width = images.shape[1:3]
    sheet = np.full((len(names) * height, ACROSS * width, 3), 235, np.uint8)
    for row in range(len(names)):
        for column, image in enumerate(images[group == row][:ACROSS]):
            top, left = row * height, column * width
            sheet[top : top + height, left : left + width] = image
    figure = Figure(figsize=(9.5, 7 * len(sheet) / sheet.shape[1] + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="antialiased")
    axes.set_xticks([])
    labels = [f"{name} ({n})" for name, n in zip(names, count, strict=True)]
    axes.set_yticks((np.arange(len(names)) + 0.5) * height - 0.5, labels, fontsize="small")
    figures.save(figure, path)


def table(rows: Sequence[Mapping[str, Any]], judge: dict[str, Any] | str) -> str:
    """The arms and their groups in Markdown, and sentences on what was not reached."""
    judged = [*judge["agrees"]] if isinstance(judge, dict) else []
    lines = _markdown(
        ["arm", "calls", "images", "groups", "rarest", "shares", "drawn", "their shares",
         "read as labelled", *(f"judge: {name}" for name in judged or ["all"]), "people",
         "typical", "s an image"],
        [
            [row["arm"], f"{row['calls']:,}", f"{row['images']:,}", str(row["groups_reached"]),
             str(row["rarest_group"]), _span(row["shares"]), str(row["drawn"]),
             _span(row["drawn_shares"]), _percent(row["classifier_agrees"]),
             *(_percent((row["judge_agrees"] or {}).get(name)) for name in judged or ["all"]),
             str(row["people"]), _percent(row["typical"]),
             "-" if row["seconds_an_image"] is None else f"{row['seconds_an_image']:.3f}"]
            for row in rows
        ],
    )  # fmt: skip
    names = [*rows[0]["groups"]]
    lines += ["", *_markdown(
        ["images of", *(row["arm"] for row in rows)],
        [[name, *(str(row["groups"][name]) for row in rows)] for name in names],
    ), ""]  # fmt: skip
    lines += [f"Unreached by {row['arm']}: {', '.join(row['unreached'])}."
              for row in rows if row["unreached"]]  # fmt: skip
    never = [name for name in names if not any(row["groups"][name] for row in rows)]
    lines += [f"Reached by no arm: {', '.join(never)}."] if never else []
    if isinstance(judge, str):
        lines.append(f"Judge: {judge}.")
    else:
        said = (f"{name} {_percent(share)}" for name, share in judge["agrees"].items())
        ranks = (f"{name} {rank:.2f}" for name, rank in judge["rank_correlation"].items())
        lines.append(
            f"On {judge['confident']} of {judge['faces']} random faces that the classifier is "
            f"confident of, the judge agrees with it: {', '.join(said)}; rank correlations on all "
            f"of them: {', '.join(ranks)}."
        )
    return "\n".join(lines) + "\n"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _span(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.1%} to {ends[1]:.1%}"
