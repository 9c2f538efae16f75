"""Fetch a file over https: it ends up whole or not at all. No torch here.

The hash decides whether a file is the right one, so nothing is trusted before it is checked.
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

from segtrain.errors import DataError, DiskError, UserError, words_of
from segtrain.logs.progress import Progress

CHUNK_BYTES = 1 << 18  # read at once; larger ones do not copy faster, and progress stays smooth
TIMEOUT_SECONDS = 30.0  # without a byte before a server counts as gone; busy ones pause for some


def download(
    url: str, target: Path, sha256: str, size: int | None = None, progress: bool = True
) -> Path:
    """Fetch the file behind `url` (https) as `target`; one that is there already is only checked.

    An interrupted download stays as `target`.part, and the next call goes on with it where the
    server can. `sha256` and `size` (bytes) are what the file must have.
    Errors: UserError where the network fails, DataError for the wrong file, DiskError.
    """
    if target.exists():
        check(target, sha256, progress)
        return target
    part = target.with_name(f"{target.name}.part")
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    _receive(url, part, size, progress)
    actual = digest(part, "sha256", progress)
    if actual != sha256:
        part.unlink()
        raise DataError(
            f"{url}: its sha256 is {actual}, but {sha256} is expected; the part is removed. "
            "Try again; if it stays like this, the file on the server is another one"
        )
    with writing(target):
        part.replace(target)
    return target


def check(path: Path, expected: str, progress: bool = True) -> None:
    """Raise DataError unless the file has the digest `expected`.

    That is a sha256 of 64 hex digits, or an md5 of 32 where no other is known.
    """
    name = "md5" if len(expected) == 32 else "sha256"
    actual = digest(path, name, progress)
    if actual != expected:
        raise DataError(
            f"{path}: its {name} is {actual}, but {expected} is expected; "
            "remove it and fetch it again"
        )


def digest(path: Path, name: str = "sha256", progress: bool = True) -> str:
    """Return the hash `name` of a file in hex digits. Errors: DataError where it cannot be read."""
    state = hashlib.new(name, usedforsecurity=False)
    try:
        with (
            path.open("rb") as file,
            Progress(
                path.stat().st_size, f"checking {path.name}", enabled=progress, unit="B"
            ) as meter,
        ):
            while chunk := file.read(CHUNK_BYTES):
                state.update(chunk)
                meter.add(len(chunk))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return state.hexdigest()


class _OnlyHttps(HTTPRedirectHandler):
    """Follow redirects to https only."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        """Refuse a redirect to anything but https, else do as usual."""
        _refuse_http(newurl, f"{req.full_url}: redirects to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_http(url: str, where: str) -> None:
    if urlsplit(url).scheme.lower() != "https":
        raise UserError(
            f"{where}: not https, so anybody on the way could change the file; it is not fetched"
        )


def _receive(url: str, part: Path, size: int | None, progress: bool) -> None:
    """Fill `part` up to the whole file. Errors: UserError, DataError, DiskError."""
    present = part.stat().st_size if part.exists() else 0
    if present and present == size:
        return
    if size is not None and present > size:
        present = 0  # more than the whole file: what is there belongs to another one
    response, start = _open(url, present, part)
    with response:
        left = response.headers.get("Content-Length")
        total = start + int(left) if left and left.isdecimal() else size
        if size is not None and total != size:
            raise DataError(
                f"{url}: has {total:,} bytes, but {size:,} are expected; it is another file now"
            )
        if total is not None:
            room(part.parent, total - max(start, present))
        with Progress(total, part.name.removesuffix(".part"), progress, "B", start) as meter:
            done = _stream(url, response, part, start, total, meter)
    if total is not None and done < total:
        raise _lost(url, part, done, total, "the server closed it")


def _open(url: str, offset: int, part: Path) -> tuple[HTTPResponse, int]:
    """Ask for the file from `offset` on; return the response and the offset that it starts at.

    That is 0 where the server does not resume.
    """
    _refuse_http(url, url)
    headers = {"User-Agent": "segtrain"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    opener = build_opener(HTTPSHandler(context=ssl.create_default_context()), _OnlyHttps())
    try:
        response = opener.open(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        with error:
            if offset and error.code == 416:  # the part is no beginning of this file
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
    if response.status != 206 or not offset:
        return response, 0
    if re.match(rf"bytes {offset}-", response.headers.get("Content-Range", "")):
        return response, offset
    response.close()
    return _open(url, 0, part)


def _stream(
    url: str, response: HTTPResponse, part: Path, start: int, total: int | None, meter: Progress
) -> int:
    """Append everything that comes to `part` at offset `start`; return the bytes in it then."""
    done = start
    with writing(part):
        file = part.open("ab" if start else "wb")
    with closing(file, part):
        while True:
            try:
                chunk = response.read(CHUNK_BYTES)
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
    received = f"{done:,} of {total:,} bytes" if total is not None else f"{done:,} bytes"
    return UserError(
        f"{url}: the connection was lost after {received} ({reason}); "
        f"they are kept in {part}, and the same command goes on there"
    )


def _by_hand(part: Path) -> str:
    path = part.with_suffix("")
    return f". Or fetch it in another way, put it at {path} and run the same command again"


def text_of(error: object) -> str:
    """Return the words of an error; of one of the system only the reason, without its number."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return words_of(said)


def room(folder: Path, bytes_needed: int) -> None:
    """Raise DiskError unless `folder` has so many bytes free."""
    free = shutil.disk_usage(folder).free
    if bytes_needed > free:
        raise DiskError(
            f"{folder}: {bytes_needed:,} bytes are needed, but {free:,} are free; make room there"
        )


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn an OSError of writing `path` into a DiskError that tells the free bytes."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
        raise DiskError(
            f"{path}: cannot be written ({text_of(error)}); free bytes: {free:,}"
        ) from error


@contextmanager
def closing(file: IO[bytes], path: Path) -> Generator[None]:
    """Close `file` at the end; a disk that refuses its last bytes is a DiskError too."""
    try:
        yield
    finally:
        with writing(path):
            file.close()
