"""Downloads from a local https server that misbehaves as servers do; archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import shutil
import ssl
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from processes import ENVIRONMENT, Signalled

from segtrain.benchmarks import download as download_module
from segtrain.benchmarks import unpack as unpack_module
from segtrain.benchmarks.download import check, digest, download
from segtrain.benchmarks.unpack import unpack
from segtrain.errors import DataError, DiskError, SegtrainError, UserError
from segtrain.logs import progress as progress_module

CONTENT = random.Random(0).randbytes(1_000_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MB = 10**6


# ---------------------------------------------------------------------- download


class Archives:
    """What the server has for /packed and /trickles."""

    content = b""


class Handler(BaseHTTPRequestHandler):
    """/NAME behaves as its method `NAME` says; every request is noted as (path, Range)."""

    requests: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers.get("Range")))
        getattr(self, self.path.strip("/").replace("-", "_"))()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def offset(self) -> int:
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0

    def reply(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def whole(self, upto: int | None = None) -> None:
        start = self.offset()
        span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        headers = {"Content_Length": len(CONTENT) - start} | (
            {"Content_Range": span} if start else {}
        )
        self.reply(206 if start else 200, CONTENT[start:upto], **headers)

    def cut(self) -> None:
        self.whole(upto=self.offset() + 400_000)

    def stalls(self) -> None:
        self.whole(upto=300_000)
        self.wfile.flush()
        time.sleep(0.6)

    def no_range(self) -> None:
        self.reply(200, CONTENT)

    def no_length(self) -> None:
        self.reply(200, CONTENT, Content_Length=None)

    def endless(self) -> None:
        self.reply(200, CONTENT + b"more", Content_Length=None)

    def shifted(self) -> None:
        if self.offset():
            self.reply(206, CONTENT[7:], Content_Range=f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.reply(200, CONTENT)

    def refuses_range(self) -> None:
        self.reply(416, Content_Range=f"bytes */{len(CONTENT)}") if self.offset() else self.reply(
            200, CONTENT
        )

    def packed(self) -> None:
        start = self.offset()
        content = Archives.content
        span = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.reply(206 if start else 200, content[start:], **(span if start else {}))

    def trickles(self) -> None:
        self.reply(200, Content_Length=len(Archives.content))
        for start in range(0, len(Archives.content), 20_000):
            self.wfile.write(Archives.content[start : start + 20_000])
            time.sleep(0.05)

    def missing(self) -> None:
        self.reply(404)

    def moved(self) -> None:
        self.reply(302, Location="/whole")

    def to_http(self) -> None:
        self.reply(302, Location=f"http://127.0.0.1:{self.server.server_port}/whole")

    def to_file(self) -> None:
        self.reply(302, Location="file:///etc/passwd")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) for 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificate of the test server")
    folder = tmp_path_factory.mktemp("tls")
    cert = folder / "cert.pem"
    key = folder / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 "
        "-nodes -days 2 -subj /CN=localhost"
    )
    command = [
        *command.split(),
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-out",
        str(cert),
        "-keyout",
        str(key),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def served(certificate: tuple[Path, Path]) -> Iterator[str]:
    """The address of the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda request, address: None  # clients hang up on purpose
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(served: str, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server, trusted; no request noted yet."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.requests.clear()
    return served


def test_a_download_is_the_file_and_leaves_no_part(server: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.bin"
    assert download(f"{server}/whole", target, SHA256, len(CONTENT)) == target
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == ["a.bin"]


def test_a_complete_file_is_not_fetched_again(server: str, tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(CONTENT)
    download(f"{server}/whole", target, SHA256)
    assert Handler.requests == []


def test_a_file_of_another_hash_is_neither_replaced_nor_removed(
    server: str, tmp_path: Path
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"mine")
    with pytest.raises(
        DataError, match=rf"a\.bin: its sha256 is 3fd3.*, but {SHA256} is expected; remove it"
    ):
        download(f"{server}/whole", target, SHA256)
    assert target.read_bytes() == b"mine"
    assert Handler.requests == []


@pytest.mark.row("R35")
def test_a_cut_download_goes_on_where_it_was(server: str, tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    part = tmp_path / "a.bin.part"
    for had in (400_000, 800_000):
        with pytest.raises(
            UserError, match=f"lost after {had:,} of 1,000,003 bytes .* same command goes on"
        ):
            download(f"{server}/cut", target, SHA256, len(CONTENT))
        assert part.read_bytes() == CONTENT[:had]
    download(f"{server}/cut", target, SHA256, len(CONTENT))
    assert target.read_bytes() == CONTENT
    assert not part.exists()
    assert [asked for _, asked in Handler.requests] == [None, "bytes=400000-", "bytes=800000-"]


def test_a_whole_part_needs_no_request(server: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT)  # stopped between the last byte and the new name
    download(f"{server}/whole", tmp_path / "a.bin", SHA256, len(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert Handler.requests == []


@pytest.mark.row("R35")
@pytest.mark.parametrize("path", ["no-range", "shifted", "refuses-range", "whole"])
@pytest.mark.parametrize("have", [500_000, 1_000_004])
def test_a_part_that_cannot_go_on_is_fetched_anew(
    server: str, tmp_path: Path, path: str, have: int
) -> None:
    (tmp_path / "a.bin.part").write_bytes((CONTENT + b"more")[:have])
    download(f"{server}/{path}", tmp_path / "a.bin", SHA256, len(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.row("R35")
def test_a_server_that_stalls_counts_as_gone(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(download_module, "CHUNK_BYTES", 100_000)
    with pytest.raises(
        UserError, match=r"lost after 300,000 of .*timed out.*kept in .*a\.bin\.part"
    ):
        download(f"{server}/stalls", tmp_path / "a.bin", SHA256, len(CONTENT))


@pytest.mark.row("R35")
def test_the_wrong_file_is_removed_and_said(server: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=f"its sha256 is {SHA256}, but {'0' * 64} is expected; the part is removed"
    ):
        download(f"{server}/whole", tmp_path / "a.bin", "0" * 64, len(CONTENT))
    assert os.listdir(tmp_path) == []


@pytest.mark.row("R35")
def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    server: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has 1,000,003 bytes, but 12 are expected"):
        download(f"{server}/whole", tmp_path / "a.bin", SHA256, 12)
    assert os.listdir(tmp_path) == []


@pytest.mark.row("R35")
def test_a_server_that_does_not_say_the_size_is_believed_up_to_the_hash(
    server: str, tmp_path: Path
) -> None:
    assert download(f"{server}/no-length", tmp_path / "a.bin", SHA256).read_bytes() == CONTENT
    with pytest.raises(DataError, match="sends more than the 1,000,003 bytes"):
        download(f"{server}/endless", tmp_path / "b.bin", SHA256, len(CONTENT))


@pytest.mark.row("R35")
def test_a_redirect_is_followed_to_https_only(server: str, tmp_path: Path) -> None:
    download(f"{server}/moved", tmp_path / "a.bin", SHA256)
    assert [path for path, _ in Handler.requests] == ["/moved", "/whole"]
    for path, reason in (
        ("to-http", "redirects to http://127.0.0.1.*: not https"),
        ("to-file", "is not allowed"),
    ):
        with pytest.raises(UserError, match=reason):
            download(f"{server}/{path}", tmp_path / "b.bin", SHA256)
    with pytest.raises(UserError, match=r"http://127.0.0.1/a: not https"):
        download("http://127.0.0.1/a", tmp_path / "b.bin", SHA256)
    assert len(Handler.requests) == 4
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_page_and_a_dead_server_say_what_to_do_by_hand(
    server: str, tmp_path: Path
) -> None:
    by_hand = f"put it at {tmp_path / 'a.bin'} and run the same command again"
    for url, reason in (
        (f"{server}/missing", "answers 404"),
        ("https://127.0.0.1:1/a", "cannot be reached"),
    ):
        with pytest.raises(UserError) as caught:
            download(url, tmp_path / "a.bin", SHA256)
        assert url in str(caught.value)
        assert reason in str(caught.value)
        assert by_hand in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.row("R35")
def test_a_server_without_a_trusted_certificate_is_refused(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(
        UserError, match=r"cannot be reached .*certificate verify failed.*SSL_CERT_FILE=FILE"
    ):
        download(f"{server}/whole", tmp_path / "a.bin", SHA256)
    assert Handler.requests == []


def test_a_full_disk_is_seen_before_the_download(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:400_000])
    usage = namedtuple("usage", "free")(600_002)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match="600,003 bytes are needed, but 600,002 are free"):
        download(f"{server}/whole", tmp_path / "a.bin", SHA256)
    assert (tmp_path / "a.bin.part").stat().st_size == 400_000


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write files longer than `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.row("R35")
def test_a_disk_that_fills_up_is_a_disk_error(server: str, tmp_path: Path) -> None:
    with largest_file(300_000), pytest.raises(DiskError, match=r"a\.bin\.part: cannot be written"):
        download(f"{server}/whole", tmp_path / "a.bin", SHA256)
    download(f"{server}/whole", tmp_path / "a.bin", SHA256)
    assert Handler.requests[1] == ("/whole", "bytes=300000-")


def test_progress_in_a_file_is_plain_lines(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "PLAIN_INTERVAL", 0.0)
    download(f"{server}/whole", tmp_path / "a.bin", SHA256)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert lines[0].startswith("a.bin: 262k of 1.00M, ")
    assert lines[0].endswith("left\n")
    assert lines[-1].startswith("checking a.bin.part: 1.00M of 1.00M, ")
    assert not any("\r" in line for line in lines)
    download(f"{server}/whole", tmp_path / "b.bin", SHA256, progress=False)
    assert capsys.readouterr().err == ""


def test_a_digest_is_sha256_or_md5(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert digest(path, "md5") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321
    check(path, "900150983cd24fb0d6963f7d28e17f72")
    check(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")  # FIPS 180-2
    with pytest.raises(
        DataError, match=r"a: its md5 is 900150983cd24fb0d6963f7d28e17f72, but 0{32} is expected"
    ):
        check(path, "0" * 32)
    with pytest.raises(DataError, match=r"b: cannot be read .No such file"):
        check(tmp_path / "b", "0" * 64)


# ---------------------------------------------------------------------- unpack

Members = list[tuple[tarfile.TarInfo, bytes]]


def member(name: str, content: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, b"", type=kind, linkname=to)


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packed:
        for info, content in members:
            packed.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def packed_zip(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return buffer.getvalue()


def zip_of_kind(name: str, mode: int, content: bytes) -> bytes:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o644) << 16
    return packed_zip((info, content))


def zip_with_size(declared: int) -> bytes:
    """One file of 5 MB of zeros whose two headers both say that it has `declared` bytes."""
    packed = bytearray(packed_zip(("a", bytes(5 * MB))))
    for signature, field in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", packed, packed.index(signature) + field, declared)
    return bytes(packed)


def flipped(packed: bytes, at: int) -> bytes:
    return packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :]


def pax(name: str) -> bytes:
    return tar(member("a", pax_headers={"path": name}))


def encrypted() -> bytes:
    packed = bytearray(packed_zip(("a", b"x")))
    for signature, field in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        packed[packed.index(signature) + field] |= 1
    return bytes(packed)


# headers at 0 and 1536, data at 512 and 2048
TWO = tar(member("a", bytes(600)), member("b", bytes(600)))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "tar: parent": (tar(member("../outside/new")), "would leave"),
    "tar: parent, nested": (tar(member("good"), member("a/b/../../../outside/new")), "would leave"),
    "tar: parent in a long name": (pax("../outside/new"), "would leave"),
    "tar: absolute": (tar(member("/tmp/segtrain-outside")), "would leave"),
    "tar: absolute folder": (
        tar(member("/tmp/segtrain-outside", b"", type=tarfile.DIRTYPE)),
        "would leave",
    ),
    "tar: backslashes": (tar(member("..\\outside\\new")), "would leave"),
    "tar: drive": (tar(member("C:\\new")), "would leave"),
    "tar: line break in a name": (tar(member("a\nb")), "no plain name"),
    "tar: link out": (tar(link("a", "/etc/passwd")), "leading out"),
    "tar: link out by parents": (tar(link("d/a", "../../outside")), "leading out"),
    "tar: file through a link out": (tar(link("d", "../outside"), member("d/new")), "leading out"),
    "tar: file through a link": (
        tar(member("e/x"), link("d", "e"), member("d/new")),
        "below a file",
    ),
    "tar: hard link out": (tar(link("a", "../outside/mine", tarfile.LNKTYPE)), "leading out"),
    "tar: hard link, absolute": (tar(link("a", "/etc/passwd", tarfile.LNKTYPE)), "leading out"),
    "tar: file over a link": (tar(member("b"), link("a", "b"), member("a")), "twice"),
    "tar: link over a file": (tar(member("b"), member("a"), link("a", "b")), "twice"),
    "tar: circle of links": (tar(link("a", "b"), link("b", "a")), "recursion"),
    "tar: link to nothing": (tar(link("a", "b")), "not found"),
    "tar: link to a folder": (
        tar(member("d", b"", type=tarfile.DIRTYPE), link("a", "d")),
        "link to no file",
    ),
    "tar: links that multiply": (
        tar(
            member("a", bytes(MB // 2)),
            *(link(f"b{i}", "a", tarfile.LNKTYPE) for i in range(9)),
            mode="w:gz",
        ),
        "more than 1,000,000 bytes",
    ),
    "tar: character device": (
        tar(member("a", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
        "a device",
    ),
    "tar: pipe": (tar(member("a", b"", type=tarfile.FIFOTYPE)), "a device"),
    "tar: file as a folder": (tar(member("a"), member("a/b")), "below a file"),
    "tar: 10 GB declared": (member("a", size=10 * 1024**3)[0].tobuf(), "more than 1,000,000 bytes"),
    "tgz: 20 MB of zeros": (
        tar(member("a", bytes(20 * MB)), mode="w:gz"),
        "more than 1,000,000 bytes",
    ),
    "tgz: 20 MB in pieces": (
        tar(*(member(f"{i}", bytes(MB)) for i in range(20)), mode="w:gz"),
        "more than 1,000,000",
    ),
    "tar: truncated in a file": (TWO[:2100], "unexpected end"),
    "tar: truncated in a header": (TWO[:1600], "truncated"),
    "tar: truncated before a header": (TWO[:1536], "truncated"),
    "tar: damaged header": (flipped(TWO, 1536), "damaged"),
    "tgz: truncated": (tar(member("a", CONTENT[:9999]), mode="w:gz")[:5000], "ended before"),
    "tar: empty": (tar(), "holds no file"),
    "zip: parent": (packed_zip(("../outside/new", b"x")), "would leave"),
    "zip: absolute": (packed_zip(("/tmp/segtrain-outside", b"x")), "would leave"),
    "zip: backslashes": (packed_zip(("..\\outside\\new", b"x")), "would leave"),
    "zip: link": (zip_of_kind("a", stat.S_IFLNK, b"/etc/passwd"), "a link or a device"),
    "zip: device": (zip_of_kind("a", stat.S_IFCHR, b""), "a link or a device"),
    "zip: 4 GB declared": (zip_with_size(2**32 - 2), "more than 1,000,000 bytes"),
    "zip: 10 GB in files": (
        packed_zip(*((f"{i}", bytes(MB)) for i in range(10))),
        "more than 1,000,000 bytes",
    ),
    "zip: more than declared": (zip_with_size(999), "CRC"),
    "zip: one file in two spellings": (packed_zip(("a/b", b"x"), ("a//b", b"y")), "twice"),
    "zip: file as a folder": (packed_zip(("a", b"x"), ("a/b", b"y")), "below a file"),
    "zip: truncated": (packed_zip(("a", CONTENT[:9999]))[:5000], "cannot be unpacked"),
    "zip: damaged": (flipped(packed_zip(("a", CONTENT[:9999])), 5000), "cannot be unpacked"),
    "zip: with a password": (encrypted(), "password"),
    "nothing": (b"", "cannot be unpacked"),
    "no archive": (CONTENT[:5000], "cannot be unpacked"),
}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: content of files, None for folders."""
    return {
        str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
    }


@pytest.mark.row("R35")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_damaged_archive_writes_nothing(case: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[case]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_bytes(b"mine")
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    before = tree(tmp_path)
    for target in (tmp_path / "target", tmp_path / "outside"):  # one that is not there, one that is
        with pytest.raises(DataError) as caught:
            unpack(archive, target, MB)
        message = str(caught.value)
        assert message.startswith(f"{archive}: cannot be unpacked, nothing was written: ")
        assert "\n" not in message
        assert reason in message
        assert tree(tmp_path) == before
    assert not Path("/tmp/segtrain-outside").exists()


def good(kind: str) -> bytes:
    folder = member("set/empty", b"", type=tarfile.DIRTYPE)
    files: Members = [
        member("set/a", b"aa", mode=0o6777),
        member("./set/b/c", b"cc"),
        member("readme", b"r"),
    ]
    if kind == "zip":
        return packed_zip(("set/", b""), *((info.name, content) for info, content in files))
    return tar(folder, *files, mode=f"w{kind}")


@pytest.mark.parametrize("kind", ["", ":gz", ":xz", "zip"])
def test_the_folder_of_an_archive_becomes_the_target(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    target = tmp_path / "new" / "target"
    archive.write_bytes(good(kind))
    assert unpack(archive, target, 5, inside="set") == target
    assert tree(tmp_path / "new") == {
        "target": None,
        "target/a": b"aa",
        "target/b": None,
        "target/b/c": b"cc",
    }
    assert (target / "a").stat().st_mode & 0o7111 == 0  # neither setuid nor executable
    unpack(archive, tmp_path / "all", 5)
    assert tree(tmp_path / "all") == {
        "readme": b"r",
        "set": None,
        "set/a": b"aa",
        "set/b": None,
        "set/b/c": b"cc",
    }
    with pytest.raises(DataError, match="unpacks to more than 4 bytes"):
        unpack(archive, tmp_path / "more", 4)
    with pytest.raises(DataError, match="holds no file in a folder other"):
        unpack(archive, tmp_path / "more", 5, inside="other")


def test_links_inside_an_archive_become_copies(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(
        tar(member("d/a", b"aa"), link("d/b", "a"), link("c", "d/a", tarfile.LNKTYPE))
    )
    unpack(archive, tmp_path / "target", 6)
    assert tree(tmp_path / "target") == {"c": b"aa", "d": None, "d/a": b"aa", "d/b": b"aa"}
    assert not any(
        p.is_symlink() or p.stat().st_nlink > 1
        for p in (tmp_path / "target").rglob("*")
        if p.is_file()
    )


def test_a_target_that_is_there_gets_what_it_lacks_and_keeps_the_rest(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    target = tmp_path / "target"
    archive.write_bytes(good("zip"))
    (target / "b").mkdir(parents=True)
    (target / "a").write_bytes(b"mine")
    (target / "b" / "other").write_bytes(b"other")
    unpack(archive, target, 9, inside="set")
    assert tree(target) == {"a": b"mine", "b": None, "b/c": b"cc", "b/other": b"other"}


@pytest.mark.row("R35")
def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(good(""))
    (tmp_path / ".unpacking-target").mkdir()
    (tmp_path / ".unpacking-target" / "half").write_bytes(b"h")
    unpack(archive, tmp_path / "target", 9)
    assert sorted(os.listdir(tmp_path)) == ["archive", "target"]
    assert not (tmp_path / "target" / "half").exists()


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = packed_zip(("../outside", b"x"))
    (tmp_path / "a").write_bytes(tar(member("inner.zip", inner)))
    unpack(tmp_path / "a", tmp_path / "target", MB)
    assert tree(tmp_path / "target") == {"inner.zip": inner}


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo, lambda path: None])
def test_what_is_no_file_is_no_archive(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(DataError, match="a: cannot be unpacked, nothing was written: "):
        unpack(tmp_path / "a", tmp_path / "target", MB)


@pytest.mark.row("R35")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(tar(member("a", bytes(100)), member("b", CONTENT)))
    with (
        largest_file(1000),
        pytest.raises(DiskError, match=r"b: cannot be written \(File too large\); free bytes: \d"),
    ):
        unpack(archive, tmp_path / "target", 2 * MB)
    assert os.listdir(tmp_path) == ["archive"]
    monkeypatch.setattr(
        download_module.shutil, "disk_usage", lambda path: namedtuple("usage", "free")(99)
    )
    with pytest.raises(DiskError, match="1,000,103 bytes are needed, but 99 are free"):
        unpack(archive, tmp_path / "target", 2 * MB)
    assert os.listdir(tmp_path) == ["archive"]


@pytest.mark.row("R35")
def test_an_archive_of_too_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack_module, "MAX_MEMBERS", 3)
    (tmp_path / "a").write_bytes(packed_zip(*((f"{i}", b"") for i in range(4))))
    with pytest.raises(SegtrainError, match="or 3 files"):
        unpack(tmp_path / "a", tmp_path / "target", MB)


# ---------------------------------------------------------------------- a signal on the way

# `segdata prepare` of COCO, whose archives are one of ours that the test's server has.
PREPARE = """
import json, os, sys
from dataclasses import replace
from segtrain.benchmarks import coco
from segtrain.commands import main
certificate, changes, *words = sys.argv[1:]
os.environ |= {"SSL_CERT_FILE": certificate, "no_proxy": "127.0.0.1"}
coco.COCO = (replace(coco.COCO[1], **json.loads(changes)),)
sys.argv = ["segdata", "prepare", "dataset=coco_instance", *words]
main.segdata()
"""
NAMES = ["SIGTERM", "SIGHUP", "SIGINT"]
STOPPED = "stopped; every file that was written is whole, and the same command goes on"
IMAGE = bytes(4 * MB)  # packs into nothing, and takes its time to be written


def prepare(
    url: str, content: bytes, count: int, certificate: tuple[Path, Path], place: Path
) -> list[str]:
    """The command that fetches `content` from `url`, of `count` files in val2017, below `place`."""
    changes = {
        "url": url,
        "digest": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "holds": {"": count},
    }
    code = [sys.executable, "-c", PREPARE, str(certificate[0]), json.dumps(changes)]
    return [*code, f"dataset.root={place / 'coco'}"]


def again(command: list[str]) -> str:
    """Run the same command to its end, and return what it says."""
    ended = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_download_that_a_signal_ends_keeps_its_part_and_goes_on_there(
    name: str, served: str, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    Archives.content = packed_zip(("val2017/1.jpg", CONTENT))
    command = prepare(f"{served}/trickles", Archives.content, 1, certificate, tmp_path)
    part = tmp_path / "coco" / "downloads" / "val2017.zip.part"

    def received(process: subprocess.Popen, said: str) -> bool:
        return part.exists() and part.stat().st_size >= 300_000

    ended = Signalled(command, name, received, tmp_path)
    assert (ended.code, ended.lines) == (130, [f"segdata: {name}: {STOPPED}"])
    assert ended.seconds < 2
    kept = part.read_bytes()
    assert kept == Archives.content[: len(kept)]
    assert [path.name for path in (tmp_path / "coco").rglob("*")] == ["downloads", part.name]

    Handler.requests.clear()
    again(prepare(f"{served}/packed", Archives.content, 1, certificate, tmp_path))
    assert Handler.requests == [("/packed", f"bytes={len(kept)}-")]
    assert (tmp_path / "coco" / "val2017" / "1.jpg").read_bytes() == CONTENT


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_signal_while_an_archive_is_unpacked_leaves_the_archive_alone(
    name: str, served: str, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    files = [(f"val2017/{number}.jpg", IMAGE) for number in range(100)]
    Archives.content = packed_zip(*files)
    command = prepare(f"{served}/packed", Archives.content, len(files), certificate, tmp_path)
    root = tmp_path / "coco"

    def unpacking(process: subprocess.Popen, said: str) -> bool:
        return len(list(root.rglob("*.jpg"))) >= 5

    ended = Signalled(command, name, unpacking, tmp_path)
    assert (ended.code, ended.lines) == (130, [f"segdata: {name}: {STOPPED}"])
    assert ended.seconds < 2
    assert [path.name for path in root.rglob("*")] == ["downloads", "val2017.zip"]
    assert "val2017: there, 100 entries" in again(command)
    assert all(path.stat().st_size == len(IMAGE) for path in (root / "val2017").iterdir())
