"""The images that a COCO file lists, as files of a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from segtrain.data.coco_files import Listings
from segtrain.data.coco_index import CocoIndex
from segtrain.data.images import read_image, shown, turned_hint
from segtrain.data.listing import subfolders
from segtrain.errors import DataError, UserError


class Photos:
    """The image files that an annotation file lists.

    `folder` None: unknown, which matters only where one is read. `optional`: so does a folder that
    is not there. `present` fills `notes`.
    """

    def __init__(self, index: CocoIndex, folder: Path | None, optional: bool = False) -> None:
        self.index = index
        self.folder = folder
        self.optional = optional
        self.notes: list[str] = []
        self._found: dict[int, Path] = {}  # of images that lie elsewhere than the file says

    def path(self, image: int) -> Path:
        """Return where the file lies. Errors: UserError without a folder."""
        if self.folder is None:
            raise UserError(
                f"{shown(self.index.path)}: where are its images? Set dataset.images=FOLDER"
            )
        return self._found.get(image) or self.folder / self.index.name(image)

    def read(self, image: int) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB. Errors: DataError where the size is not as annotated."""
        path = self.path(image)
        height, width = self.index.size(image)
        try:
            pixels = read_image(path)
        except DataError:
            if self.folder is not None and not self.folder.is_dir():
                raise DataError(self._no_folder()) from None
            raise
        if pixels.shape[:2] != (height, width):
            annotated = f"{shown(self.index.path)} says {width} x {height}"
            raise DataError(
                f"{shown(path)}: has {pixels.shape[1]} x {pixels.shape[0]} pixels, but {annotated}"
                f"{turned_hint(path, (height, width))}"
            )
        return pixels

    def present(self, images: np.ndarray, problems: list[str]) -> np.ndarray:
        """Return those of `images` whose file is there.

        Each other one is noted; where there is no folder, or none of them in it, that is noted
        once.
        """
        if self.folder is None or (self.optional and not self.folder.is_dir()):
            return images
        if not self.folder.is_dir():
            problems.append(self._no_folder())
            return images[:0]
        listings = Listings(self.folder)
        exact = np.array([listings.has(self.path(image)) for image in images.tolist()], bool)
        if exact.all():
            return images
        found = self._elsewhere(listings, images[exact], images[~exact])
        self._found |= found
        is_there = exact | np.isin(images, list(found))
        missing = images[~is_there].tolist()
        problems += self._missing(listings, missing, nothing=len(missing) == len(images))
        return images[is_there]

    def _elsewhere(
        self, listings: Listings, exact: np.ndarray, others: np.ndarray
    ) -> dict[int, Path]:
        """Return the files of those images whose name has only other folders before it.

        That is noted; a name on Windows is nothing to note. A file that two images lay claim to is
        nobody's.
        """
        found = {image: listings.find(self.index.name(image)) for image in others.tolist()}
        claims = Counter(self.path(image) for image in exact.tolist())
        claims.update(path for path in found.values() if path is not None)
        kept = {
            image: path for image, path in found.items() if path is not None and claims[path] == 1
        }
        noted = [
            image
            for image, path in kept.items()
            if path != listings.folder / self.index.name(image).replace("\\", "/")
        ]
        if noted:
            self.notes.append(
                f"{len(noted):,} of {len(exact) + len(others):,} names in {shown(self.index.path)} "
                f"have other folders or capitals than the files, which are read all the same "
                f"({self.index.name(noted[0])}: {shown(kept[noted[0]])})"
            )
        return kept

    def _missing(self, listings: Listings, images: list[int], nothing: bool) -> list[str]:
        """Return what to say of images that are not there; `nothing`: not one is there."""
        names = {image: self.index.name(image) for image in images}
        other = {image: listings.other_suffix(name) for image, name in names.items()}
        suffixed = {image: path for image, path in other.items() if path is not None}
        lines = []
        if suffixed:
            first, path = next(iter(suffixed.items()))
            lines.append(
                f"{shown(self.index.path)}: {len(suffixed):,} of its images are there only with "
                f"another suffix ({names[first]}: {shown(path)}); write the names of the files "
                "into `file_name`"
            )
        rest = [image for image in images if image not in suffixed]
        if nothing and len(rest) > 1:
            first = names[rest[0]]
            way = _way_out(listings.folder, first)
            return [
                *lines,
                f"{shown(listings.folder)}: has none of the {len(rest):,} images that "
                f"{shown(self.index.path)} lists, as `{first}`{way}",
            ]
        for image in rest:
            listed = f"image {self.index.id_of(image)} of {shown(self.index.path)}"
            near = listings.find(names[image])
            hint = f"; {shown(near)} fits other images too" if near else ""
            lines.append(f"{shown(self.path(image))}: listed, but not there ({listed}){hint}")
        return lines

    def _no_folder(self) -> str:
        return f"{shown(self.folder or '')}: no such folder of images"


def _way_out(folder: Path, name: str) -> str:
    """Return the folder beside or below in which an image lies, as a setting."""
    places = [folder.parent, *subfolders(folder).values(), *subfolders(folder.parent).values()]
    near = next((place for place in places if Listings(place).find(name)), None)
    return (
        "; is dataset.images= right?" if near is None else f"; dataset.images={shown(near)} has it"
    )
