"""Fetches a file over https and unpacks an archive; both end up whole or not at all. No torch here.

The hash decides whether a file is the right one, so an archive is not trusted before it is checked. Unpacking makes
folders and new files only, inside one folder of its own: links become copies or are refused, nothing is overwritten.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from segtrain.errors import DataError, DiskError, UserError
from segtrain.logs.progress import Meter

CHUNK = 1 << 18  # bytes
TIMEOUT = 30.0  # seconds without a byte before a server counts as gone


def download(
    url: str, target: Path, sha256: str, size: int | None = None, progress: bool = True
) -> Path:
    """The file behind `url` (https) as `target`; one that is there already is only checked.

    An interrupted download stays as `target`.part, and the next call goes on with it where the server can. `sha256` and
    `size` (bytes) are what the file must have. Errors: UserError where the network fails, DataError for the wrong
    file, DiskError.
    """
    if target.exists():
        check(target, sha256, progress)
        return target
    part = target.with_name(f"{target.name}.part")
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    _receive(url, part, size, progress)
    found = digest(part, "sha256", progress)
    if found != sha256:
        part.unlink()
        way = "the part is removed. Try again; if it stays like this, the file on the server is another one"
        raise DataError(f"{url}: its sha256 is {found}, but {sha256} is expected; {way}")
    with writing(target):
        part.replace(target)
    return target


def check(path: Path, expected: str, progress: bool = True) -> None:
    """DataError unless the file has the digest `expected`: sha256 (64 hex digits), or md5 (32) where no other is known."""
    name = "md5" if len(expected) == 32 else "sha256"
    found = digest(path, name, progress)
    if found != expected:
        raise DataError(
            f"{path}: its {name} is {found}, but {expected} is expected; remove it and fetch it again"
        )


def digest(path: Path, name: str = "sha256", progress: bool = True) -> str:
    """The hash `name` of a file in hex digits. Errors: DataError where it cannot be read."""
    state = hashlib.new(name, usedforsecurity=False)
    try:
        with (
            path.open("rb") as file,
            Meter(f"checking {path.name}", path.stat().st_size, enabled=progress) as meter,
        ):
            while chunk := file.read(CHUNK):
                state.update(chunk)
                meter.add(len(chunk))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return state.hexdigest()


class _OnlyHttps(HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        _refuse_http(newurl, f"{req.full_url}: redirects to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_http(url: str, where: str) -> None:
    if urlsplit(url).scheme.lower() != "https":
        raise UserError(
            f"{where}: not https, so anybody on the way could change the file; it is not fetched"
        )


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
            raise DataError(
                f"{url}: has {total:,} bytes, but {size:,} are expected; it is another file now"
            )
        if total is not None:
            room(part.parent, total - max(start, have))
        with Meter(part.name.removesuffix(".part"), total, start, progress) as meter:
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
            raise UserError(
                f"{url}: the server answers {error.code} {error.reason}{_by_hand(part)}"
            ) from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        untrusted = isinstance(reason, ssl.SSLCertVerificationError)
        hint = "; name a proxy's own certificate with SSL_CERT_FILE=FILE" if untrusted else ""
        raise UserError(
            f"{url}: cannot be reached ({text_of(reason)}){hint}{_by_hand(part)}"
        ) from error
    if response.status != 206 or not have:
        return response, 0
    if re.match(rf"bytes {have}-", response.headers.get("Content-Range", "")):
        return response, have
    response.close()
    return _open(url, 0, part)


def _stream(
    url: str, response: HTTPResponse, part: Path, start: int, total: int | None, meter: Meter
) -> int:
    """Bytes in `part` after everything that came was appended at `start`."""
    done = start
    with writing(part):
        file = part.open("ab" if start else "wb")
    with closing(file, part):
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, HTTPException) as error:
                raise _lost(url, part, done, total, text_of(error)) from error
            if not chunk:
                return done
            with writing(part):
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


def text_of(error: object) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return " ".join(str(said).split()) or type(error).__name__


def room(folder: Path, need: int) -> None:
    """DiskError unless `folder` has `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DiskError(
            f"{folder}: {need:,} bytes are needed, but {free:,} are free; make room there"
        )


@contextmanager
def writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
        raise DiskError(
            f"{path}: cannot be written ({text_of(error)}); free bytes: {free:,}"
        ) from error


@contextmanager
def closing(file: IO[bytes], path: Path) -> Generator[None]:
    """Closes `file`; bytes that do not get to the disk only then are a DiskError too."""
    try:
        yield
    finally:
        with writing(path):
            file.close()
