"""Divide one folder into training and validation by the names of its images.

An image keeps its side when others are added: it depends on its own name alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from segtrain.data.listing import check_split
from segtrain.errors import UserError
from segtrain.structures.samples import Files


class Division(NamedTuple):
    """About `val_share` of the images are val; or fold number `fold` of `folds` is."""

    val_share: float | None = None
    folds: int | None = None
    fold: int = 0

    def __bool__(self) -> bool:
        return self.val_share is not None or self.folds is not None

    def __str__(self) -> str:
        if self.folds is None:
            return f"dataset.val_share={self.val_share}"
        return f"dataset.folds={self.folds} dataset.fold={self.fold}"

    def held_out(self, name: str) -> bool:
        """Tell whether an image is for validation. Errors: UserError for values without sense."""
        if self.val_share is not None and self.folds is not None:
            raise UserError("dataset.val_share, dataset.folds: leave one of them out")
        if self.val_share is not None:
            if not 0 < self.val_share < 1:
                raise UserError(f"{self}: lies between 0 and 1, e.g. 0.2")
            return _place(name) < self.val_share
        assert self.folds is not None
        if self.folds < 2 or not 0 <= self.fold < self.folds:
            raise UserError(f"{self}: at least 2 folds, counted from 0")
        return int(_place(name) * self.folds) == self.fold


def side_of(files: Mapping[str, Files], split: str, division: Division) -> dict[str, Files]:
    """Return the files of one side, `train` or `val`. Errors: UserError where it is empty."""
    check_split(split, ("train", "val"), str(division))
    side = {
        name: pair
        for name, pair in files.items()
        if division.held_out(_as_written(name, pair)) == (split == "val")
    }
    if files and not side:
        raise UserError(
            f"{division}: of {len(files)} images none is left for {split}; choose another"
        )
    return side


def _as_written(name: str, pair: Files) -> str:
    """Return the name of a sample with that of its image as it lies on the disk.

    Names of samples are in one form of Unicode; an image keeps the side that it had before.
    """
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{pair.image.stem}"


def _place(name: str) -> float:
    """Return where an image stands in [0, 1), by its name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) / 2**56
