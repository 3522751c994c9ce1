"""Labelled images in Parquet files, as Hugging Face's image datasets have them, local or of a hub.

Needs pyarrow, which is in the extra `parquet`.
"""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pydantic_core

from qdgs_jax import files
from qdgs_jax.datasets.array_files import Split, name_labels
from qdgs_jax.datasets.class_folders import MAX_BYTES, LabelledImages, stack_images
from qdgs_jax.datasets.image_files import decode_image
from qdgs_jax.datasets.listing import MAX_IMAGES
from qdgs_jax.errors import ConfigError, QDGSError, shorten

SUFFIX = ".parquet"
HUB = "hf:"
_IMAGES, _LABELS = ("image", "img"), ("label", "fine_label")
_ROWS = 16
"""Read at once: images may be large."""


def fetch_tables(source: str, *, split: Split) -> list[Path]:
    """Parquet files of a split of a dataset `hf:OWNER/NAME@COMMIT` of the Hugging Face hub.

    A commit is asked for because names of versions, such as `main`, can change what they mean.

    Raises:
        ConfigError: `source` is written otherwise, the split is absent or larger than `MAX_BYTES`,
            or the hub cannot be reached.
    """
    match = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)@([0-9a-f]{{40}})", source)
    if not match:
        raise ConfigError(
            f"{shorten(source)} is no dataset of a hub: write {HUB}OWNER/NAME@COMMIT with the 40 "
            "digits of the commit, which the hub shows at its files."
        )
    options: dict[str, Any] = {"repo_type": "dataset", "revision": match[2]}
    try:
        info = huggingface_hub.HfApi().repo_info(match[1], files_metadata=True, **options)
        sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
        names = of_split(sizes, split, source)
        if sum(sizes[name] for name in names) > MAX_BYTES:
            raise ConfigError(
                f"The split '{split}' of {source} has more than the {MAX_BYTES / 2**30:.0f} GiB "
                "allowed: name a smaller dataset."
            )
        return [Path(huggingface_hub.hf_hub_download(match[1], name, **options)) for name in names]
    except QDGSError:
        raise
    except Exception as error:  # network, proxy and hub raise many kinds
        raise ConfigError(
            f"{source} cannot be fetched from the Hugging Face hub ({type(error).__name__}): check "
            "the name, or download it where there is a connection and name the folder."
        ) from error


def find_tables(folder: Path, *, split: Split) -> list[Path]:
    """Parquet files of a split in a folder and the folders in it; none if it has no Parquet files.

    Raises:
        ConfigError: it has Parquet files, but none of the split.
    """
    found = list(itertools.islice(folder.rglob(f"*{SUFFIX}"), MAX_IMAGES))
    names = [path.relative_to(folder).as_posix() for path in found]
    return [folder / name for name in of_split(names, split, str(folder))] if names else []


def of_split(names: Iterable[str], split: str, source: str) -> list[str]:
    """Names of the Parquet files that have the split as a word in their path, sorted, such as
    `data/train-00000-of-00002.parquet` and `plain_text/train/0000.parquet`.

    Raises:
        ConfigError: there are none, or they are of several datasets: they lie in several folders.
    """
    word = re.compile(rf"(?<![a-z]){split}(?![a-z])")
    found = sorted(name for name in names if name.endswith(SUFFIX) and word.search(name))
    if not found:
        raise ConfigError(
            f"{source} has no Parquet file of the split '{split}': its name must contain that word."
        )
    if len(folders := sorted({name.rpartition("/")[0] for name in found})) > 1:
        raise ConfigError(
            f"{source} has files of the split '{split}' in several folders, such as "
            f"{shorten(folders[0] or '.')} and {shorten(folders[1])}: download it, and name one."
        )
    return found


def read_tables(paths: list[Path], source: str) -> LabelledImages:
    """Images [N, H, W, 3] of Parquet files with the columns `image` (or `img`), a struct with
    `bytes`, and `label` (or `fine_label`), whole numbers.

    Classes have the names that the files' `huggingface` metadata gives, or are the numbers.

    Raises:
        ConfigError: pyarrow is not installed, a file is damaged, larger than `MAX_BYTES` or of
            another layout, sizes of images differ, or a label has no name.
        QDGSError: an image cannot be read.
    """
    try:
        import pyarrow.parquet  # optional
    except ImportError:
        raise ConfigError(
            f"{source} is read by the package pyarrow, which is not installed: run "
            "`pip install 'qdgs-jax[parquet]'`."
        ) from None
    labels: list[int] = []
    try:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(files.open_regular(path, MAX_BYTES)) for path in paths]
            tables = list(map(pyarrow.parquet.ParquetFile, opened))
            count = _require_fit(tables, source)
            columns = list(map(_columns, paths, tables))
            if len({classes for *_, classes in columns}) > 1:
                raise ConfigError(f"The files of {source} name other classes: name them alike.")
            rows = itertools.chain.from_iterable(map(_rows, paths, tables, columns))
            pixels = stack_images(_decoded(rows, labels), count)
        if len(labels) < count:
            raise ConfigError(
                f"{source} holds {len(labels)} of the {count} images that it announces: replace "
                "its files."
            )
    except QDGSError:
        raise
    except Exception as error:  # pyarrow raises many kinds at damaged files
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise ConfigError(
            f"{source} cannot be read ({shorten(reason)}): replace its files."
        ) from None
    return LabelledImages(pixels, name_labels(np.array(labels), columns[0][2], source), ())


def _require_fit(tables: Sequence[Any], source: str) -> int:
    """Number of rows of all files, if they are not too many and not too large."""
    # Not of single columns: pyarrow ends the process if a damaged file's cannot be read.
    size = sum(
        table.metadata.row_group(row).total_byte_size
        for table in tables
        for row in range(table.metadata.num_row_groups)
    )
    count: int = sum(table.metadata.num_rows for table in tables)
    if not 0 < count <= MAX_IMAGES or size > MAX_BYTES:
        raise ConfigError(
            f"{source} announces {count:,} images in {size:,} bytes: name a dataset with 1 to "
            f"{MAX_IMAGES:,} in at most {MAX_BYTES:,}."
        )
    return count


def _columns(path: Path, table: Any) -> tuple[str, str, tuple[str, ...]]:
    """Names of the columns of images and labels, and of the classes."""
    import pyarrow

    schema = table.schema_arrow
    image = next((name for name in _IMAGES if name in schema.names), "")
    label = next((name for name in _LABELS if name in schema.names), "")
    if not (
        image
        and label
        and pyarrow.types.is_struct(kind := schema.field(image).type)
        and kind.get_field_index("bytes") >= 0
        and pyarrow.types.is_integer(schema.field(label).type)
    ):
        raise ConfigError(
            f"{path} has no column `image` of structs with `bytes` and `label` of whole numbers, "
            f"but {shorten(ascii(schema.names))}: name these columns so."
        )
    features = pydantic_core.from_json((schema.metadata or {}).get(b"huggingface", b"{}"))
    try:
        names = features["info"]["features"][label]["names"]
    except (KeyError, TypeError):
        names = []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path} names its classes by {shorten(names)}: make that a list.")
    return image, label, tuple(names)


def _rows(
    path: Path, table: Any, columns: tuple[str, str, tuple[str, ...]]
) -> Iterator[tuple[str, bytes | None, int | None]]:
    """Name, content and label of each image of a file."""
    image, label, _ = columns
    row = 0
    for batch in table.iter_batches(_ROWS, columns=[f"{image}.bytes", label]):
        contents = batch.column(image).field("bytes").to_pylist()
        for content, number in zip(contents, batch.column(label).to_pylist(), strict=True):
            yield f"{row} of {path}", content, number
            row += 1


def _decoded(
    rows: Iterable[tuple[str, bytes | None, int | None]], labels: list[int]
) -> Iterator[tuple[str, np.ndarray]]:
    """The images of rows; their labels are added to `labels`."""
    for name, content, label in rows:
        if not isinstance(content, bytes) or label is None:
            raise ConfigError(f"Row {name} lacks its image or its label: remove it.")
        labels.append(label)
        yield name, decode_image(content, name)
