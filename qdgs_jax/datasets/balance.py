"""How many images each bin of a dataset was asked for, and how many it got."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from qdgs_jax import files
from qdgs_jax.config import BinConfig
from qdgs_jax.datasets.image_folder import ImageTable
from qdgs_jax.errors import QDGSError

BALANCE = "balance.json"
MAX_BYTES = 2**24


@dataclass(frozen=True)
class BinBalance:
    """How many images a bin was asked for, and how many it got."""

    name: str
    label: str
    asked: int | None
    """Images; None in a baseline, which is not balanced."""
    got: int
    available: int
    """Elites in the bin; in a baseline, random samples in the bin."""
    distinct: int
    """Different elites among the images: fewer than `got` where elites had to be repeated."""
    test: int | None = None
    """Images for testing; None, and not in balance.json, where the dataset is not split."""


@dataclass(frozen=True)
class Balance:
    """What balance.json holds."""

    asked: int
    """Images."""
    got: int
    """Fewer than `asked` where bins were empty: no other bin takes their share."""
    available: int
    """Elites of the run; in a baseline, random samples."""
    below_min_objective: int
    """Of `available`, those left out because their objective is too low."""
    outside_bins: int
    """Of the rest of `available`, those that no bin holds."""
    bins: tuple[BinBalance, ...]
    empty_bins: tuple[str, ...]
    written: int = 0
    """Images that this call wrote; the others existed already. Not in balance.json."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = dataclasses.asdict(self)
        for bin in values["bins"]:
            if bin["test"] is None:
                del bin["test"]
        return values

    def __str__(self) -> str:
        """For people: images, copies among them, and bins that lack some."""
        done = f"{self.got} images, {self.written} of them new"
        if not self.written:
            done = f"All {self.got} images were there already, nothing changed"
        if copies := sum(bin.got - bin.distinct for bin in self.bins):
            done += f"; {self.got - copies} are different, the others are copies (`latent_row`)"
        if tested := [bin for bin in self.bins if bin.test is not None]:
            done += f"; {sum(bin.test or 0 for bin in tested)} are in `test`"
            if lacking := [bin.name for bin in tested if bin.got and not bin.test]:
                done += f", none of them of these bins: {', '.join(lacking)}"
        if self.empty_bins:
            done += f"; {self.asked} were asked for, but these bins are empty: "
            done += ", ".join(self.empty_bins)
        if short := [bin for bin in self.bins if bin.asked and 0 < bin.got < bin.asked]:
            done += f"; {self.asked} were asked for, but these bins have too few elites: "
            done += ", ".join(f"{bin.name} ({bin.got} of {bin.asked})" for bin in short)
        return f"{done}."


def count_balance(
    bins: Sequence[BinConfig],
    count: int,
    asked: Sequence[int | None],
    available: np.ndarray,
    table: ImageTable,
    *,
    below: int,
) -> Balance:
    """Counts what a dataset will hold.

    Args:
        count: images asked for.
        asked: images that each bin is asked for; None in a baseline.
        available: bin of each elite or random sample, [n], -1 for none.
        below: how many of `available` were left out because their objective is too low.
    """
    counted = tuple(
        BinBalance(
            name=bin.name,
            label=bin.label,
            asked=asked[number],
            got=int((table.bin == number).sum()),
            available=int((available == number).sum()),
            distinct=len(np.unique(table.latent_row[table.bin == number])),
            test=None if table.part is None else int(table.part[table.bin == number].sum()),
        )
        for number, bin in enumerate(bins)
    )
    return Balance(
        asked=count,
        got=len(table),
        available=len(available),
        below_min_objective=below,
        outside_bins=int((available < 0).sum()) - below,
        bins=counted,
        empty_bins=tuple(bin.name for bin in counted if not bin.available),
    )


def read_balance(out: Path) -> Balance:
    """The balance of a finished dataset.

    Raises:
        QDGSError: its balance.json is damaged.
    """
    path = out / BALANCE
    try:
        with files.open_regular(path, MAX_BYTES) as file:
            return pydantic.TypeAdapter(Balance).validate_json(file.read())
    except (OSError, ValueError) as error:  # a ValidationError is a ValueError
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise QDGSError(f"{path} is damaged ({reason}): delete it, and export again.") from None
