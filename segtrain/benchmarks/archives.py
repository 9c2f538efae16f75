"""The published files of a benchmark: which they are, and how they get below a data set's root.

Only what its owners publish for everybody is fetched; for the rest it is said what to fetch, from
where, and where to put it. What is there already is never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segtrain.benchmarks import download, unpack
from segtrain.errors import DataError, DiskError

DOWNLOADS = "downloads"  # below the data set's root: archives, fetched or put there by hand
GB = 10**9


@dataclass(frozen=True)
class Archive:
    """One published file: where it is, its hash, and the folder below the root that it becomes.

    `holds` maps paths below `folder` to their number of entries in the official release; they tell
    whether the archive has been unpacked.
    """

    name: str
    url: str  # fetched from there; with `by_hand` the page or address to fetch it from
    digest: str  # sha256, or md5 where nothing better is published; "" where nothing is
    limit: int  # bytes that it may unpack to, with a margin of about two
    folder: str  # below root
    holds: Mapping[str, int] = field(default_factory=dict)
    inside: str = ""  # the folder of the archive that becomes `folder`
    size: int | None = None  # bytes
    by_hand: str = ""  # why it is not fetched here

    @property
    def digest_name(self) -> str:
        """Return "md5" or "sha256", which have 32 and 64 hex digits."""
        return "md5" if len(self.digest) == 32 else "sha256"


def obtain(
    archives: Sequence[Archive], root: Path, progress: bool, downloads: Path | None = None
) -> bool:
    """Fetch, check and unpack what is not below `root` yet; return whether all of it is there then.

    Archives lie in `downloads`, which is a folder below `root` unless it is given.
    Errors: UserError where the network fails, DataError for wrong files, DiskError.
    """
    downloads = downloads or root / DOWNLOADS
    wanted = [archive for archive in archives if not _report_present(archive, root)]
    missing = [
        archive for archive in wanted if archive.by_hand and not (downloads / archive.name).exists()
    ]
    for archive in missing:  # said first: what follows may take hours, or fail
        tell(archive, downloads)
    to_fetch = [archive for archive in wanted if not archive.by_hand]
    if to_fetch:
        make_folder(downloads)
        download.room(downloads, sum(_bytes_needed(archive, downloads) for archive in to_fetch))
    for archive in wanted:
        if archive not in missing:
            _unpack_checked(archive, downloads / archive.name, root, progress)
    return not missing


def obtain_or_show_layout(
    archives: Sequence[Archive],
    root: Path,
    layout: Sequence[str],
    progress: bool,
    downloads: Path | None = None,
) -> bool:
    """Do as `obtain`, and print how the folder must look where something is missing."""
    complete = obtain(archives, root, progress, downloads)
    if not complete:
        paths = [Path(archive.folder, path) for archive in archives for path in archive.holds]
        missing = ", ".join(str(path) for path in paths if not (root / path).exists())
        print(f"\n{root} must look like this (folders that you unpack there yourself do as well):")
        print("\n".join(f"  {line}" for line in layout))
        print(f"missing now: {missing}")
    return complete


def tell(archive: Archive, downloads: Path) -> None:
    """Print what to fetch by hand, from where, and where to put it."""
    hashed = f" ({archive.digest_name} {archive.digest})" if archive.digest else ""
    print(
        f"{archive.name}{hashed}: {archive.by_hand}, so it is not fetched here. "
        f"Get it from {archive.url}, put it at {downloads / archive.name} and run the same command "
        f"again: it is {'checked and ' if hashed else ''}unpacked."
    )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Errors: DiskError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"{folder}: cannot be made ({error.strerror}); set dataset.root to another folder"
        ) from error


def _unpack_checked(archive: Archive, file: Path, root: Path, progress: bool) -> None:
    """Fetch one archive where that is allowed, check its hash and unpack it below `root`."""
    if not archive.by_hand:
        print(f"{file}: from {archive.url}", flush=True)
        download.download(archive.url, file, archive.digest, archive.size, progress)
    elif archive.digest:
        download.check(file, archive.digest, progress)
    unpack.unpack(file, root / archive.folder, archive.limit, archive.inside, progress)
    if not _report_present(archive, root):
        expected = ", ".join(archive.holds)
        raise DataError(f"{file}: does not hold {expected}; is it another archive of that name?")
    print(f"{file}: unpacked, no longer needed")


def _report_present(archive: Archive, root: Path) -> bool:
    """Return whether everything of the archive is below `root`, and print what is there.

    A folder with fewer entries than the release counts as present: a subset may be kept on purpose.
    """
    paths = {root / archive.folder / path: official for path, official in archive.holds.items()}
    if not all(path.exists() for path in paths):
        return False
    for path, official in paths.items():
        if not path.is_dir():
            print(f"{path}: there")
            continue
        count = sum(1 for _ in os.scandir(path))
        said = f"{path}: there, {count:,} entries"
        if count < official:
            said += f"; the release has {official:,}"
            said += "" if archive.by_hand else ", remove the folder to have it made whole"
        print(said)
    return True


def _bytes_needed(archive: Archive, downloads: Path) -> int:
    """Return the bytes still to be written: what is not fetched yet, and as much again unpacked.

    An archive whose size nobody published counts as empty.
    """
    size = archive.size or 0
    file = downloads / archive.name
    part = file.with_name(f"{file.name}.part")
    fetched = size if file.exists() else part.stat().st_size if part.exists() else 0
    return 2 * size - min(fetched, size)
