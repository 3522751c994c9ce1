"""A folder of images with labels and provenance, as torchvision and Hugging Face read it.

    <label>/<id>.png    (<label>/<id // 1000>/<id>.png in datasets of 10,000 images or more)
    metadata.jsonl      one record an image, column `file_name`
    manifest.json       how the images were made, and the SHA-256 of each file; written last

An unfinished folder has `manifest.json.part` instead, and the same call continues it. No file holds
a date: the same call gives the same bytes.
"""

import io
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from qdgs_jax import files, folders
from qdgs_jax.errors import QDGSError

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for an image that a trained model made."""
MANIFEST = "manifest.json"
PARTIAL_MANIFEST = "manifest.json.part"
FILES = ' "files": [\n'  # the manifest's last key, one line a file, so that it can be streamed
FLAT = 10_000  # images from which on class folders are divided
SHARD = 1_000  # ids in each part
AGAIN = "run the same command again, which continues where this one stopped"


@dataclass(frozen=True)
class ImageTable:
    """What each image shows, one row an image: all that grows with the number of images."""

    labels: tuple[str, ...]
    """Class folders, sorted, so that their positions are the classes that readers count."""
    label: np.ndarray  # [N] int, position in `labels`
    bins: tuple[str, ...]
    bin: np.ndarray  # [N] int, position in `bins`, -1 for none
    latent_row: np.ndarray  # [N] int, row among the elites or random samples
    cell: np.ndarray  # [N] int, -1 where unknown
    objective: np.ndarray  # [N]
    measure_names: tuple[str, ...]
    measures: np.ndarray  # [N, M]
    constants: dict[str, Any]
    """What each record says alike."""

    def __len__(self) -> int:
        return len(self.label)

    def file_name(self, id: int) -> str:
        """Path of an image within the folder."""
        shard = f"{id // SHARD:04d}/" if len(self) >= FLAT else ""
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
            **self.constants,
        }


def claim(out: Path, header: dict[str, Any]) -> bool:
    """Makes `out` the folder of the dataset that `header` describes, a dict of plain JSON values.

    Returns:
        Whether the dataset is there already, each file as its manifest says. Files that are not
        are removed, and the folder is unfinished again.

    Raises:
        ConfigError: `out` holds anything else.
        QDGSError: `out` cannot be written, or holds another dataset.
    """
    with folders.interruptions_explained(out, again=AGAIN):
        known = folders.claim(out, MANIFEST, PARTIAL_MANIFEST, holds="a dataset")
        manifest, partial = out / MANIFEST, out / PARTIAL_MANIFEST
        if not known:
            out.mkdir(parents=True, exist_ok=True)
            files.write(partial, _header_text(header))
            return False
        _require_same(out, _read_header(known), header)
        if known == partial:
            return False
        damaged = [entry["file_name"] for entry in _entries(manifest) if not _intact(out, entry)]
        if not damaged:
            partial.unlink(missing_ok=True)  # of a call that ended between its last two steps
            return True
        files.write(partial, _header_text(header))
        manifest.unlink()
        for name in damaged:
            (out / name).unlink(missing_ok=True)
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
    """Writes what is missing in a claimed folder, and the manifest last.

    Args:
        header: what stands in the manifest beside the list of files; plain JSON values.
        pixels: id of a chunk's first image -> at least the chunk's images, uint8 [n, H, W, 3].
        chunk_size: images in memory at once.
        texts: further files by name. The README.md is for people to edit: an existing one stays,
            and the manifest does not list it.

    Returns:
        How many images were written; the others were there.

    Raises:
        QDGSError: no space left, or files that cannot be written. What was written stays.
    """
    mark = _marks(str(header["made_by"]), str(table.constants["generator"]))
    written = 0
    with folders.interruptions_explained(out, again=AGAIN), folders.locked(out):
        for label in table.labels:  # an empty class keeps its place among the classes
            (out / label).mkdir(exist_ok=True)
        with tqdm(total=len(table), unit="image", desc=str(out), disable=None) as progress:
            for start in range(0, len(table), chunk_size):
                ids = range(start, min(start + chunk_size, len(table)))
                missing = [id for id in ids if not _is_whole_png(out / table.file_name(id))]
                if missing:
                    images = pixels(start)
                    for id in missing:
                        _save_png(out / table.file_name(id), images[id - start], mark)
                    written += len(missing)
                progress.update(len(ids))
        _finish(out, header, table, texts)
    return written


def _finish(out: Path, header: dict[str, Any], table: ImageTable, texts: dict[str, str]) -> None:
    """Writes metadata and manifest in one pass over the images."""
    for name, text in texts.items():
        if name != "README.md" or not (out / name).exists():
            files.write(out / name, text)
    with files.replacing(out / MANIFEST) as manifest:
        manifest.write((_header_text(header)[:-3] + ",\n" + FILES).encode())
        with files.replacing(out / "metadata.jsonl") as metadata:
            for id in range(len(table)):
                metadata.write(json.dumps(table.record(id), allow_nan=False).encode() + b"\n")
                manifest.write(_entry(out, table.file_name(id)) + b",\n")
        names = sorted({"metadata.jsonl", *texts} - {"README.md"})
        manifest.write(b",\n".join(_entry(out, name) for name in names) + b"\n ]\n}\n")
    (out / PARTIAL_MANIFEST).unlink(missing_ok=True)


def _header_text(header: dict[str, Any]) -> str:
    return json.dumps(header, indent=1) + "\n"


def _read_header(path: Path) -> dict[str, Any]:
    """The keys of a manifest before its list of files, which is not read."""
    lines: list[str] = []
    with open(path) as file:
        for line in file:
            if line == FILES:
                lines[-1] = lines[-1].rstrip(",\n")
                lines.append("}")
                break
            lines.append(line)
    try:
        return json.loads("".join(lines))
    except json.JSONDecodeError as error:
        raise QDGSError(
            f"The manifest {path} is not readable ({error}): delete the folder and start again."
        ) from error


def _entries(manifest: Path) -> Iterator[dict[str, Any]]:
    """The manifest's list of files, one by one."""
    with open(manifest) as file:
        for line in file:
            if line == FILES:
                break
        for line in file:
            if line.startswith("  {"):
                yield json.loads(line.rstrip(",\n"))


def _entry(out: Path, name: str) -> bytes:
    path = out / name
    entry = {"file_name": name, "bytes": path.stat().st_size, "sha256": files.sha256(path)}
    return b"  " + json.dumps(entry).encode()


def _intact(out: Path, entry: dict[str, Any]) -> bool:
    path = out / entry["file_name"]
    return path.is_file() and files.sha256(path) == entry["sha256"]


def _require_same(out: Path, found: dict[str, Any], header: dict[str, Any]) -> None:
    if different := [key for key in header if found.get(key) != header[key]]:
        raise QDGSError(
            f"{out} holds another dataset (other {', '.join(different)}): "
            "choose another folder, or delete this one."
        )


def _marks(software: str, generator: str) -> PngInfo:
    """Says in each image, for machines, that a model made it (IPTC digital source type, XMP)."""
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


def _save_png(path: Path, pixels: np.ndarray, marks: PngInfo) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png", pnginfo=marks)
    path.parent.mkdir(exist_ok=True)
    files.write(path, content.getvalue(), durable=False)  # `_is_whole_png` and the manifest check


def _is_whole_png(path: Path) -> bool:
    """Whether a file ends as a PNG must (a crash of the machine may leave less)."""
    try:
        with open(path, "rb") as file:
            file.seek(-8, os.SEEK_END)
            return file.read() == b"IEND\xaeB`\x82"
    except OSError:
        return False


def _number(value: np.floating) -> float | None:
    """The shortest decimal of a float32; JSON has no NaN."""
    return float(str(value)) if math.isfinite(value) else None
