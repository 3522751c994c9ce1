"""The planned contents of a dataset, chosen before any image is rendered."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from qdgs_jax import provenance
from qdgs_jax.bins import UNLABELLED
from qdgs_jax.config import BinConfig, Config
from qdgs_jax.datasets.image_folder import DIGITAL_SOURCE_TYPE, ImageTable


def make_header(config: Config, made: dict[str, Any], **plan: Any) -> dict[str, Any]:
    """The manifest without its list of files; plain JSON values.

    Args:
        made: the result of `provenance.describe`.
        plan: further values that distinguish this dataset from others, such as its seed.
    """
    header = {
        "made_by": f"qdgs-jax {provenance.version()}",
        "synthetic": True,
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        **plan,
        "generator": made["generator"],
        "encoder": made["encoder"],
        **({"classifiers": made["classifiers"]} if "classifiers" in made else {}),
        "precision": made["precision"],
        "scored_with": {"device": made["device"], "versions": made["versions"]},
        "rendered_with": provenance.environment(provenance.RENDERING),
        "config": dataclasses.asdict(config),
    }
    # JSON knows no infinity: an open end of an interval is null.
    return json.loads(json.dumps(header), parse_constant=lambda _: None)


def make_table(
    config: Config,
    header: dict[str, Any],
    bins: Sequence[BinConfig],
    *,
    bin: np.ndarray,
    part: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    **columns: Any,
) -> ImageTable:
    """The table of images; the label of an image follows from its bin.

    Args:
        header: of `make_header`.
        bin: position in `bins` of each image, [N], -1 for none.
        part, classes: as in `ImageTable`.
        columns: the other columns of an `ImageTable`.
    """
    names = {bin.label for bin in bins} | ({UNLABELLED} if (bin < 0).any() else set())
    labels = sorted(names)
    of_bin = [labels.index(bin.label) for bin in bins]
    of_bin.append(labels.index(UNLABELLED) if UNLABELLED in names else -1)  # bin -1
    models = {
        role: f"{header[role]['name']}@{header[role]['sha256'][:12]}"
        for role in ("generator", "encoder")
        if header[role]
    }
    return ImageTable(
        labels=tuple(labels),
        label=np.array(of_bin)[bin],
        bins=tuple(bin.name for bin in bins),
        bin=bin,
        measure_names=tuple(measure.name for measure in config.measures),
        constants={**models, "seed": header["seed"], "synthetic": True},
        part=part,
        classes=classes,
        **columns,
    )
