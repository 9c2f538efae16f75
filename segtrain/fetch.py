"""Fetches a file over https and unpacks an archive; both end up whole or not at all. No torch here.

The hash decides whether a file is the right one, so an archive is not trusted before it is checked. Unpacking makes
folders and new files only, inside one folder of its own: links become copies or are refused, nothing is overwritten.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import shutil
import ssl
import stat
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PureWindowsPath
from typing import IO, Any, NamedTuple, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from tqdm import tqdm

from segtrain.errors import DataError, DiskError, SegtrainError, UserError

CHUNK = 1 << 18  # bytes
TIMEOUT = 30.0  # seconds without a byte before a server counts as gone
PLAIN_INTERVAL = 15.0  # seconds between progress lines where stderr is a file
PLAIN = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
MAX_MEMBERS = 1_000_000  # files of one archive; COCO train2017 has 118,287


def download(url: str, target: Path, sha256: str, size: int | None = None, progress: bool = True) -> Path:
    """The file behind `url` (https) as `target`; one that is there already is only checked.

    An interrupted download stays as `target`.part, and the next call goes on with it where the server can. `sha256` and
    `size` (bytes) are what the file must have. Errors: UserError where the network fails, DataError for the wrong
    file, DiskError.
    """
    if target.exists():
        check(target, sha256, progress)
        return target
    part = target.with_name(f"{target.name}.part")
    with _writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    _receive(url, part, size, progress)
    found = digest(part, "sha256", progress)
    if found != sha256:
        part.unlink()
        way = "the part is removed. Try again; if it stays like this, the file on the server is another one"
        raise DataError(f"{url}: its sha256 is {found}, but {sha256} is expected; {way}")
    with _writing(target):
        part.replace(target)
    return target


def check(path: Path, expected: str, progress: bool = True) -> None:
    """DataError unless the file has the digest `expected`: sha256 (64 hex digits), or md5 (32) where no other is known."""
    name = "md5" if len(expected) == 32 else "sha256"
    found = digest(path, name, progress)
    if found != expected:
        raise DataError(f"{path}: its {name} is {found}, but {expected} is expected; remove it and fetch it again")


def digest(path: Path, name: str = "sha256", progress: bool = True) -> str:
    """The hash `name` of a file in hex digits. Errors: DataError where it cannot be read."""
    state = hashlib.new(name, usedforsecurity=False)
    try:
        with path.open("rb") as file, _Meter(f"checking {path.name}", path.stat().st_size, enabled=progress) as meter:
            while chunk := file.read(CHUNK):
                state.update(chunk)
                meter.add(len(chunk))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return state.hexdigest()


# ---------------------------------------------------------------------- network


class _OnlyHttps(HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        _refuse_http(newurl, f"{req.full_url}: redirects to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_http(url: str, where: str) -> None:
    if urlsplit(url).scheme.lower() != "https":
        raise UserError(f"{where}: not https, so anybody on the way could change the file; it is not fetched")


def _receive(url: str, part: Path, size: int | None, progress: bool) -> None:
    """Fill `part` up to the whole file. Errors: UserError, DataError, DiskError."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == size:
        return
    have = have if size is None or have < size else 0
    response, start = _open(url, have, part)
    with response:
        left = response.headers.get("Content-Length")
        total = start + int(left) if left and left.isdecimal() else size
        if size is not None and total != size:
            raise DataError(f"{url}: has {total:,} bytes, but {size:,} are expected; it is another file now")
        if total is not None:
            room(part.parent, total - max(start, have))
        with _Meter(part.name.removesuffix(".part"), total, start, progress) as meter:
            done = _stream(url, response, part, start, total, meter)
    if total is not None and done < total:
        raise _lost(url, part, done, total, "the server closed it")


def _open(url: str, have: int, part: Path) -> tuple[HTTPResponse, int]:
    """(response, offset it starts at): `have` where the server resumes, else 0."""
    _refuse_http(url, url)
    headers = {"User-Agent": "segtrain"} | ({"Range": f"bytes={have}-"} if have else {})
    opener = build_opener(HTTPSHandler(context=ssl.create_default_context()), _OnlyHttps())
    try:
        response = opener.open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            if have and error.code == 416:  # the part is no beginning of this file
                return _open(url, 0, part)
            raise UserError(f"{url}: the server answers {error.code} {error.reason}{_by_hand(part)}") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        untrusted = isinstance(reason, ssl.SSLCertVerificationError)
        hint = "; name a proxy's own certificate with SSL_CERT_FILE=FILE" if untrusted else ""
        raise UserError(f"{url}: cannot be reached ({_text(reason)}){hint}{_by_hand(part)}") from error
    if response.status != 206 or not have:
        return response, 0
    if re.match(rf"bytes {have}-", response.headers.get("Content-Range", "")):
        return response, have
    response.close()
    return _open(url, 0, part)


def _stream(url: str, response: HTTPResponse, part: Path, start: int, total: int | None, meter: _Meter) -> int:
    """Bytes in `part` after everything that came was appended at `start`."""
    done = start
    with _writing(part):
        file = part.open("ab" if start else "wb")
    with _closing(file, part):
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, HTTPException) as error:
                raise _lost(url, part, done, total, _text(error)) from error
            if not chunk:
                return done
            with _writing(part):
                file.write(chunk)
            done += len(chunk)
            meter.add(len(chunk))
            if total is not None and done > total:
                raise DataError(f"{url}: sends more than the {total:,} bytes that are expected")


def _lost(url: str, part: Path, done: int, total: int | None, reason: str) -> UserError:
    of = f"{done:,} of {total:,} bytes" if total is not None else f"{done:,} bytes"
    way = f"they are kept in {part}, and the same command goes on there"
    return UserError(f"{url}: the connection was lost after {of} ({reason}); {way}")


def _by_hand(part: Path) -> str:
    return f". Or fetch it in another way, put it at {part.with_suffix('')} and run the same command again"


def _text(error: object) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return " ".join(str(said).split()) or type(error).__name__


# ---------------------------------------------------------------------- archives


class _Entry(NamedTuple):
    """One member as the archive declares it."""

    name: str
    size: int  # bytes; 0 for a link
    kind: str  # "file", "folder", "link" to a file of the same archive; anything else is refused
    open: Callable[[], IO[bytes] | None]


Checked = dict[tuple[str, ...], _Entry]  # files and links by the parts of their path


def unpack(archive: Path, target: Path, limit_bytes: int, inside: str = "", progress: bool = True) -> Path:
    """The files of a tar (packed or not) or zip below its folder `inside` become the folder `target`.

    They are written to a folder beside it, which is then renamed. A `target` that is there keeps its files and gets
    those that it lacks. Errors: DataError for a damaged or hostile archive or one that unpacks to more than
    `limit_bytes`, DiskError; then nothing is left behind.
    """
    staging = (target if target.is_dir() else target.parent) / f".unpacking-{target.name}"
    try:
        with _entries(archive, target) as entries:
            files = _below(_checked(entries, limit_bytes), tuple(PureWindowsPath(inside).parts))
            if not files:
                raise ValueError(f"holds no file{f' in a folder {inside}' if inside else ''}")
            total = sum(entry.size for entry in files.values())
            with _writing(staging):
                shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
                staging.mkdir(parents=True)
            room(staging, total)
            with _Meter(f"unpacking {archive.name}", total, enabled=progress) as meter:
                _write_all(files, staging, limit_bytes, meter)
        with _writing(target):
            _place(staging, target)
    except SegtrainError:
        raise
    except Exception as error:  # readers of damaged archives raise nearly anything
        raise DataError(f"{archive}: cannot be unpacked, nothing was written: {_text(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


@contextmanager
def _entries(archive: Path, target: Path) -> Generator[Iterator[_Entry]]:
    """The members in the archive's order; a tar may end in a zip, so the first bytes decide. Errors: anything."""
    if not stat.S_ISREG(archive.stat().st_mode):
        raise ValueError("is a folder or a device, not an archive")
    with archive.open("rb") as file:
        packed_as_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
    if packed_as_zip:
        with zipfile.ZipFile(archive) as packed:
            yield (_Entry(i.filename, i.file_size, _zip_kind(i), partial(packed.open, i)) for i in packed.infolist())
    else:
        with tarfile.open(archive) as tar:
            yield _tar_entries(tar, str(target))


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    return "folder" if info.is_dir() else "file"


def _tar_entries(tar: tarfile.TarFile, target: str) -> Iterator[_Entry]:
    for info in tar:
        yield _Entry(info.name, info.size, _tar_kind(info), partial(_tar_file, tar, info, target))
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)  # tarfile ends silently at a damaged header; a whole archive ends in zeros
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError("is truncated or damaged")


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        start = posixpath.dirname(info.name) if info.issym() else ""
        leads = posixpath.normpath(posixpath.join(start, info.linkname))
        return "a link leading out of the archive" if leads.startswith(("/", "..")) else "link"
    return "file" if info.isreg() else "folder" if info.isdir() else "a device"


def _tar_file(tar: tarfile.TarFile, info: tarfile.TarInfo, target: str) -> IO[bytes] | None:
    """Content of a member, or of the member that a link leads to; the library's filter (Python 3.11.4) has the last word."""
    return tar.extractfile(getattr(tarfile, "data_filter", lambda info, target: info)(info, target))


def _checked(entries: Iterator[_Entry], limit_bytes: int) -> Checked:
    """Files by the parts of their path. Nothing is written before all of them have passed. Errors: ValueError."""
    files: Checked = {}
    total = 0
    for number, entry in enumerate(entries, 1):
        path = PureWindowsPath(entry.name)  # takes both separators and drive letters, whatever system packed it
        if path.anchor or ".." in path.parts or any(ord(letter) < 32 for letter in entry.name):
            raise ValueError(f"its member {entry.name!r} would leave the folder, or has no plain name")
        if entry.kind not in ("file", "folder", "link"):
            raise ValueError(f"its member {entry.name!r} is {entry.kind}")
        total += entry.size
        if total > limit_bytes or number > MAX_MEMBERS:
            raise ValueError(f"unpacks to more than {limit_bytes:,} bytes or {MAX_MEMBERS:,} files")
        if entry.kind == "folder":
            continue
        if path.parts in files or not path.parts:
            raise ValueError(f"its member {entry.name!r} is there twice")
        files[path.parts] = entry
    for parts in files:
        if any(parts[:depth] in files for depth in range(1, len(parts))):
            raise ValueError(f"its member {'/'.join(parts)!r} lies below a file")
    return files


def _below(files: Checked, folder: tuple[str, ...]) -> Checked:
    """The files below `folder`, by their path from there."""
    return {parts[len(folder) :]: e for parts, e in files.items() if parts[: len(folder)] == folder != parts}


def _write_all(files: Checked, staging: Path, limit_bytes: int, meter: _Meter) -> None:
    """Copy every file into `staging`, counting what really comes. Errors: DiskError, or anything from the archive."""
    written = 0
    for parts, entry in files.items():
        path, begin = staging.joinpath(*parts), written
        source = entry.open()
        if source is None:
            raise ValueError(f"its member {entry.name!r} is a link to no file")
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        with source, _closing(file, path):
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > limit_bytes:
                    raise ValueError(f"unpacks to more than {limit_bytes:,} bytes")
                with _writing(path):
                    file.write(chunk)
                meter.add(len(chunk))
        if entry.kind == "file" and written - begin != entry.size:
            raise ValueError(f"its member {entry.name!r} is truncated")


def _place(staging: Path, target: Path) -> None:
    """Rename the folder, or move into an existing one the files that it lacks."""
    if not target.is_dir():
        staging.rename(target)
        return
    for folder, _, names in os.walk(staging):
        own = target / Path(folder).relative_to(staging)
        own.mkdir(exist_ok=True)
        for name in names:
            if not os.path.lexists(own / name):
                Path(folder, name).rename(own / name)


# ---------------------------------------------------------------------- disk, progress


def room(folder: Path, need: int) -> None:
    """DiskError unless `folder` has `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DiskError(f"{folder}: {need:,} bytes are needed, but {free:,} are free; make room there")


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
        raise DiskError(f"{path}: cannot be written ({_text(error)}); free bytes: {free:,}") from error


@contextmanager
def _closing(file: IO[bytes], path: Path) -> Generator[None]:
    """Closes `file`; bytes that do not get to the disk only then are a DiskError too."""
    try:
        yield
    finally:
        with _writing(path):
            file.close()


class _Meter:
    """Bytes done, rate and time left: a bar on a terminal, a plain line every 15 s in a file."""

    def __init__(self, name: str, total: int | None, start: int = 0, enabled: bool = True) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=start, desc=name, unit="B", unit_scale=True, file=sys.stderr, leave=False,
            dynamic_ncols=True, disable=not enabled or not terminal,
        )  # fmt: skip
        self._plain = enabled and not terminal
        self._name, self._total, self._start, self._done = name, total, start, start
        self._begin = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._bar.close()

    def add(self, count: int) -> None:
        """`count` more bytes are done."""
        self._done += count
        now = time.monotonic()
        with suppress(OSError):
            self._bar.update(count)
            if self._plain and now - self._shown >= PLAIN_INTERVAL:
                self._shown = now
                line = tqdm.format_meter(
                    self._done, self._total, now - self._begin, initial=self._start, unit="B", unit_scale=True,
                    prefix=self._name, bar_format=PLAIN,
                )  # fmt: skip
                print(line, file=sys.stderr, flush=True)
