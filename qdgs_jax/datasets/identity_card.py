"""The README.md of a dataset of identities."""

from typing import Any

from qdgs_jax.config import NOTICES
from qdgs_jax.datasets.card import data_files, features, size_of
from qdgs_jax.datasets.image_folder import ImageTable

CARD = """\
---
license: other
license_name: that-of-the-generator
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

# {made} synthetic identities of {generator}

Every image was made by a generative model; none is a photograph of anybody. Each PNG is marked as
such (XMP `DigitalSourceType`: `trainedAlgorithmicMedia`).

{notice}

Each folder is an identity: aligned faces of 112 x 112 pixels that a network takes for one person.
Whether they may be used for face recognition is up to the makers of the generator, of its training
data and of the encoder that searched it.

* method: {method}, seed {seed}
* generator: {generator} (SHA-256 `{generator_sha256}`)
* faces found and aligned by blazeface (SHA-256 `{blazeface}`)
* one person: a cosine above {same_person} of embeddings by faceres (SHA-256 `{faceres}`); 1 % of
  the pairs of two people in ORL, a set of grey photographs, are above it
* made by: {made_by}

## Identities

Asked for {asked}, made {made}, with {low} to {high} images each (median {median:g}).

Refused: {refused_as_others} images that look like another person, {refused_without_face} without a
face; identities with too few images left: {refused_identities}. Of the pairs of identities,
{alike:.1%} look like one person to the network.

| bin | asked | made |
|---|---:|---:|
{bins}

## Columns

`metadata.jsonl` has one record an image. `label_name` is the identity. `latent_row` is the row of
the archive (SHA-256 `{archive_sha256}`) that was rendered, moved by `offset_u` and `offset_v` steps
along two directions of length {offset_length:g}: those along which faces change most and whose they
are least. `bin`, `cell`, `objective` and `measure_*` are of that row, not of the moved image.

## What it is not

* Identities depict nobody, but may resemble somebody in the generator's training data.
* A network decided what is one person, with its mistakes, which need not be alike for all groups of
  people. Nobody has looked at the images.
"""


def identity_card(header: dict[str, Any], report: dict[str, Any], table: ImageTable) -> str:
    """Fills the card.

    Args:
        header: the manifest without its list of files.
        report: what identities.json holds.
    """
    low, median, high = report["images_of_each"]
    rows = [f"| {bin['name']} | {bin['asked']} | {bin['made']} |" for bin in report["bins"]]
    return CARD.format(
        **{key: value for key, value in report.items() if key != "bins"},
        **{key: header[key] for key in ("method", "seed", "same_person", "made_by")},
        **{key: header[key] for key in ("archive_sha256", "offset_length")},
        **header["networks"],
        size=size_of(report["images"]),
        data_files="\n".join(data_files(table)),
        features="\n".join(features(table)),
        generator=header["generator"]["name"],
        generator_sha256=header["generator"]["sha256"],
        notice=NOTICES["faces"],
        low=low,
        median=median,
        high=high,
        bins="\n".join(rows),
    )
