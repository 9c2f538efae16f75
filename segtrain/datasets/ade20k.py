"""ADE20K's scene parsing benchmark (Zhou et al., CVPR 2017): 150 classes, 20,210 train, 2,000 val.

Maps hold 1 to 150; 0 is none of these classes and ignored. PSPNet's and EncNet's ablations stand on
it.
"""

from __future__ import annotations

from pathlib import Path

from segtrain.data.file_sets import MaskSet
from segtrain.data.images import shown
from segtrain.data.listing import check_split, find_root, list_files, subfolders
from segtrain.data.nearest import near_folder
from segtrain.data.pairing import images_listed, pair_all
from segtrain.errors import DataError
from segtrain.structures.labels import LabelMap

FOLDER = "ADEChallengeData2016"  # what the archive unpacks to


class ADE20K(MaskSet):
    """`root/images/<split>/*.jpg` with `root/annotations/<split>/*.png` of the same names.

    `root` is ADEChallengeData2016 or the folder that holds it; splits are `training` and
    `validation`, and any other folder of images, such as the test images, has no labels.
    """

    def __init__(self, root: str, split: str) -> None:
        base = _folder(find_root(root))
        problems: list[str] = []
        check_split(split, subfolders(base / "images"), shown(base / "images"))
        photos = base / "images" / split
        maps = base / "annotations" / split
        labelled = maps.is_dir()
        if labelled:
            files = pair_all(photos, maps, problems)
        else:
            files = images_listed(list(list_files(photos, problems)), photos, problems)
        super().__init__(LabelMap.load("ade20k"), files, problems, labelled)


def _folder(base: Path) -> Path:
    """Return the folder with `images` and `annotations`. Errors: DataError."""
    for folder in (base, base / FOLDER):
        if (folder / "images").is_dir():
            return folder
    near = near_folder(base / "images")
    way = f"; {near}" if near else ""
    raise DataError(f"{shown(base)}: holds no images/; unpack {FOLDER}.zip there{way}")
