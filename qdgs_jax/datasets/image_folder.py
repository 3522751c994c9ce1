"""A folder of images with labels and provenance, as torchvision and Hugging Face read it.

    <label>/<id>.png    (<label>/<id // 1000>/<id>.png in datasets of 10,000 images or more)
    metadata.jsonl      one record an image, column `file_name`
    manifest.json       how the images were made, and the SHA-256 of each file; written last

A dataset that is split has the class folders and a metadata.jsonl in `train` and in `test`.

An unfinished folder has `manifest.json.part` instead, and the same call continues it. No file holds
a date: the same call gives the same bytes.
"""

import collections
import contextlib
import io
import itertools
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from qdgs_jax import files, folders, processes
from qdgs_jax.datasets import manifest
from qdgs_jax.datasets.manifest import MANIFEST, PARTIAL_MANIFEST
from qdgs_jax.errors import QDGSError

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for an image that a trained model made."""
METADATA = "metadata.jsonl"
PARTS = ("train", "test")
"""Folders of a dataset that is split."""
FLAT = 10_000  # datasets of so many images or more divide their class folders
SHARD = 1_000  # ids in each part
AGAIN = "run the same command again, which continues where this one stopped"


@dataclass(frozen=True)
class ImageTable:
    """One row for each image: the only part of a plan that grows with the number of images."""

    labels: tuple[str, ...]
    """Class folders, sorted as readers sort them, so that a position is a class number."""
    label: np.ndarray  # [N] int, position in `labels`
    bins: tuple[str, ...]
    bin: np.ndarray  # [N] int, position in `bins`, -1 for none
    latent_row: np.ndarray  # [N] int, row among the elites or random samples
    cell: np.ndarray  # [N] int, -1 where unknown
    objective: np.ndarray  # [N]
    measure_names: tuple[str, ...]
    measures: np.ndarray  # [N, M]
    constants: dict[str, Any]
    """Columns with one value for all records."""
    part: np.ndarray | None = None  # [N] int, position in PARTS; None without a split
    classes: tuple[str, ...] = ()
    """Of a conditional generator."""
    generator_class: np.ndarray | None = None  # [N] int, position in `classes`; unused without any
    others: dict[str, np.ndarray] = field(default_factory=dict)  # further columns, each [N]
    whole: bool = False
    """Whether class folders stay whole, however many images there are."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders with class folders and a metadata.jsonl; each ends in "/", or is empty."""
        return ("",) if self.part is None else tuple(f"{part}/" for part in PARTS)

    def root(self, id: int) -> int:
        """Position in `roots` of an image's folder."""
        return 0 if self.part is None else int(self.part[id])

    def path(self, id: int) -> str:
        """Path of an image within the dataset."""
        return self.roots[self.root(id)] + self.file_name(id)

    def file_name(self, id: int) -> str:
        """Path of an image beside its metadata.jsonl."""
        shard = f"{id // SHARD:04d}/" if len(self) >= FLAT and not self.whole else ""
        return f"{self.labels[self.label[id]]}/{shard}{id:0{max(6, len(str(len(self) - 1)))}d}.png"

    def record(self, id: int) -> dict[str, Any]:
        """The line of metadata.jsonl."""
        bin, cell = int(self.bin[id]), int(self.cell[id])
        measures = zip(self.measure_names, self.measures[id], strict=True)
        return {
            "file_name": self.file_name(id),
            "id": id,
            "label": int(self.label[id]),
            "label_name": self.labels[self.label[id]],
            "bin": self.bins[bin] if bin >= 0 else None,
            "cell": cell if cell >= 0 else None,
            **{f"measure_{name}": _number(value) for name, value in measures},
            "objective": _number(self.objective[id]),
            "latent_row": int(self.latent_row[id]),
            **self._class(id),
            **{name: values[id].item() for name, values in self.others.items()},
            **self.constants,
        }

    def _class(self, id: int) -> dict[str, str]:
        if self.generator_class is None or not self.classes:
            return {}
        return {"generator_class": self.classes[self.generator_class[id]]}


def claim(out: Path, header: dict[str, Any]) -> bool:
    """Makes `out` the folder of the dataset that `header` describes, a dict of plain JSON values.

    Returns:
        Whether the dataset is complete, with each file as in its manifest. If not, the folder is
        unfinished; a manifest's list of files then says to `write` which images are whole.

    Raises:
        ConfigError: `out` holds anything else.
        QDGSError: `out` cannot be written, or holds another dataset.
    """
    with (
        folders.interruptions_explained(out, again=AGAIN),
        folders.claimed(out, MANIFEST, PARTIAL_MANIFEST, holds="a dataset") as known,
    ):
        whole, partial = out / MANIFEST, out / PARTIAL_MANIFEST
        if not known:
            files.write(partial, manifest.header_text(header))
            return False
        _require_same(out, manifest.read_header(known), header)
        if known == partial:
            return False
        if all(manifest.is_intact(out, entry) for entry in manifest.entries(whole) or [{}]):
            partial.unlink(missing_ok=True)  # of a call that ended between its last two steps
            return True
        os.replace(whole, partial)
        return False


def write(
    out: Path,
    header: dict[str, Any],
    table: ImageTable,
    pixels: Callable[[int], np.ndarray],
    *,
    chunk_size: int,
    texts: dict[str, str],
) -> int:
    """Writes the missing files of a claimed folder, and the manifest last.

    Several processes take the chunks in turns; process 0 writes what is not an image.

    Args:
        header: the manifest without its list of files; plain JSON values.
        pixels: id of a chunk's first image -> at least the chunk's images, uint8 [n, H, W, 3].
        chunk_size: images in memory at once.
        texts: further files by name. People may edit the README.md: an existing one stays, and the
            manifest does not list it.

    Returns:
        How many images were written; the others existed already.

    Raises:
        QDGSError: no space left, or files that cannot be written. Files already written stay.
    """
    mark = _marks(str(header["made_by"]), str(table.constants["generator"]))
    with (
        folders.interruptions_explained(out, again=AGAIN),
        processes.entered_by_first(folders.locked(out)),
    ):
        with processes.errors_shared():
            for root in table.roots:
                for label in table.labels:  # an empty class keeps its place among the classes
                    _make_folder(out, root + label)
            written = _write_images(out, table, pixels, chunk_size, mark)
        processes.first(lambda: _finish(out, header, table, texts))
        return sum(processes.gather(written))


def _write_images(
    out: Path,
    table: ImageTable,
    pixels: Callable[[int], np.ndarray],
    chunk_size: int,
    mark: PngInfo,
) -> int:
    """Writes the missing images of this process's chunks; returns their number."""
    written = 0
    recorded = manifest.entries(out / PARTIAL_MANIFEST)
    with tqdm(total=len(table), unit="image", desc=str(out), disable=None) as progress:
        for number, start in enumerate(range(0, len(table), chunk_size)):
            ids = range(start, min(start + chunk_size, len(table)))
            if processes.is_mine(number):
                missing = [id for id in ids if not _is_whole(out, table.path(id), recorded)]
                images = pixels(start) if missing else np.empty(0)
                for id in missing:
                    _save_png(out, table.path(id), images[id - start], mark)
                written += len(missing)
            else:  # skips its entries
                collections.deque(itertools.islice(recorded or (), len(ids)), maxlen=0)
            progress.update(len(ids))
    return written


def _finish(out: Path, header: dict[str, Any], table: ImageTable, texts: dict[str, str]) -> None:
    """Writes metadata and manifest in one pass over the images."""
    for name, text in texts.items():
        if name != "README.md" or not (out / name).exists():
            files.write(out / name, text)
    tables = [root + METADATA for root in table.roots]
    with files.replacing(out / MANIFEST) as whole:
        whole.write(manifest.opening(header))
        with contextlib.ExitStack() as stack:
            metadata = [stack.enter_context(files.replacing(out / name)) for name in tables]
            for id in range(len(table)):
                line = json.dumps(table.record(id), allow_nan=False).encode() + b"\n"
                metadata[table.root(id)].write(line)
                whole.write(manifest.entry(out, table.path(id)) + b",\n")
        names = sorted({*tables, *texts} - {"README.md"})
        whole.write(b",\n".join(manifest.entry(out, name) for name in names) + manifest.CLOSING)
    (out / PARTIAL_MANIFEST).unlink(missing_ok=True)


def _require_same(out: Path, found: dict[str, Any], header: dict[str, Any]) -> None:
    if different := [key for key in header | found if found.get(key) != header.get(key)]:
        raise QDGSError(
            f"{out} holds another dataset (other {', '.join(different[:5])}): "
            "choose another folder, or delete this one."
        )


def _marks(software: str, generator: str) -> PngInfo:
    """The mark, in XMP, that a model made an image (IPTC digital source type)."""
    xmp = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f" Iptc4xmpExt:DigitalSourceType={quoteattr(DIGITAL_SOURCE_TYPE)}"
        f" xmp:CreatorTool={quoteattr(f'{software}, {generator}')}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )
    info = PngInfo()
    info.add_text("Software", software)
    info.add_text("Generator", generator)
    info.add_text("DigitalSourceType", DIGITAL_SOURCE_TYPE)
    info.add_itxt("XML:com.adobe.xmp", xmp)
    return info


def _save_png(out: Path, name: str, pixels: np.ndarray, marks: PngInfo) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png", pnginfo=marks)
    _make_folder(out, os.path.dirname(name))
    files.write(out / name, content.getvalue(), durable=False)  # checked before it counts


def _make_folder(out: Path, name: str) -> None:
    """Makes a folder within `out`; a link in its place would lead the images elsewhere."""
    if not files.is_within(out, name):
        raise QDGSError(f"{out / name} leads out of its folder: remove that link.")
    (out / name).mkdir(parents=True, exist_ok=True)


def _is_whole(out: Path, name: str, recorded: Iterator[dict[str, Any]] | None) -> bool:
    """Whether an image need not be written.

    Args:
        recorded: entries of a manifest that was whole, which has the images in this order. Without
            it, a PNG is whole that ends as it must (a crash of the machine may leave less).
    """
    if recorded is not None:
        entry = next(recorded, {})
        return entry.get("file_name") == name and manifest.is_intact(out, entry)
    try:
        if not stat.S_ISREG(os.lstat(out / name).st_mode):
            return False
        with open(out / name, "rb") as file:
            file.seek(-8, os.SEEK_END)
            return file.read() == b"IEND\xaeB`\x82"
    except OSError:
        return False


def _number(value: np.floating) -> float | None:
    """The shortest decimal of a float32; JSON has no NaN."""
    return float(str(value)) if math.isfinite(value) else None
