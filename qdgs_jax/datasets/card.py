"""The README.md of a dataset: what it is, how it was made, and what it is not.

Its header says to Hugging Face `datasets` which files are which split and what the columns are:
otherwise class folders named like splits ("train", "test") would be read as splits.
"""

import json
from collections.abc import Iterator
from typing import Any

from qdgs_jax import generators
from qdgs_jax.config import NOTICES
from qdgs_jax.datasets.image_folder import METADATA, ImageTable

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

CARD = """\
---
license: {license}
task_categories:
- image-classification
tags:
- synthetic
size_categories:
- {size}
configs:
- config_name: default
  data_files:
{data_files}
  features:
{features}
---

# {got} synthetic images of {generator}

Every image was made by a generative model; none is a photograph or a drawing of anything real.
Each PNG is marked as such (XMP `DigitalSourceType`: `trainedAlgorithmicMedia`).
{notice}
* method: {method}, seed {seed}
* generator: {generator} (SHA-256 `{generator_sha256}`)
* encoder: {encoder}
* made by: {made_by}

## Balance

Asked for {asked} images, got {got}.{shortfall}

{bins}

{left_out}

## Columns

`datasets.load_dataset("PATH OF THIS FOLDER")` of Hugging Face reads images and columns.

`metadata.jsonl` has one record an image. `label` is the position of `label_name` among the sorted
class folders, `latent_row` is {latent_row}.
Images with the same `latent_row` are copies: {copies}.

{measures}
* `objective`: 100 - 50 ({loss}); higher is better{classes}
{distance}

## What it is not

* Measures and labels are computed by {reader}, not annotated, and contain its stereotypes and
  mistakes. Nobody has looked at the images.
* Balanced means balanced in these measures in this grid. Nothing follows for traits that were not
  measured, nor for how people would label the images.
* Quality and variety are limited by the generator. Images may resemble its training data.
* Images of people depict nobody, but may resemble somebody in the training data. The dataset is not
  meant for developing or evaluating face recognition.
"""

DISTANCE = """
d is the angle, in radians, between the encoder's embeddings of an image and of a text. For several
texts, separated by `|`, it is the sum of their angles.
"""


TYPES = {
    "id": "int64",
    "label_name": "string",
    "bin": "string",
    "cell": "int64",
    "latent_row": "int64",
    "generator_class": "string",
    "offset_u": "int64",
    "offset_v": "int64",
    "generator": "string",
    "encoder": "string",
    "seed": "int64",
    "synthetic": "bool",
}
"""Types of columns; the others are float64."""


def card(header: dict[str, Any], balance: dict[str, Any], table: ImageTable) -> str:
    """Fills the card.

    Args:
        header: the manifest without its list of files.
        balance: what balance.json holds.
    """
    config, generator, encoder = header["config"], header["generator"], header["encoder"]
    classifiers = header.get("classifiers", {})
    free = config["generator"]["model"] in generators.BUILT_IN  # trained on the project's drawings
    steered = header.get("archive_sha256") is not None
    return CARD.format(
        license="cc0-1.0" if free else "other\nlicense_name: that-of-the-generator",
        size=size_of(balance["got"]),
        notice=f"\n{NOTICES[config['notice']]}\n" if config["notice"] else "",
        generator=generator["name"],
        generator_sha256=generator["sha256"],
        encoder=(
            f"{encoder['name']} (SHA-256 `{encoder['sha256']}`), precision `{header['precision']}`"
            if encoder
            else "none"
        ),
        reader="the encoder" if encoder else "classifiers" if classifiers else "plain functions",
        method=header["method"],
        seed=header["seed"],
        made_by=header["made_by"],
        asked=balance["asked"],
        got=balance["got"],
        shortfall="".join(_shortfall(balance)),
        copies=(
            "keep them together when you split the dataset"
            if table.part is None
            else "`train` and `test` share none"
        ),
        data_files="\n".join(data_files(table)),
        features="\n".join(features(table)),
        bins="\n".join(_bins(balance)),
        left_out=_left_out(balance) if steered else _unlabelled(balance),
        latent_row=(
            "the row of the archive (`archive.safetensors`, SHA-256 "
            f"`{header['archive_sha256']}`) that was rendered"
            if steered
            else "the number of the random latent"
        ),
        measures="\n".join(_measures(config, classifiers)),
        loss=" + ".join(_losses(config)),
        classes="\n* `generator_class`: the class that the generator drew" if table.classes else "",
        distance=DISTANCE if encoder else "",
    )


def size_of(images: int) -> str:
    """Hugging Face's name for a number of images."""
    return next((name for end, name in SIZES if images < end), "1M<n<10M")


def data_files(table: ImageTable) -> Iterator[str]:
    """Lines of a header that say which files are which split."""
    for root in table.roots:
        paths = [root + METADATA, f"{root}**/*.png"]
        yield f"  - {_yaml({'split': root.rstrip('/') or 'train', 'path': paths})}"


def features(table: ImageTable) -> Iterator[str]:
    """Lines of a header that say what the columns are."""
    classes = {str(number): label for number, label in enumerate(table.labels)}
    types = TYPES | {"file_name": "image", "label": {"class_label": {"names": classes}}}
    for column in table.record(0):
        name = "image" if column == "file_name" else column
        yield f"  - {_yaml({'name': name, 'dtype': types.get(column, 'float64')})}"


def _yaml(value: Any) -> str:
    """JSON is YAML, so that no text is read as a number or a truth value, but for its escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def _losses(config: dict[str, Any]) -> Iterator[str]:
    objective = config["objective"]
    if objective["positive"]:
        yield f'd(image, "{objective["positive"]}") - d(image, "{objective["negative"]}")'
    if weight := objective["regularisation"]:
        yield f"{weight:g} x the squared distance of the latent to a ball around the origin"
    if weight := objective["uniqueness"]:
        yield f"{weight:g} x how similar the image is to recent good images of the search"
    weight = objective["typicality"] if config["search"]["constraint"] == "typical" else 0
    if weight:
        yield f"{weight:g} x the distance of the image to random images, 1 at the limit of typical"


def _shortfall(balance: dict[str, Any]) -> Iterator[str]:
    if empty := ", ".join(balance["empty_bins"]):
        yield f" Nothing was found for these bins: {empty}."
    if any(bin["asked"] and 0 < bin["got"] < bin["asked"] for bin in balance["bins"]):
        yield " No elite is shown twice, and some bins have too few."


def _bins(balance: dict[str, Any]) -> Iterator[str]:
    """A table; its column `test` only where the dataset is split."""
    split = "test" in balance["bins"][0]
    yield "| bin | class | asked | got | different latents |" + " of it in `test` |" * split
    yield "|---|---|---:|---:|---:|" + "---:|" * split
    for bin in balance["bins"]:
        asked = "-" if bin["asked"] is None else bin["asked"]
        row = [bin["name"], bin["label"], asked, bin["got"], bin["distinct"]]
        row += [bin["test"]] if split else []
        yield f"| {' | '.join(map(str, row))} |"


def _left_out(balance: dict[str, Any]) -> str:
    return (
        f"Of {balance['available']} elites, {balance['below_min_objective']} were left out because "
        f"their objective is too low and {balance['outside_bins']} because no bin holds them."
    )


def _unlabelled(balance: dict[str, Any]) -> str:
    return f"No bin holds {balance['outside_bins']} of the images."


def _measures(config: dict[str, Any], classifiers: dict[str, str]) -> Iterator[str]:
    """Lines about columns.

    Args:
        classifiers: name -> SHA-256.
    """
    for measure in config["measures"]:
        name, function = measure["name"], measure["function"]
        if function:
            yield f"* `measure_{name}`: the function `{function}` of the image"
        elif classifier := measure["classifier"]:
            output = measure["output"].replace("expected", "expected value")
            reads = f"{output} {measure['target']}".strip()
            model = f"`{classifier}` (SHA-256 `{classifiers.get(classifier, 'unknown')}`)"
            yield f"* `measure_{name}`: the {reads} that the classifier {model} reads"
        else:
            low, high = measure["low"], measure["high"]
            difference = f'd(image, "{low}") - d(image, "{high}")'
            yield f"* `measure_{name}`: {difference}; negative is closer to the first"
