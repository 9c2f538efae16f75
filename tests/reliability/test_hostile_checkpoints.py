"""A checkpoint from a stranger runs nothing, takes little memory, ends in one line (row R6)."""

import hashlib
import json
import os
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segtrain.checkpoints import manifest, reading, writing
from segtrain.engine.imported import starting_weights
from segtrain.errors import UserError


class Touch:
    """Writes a canary file when an unsafe load meets it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


def bare(path: Path, canary: Path) -> None:
    torch.save(Touch(canary), path)


def nested(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2), "deep": [{"x": (1, [Touch(canary)])}]}, path)


def as_key(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2), Touch(canary): 1}, path)


def old_format(path: Path, canary: Path) -> None:
    torch.save({"w": Touch(canary)}, path, _use_new_zipfile_serialization=False)


def raw_script(path: Path, canary: Path) -> None:
    path.write_bytes(b"cos\nmkdir\n(S'" + str(canary).encode() + b"'\ntR.")


def attribute_walk(path: Path, canary: Path) -> None:
    path.write_bytes(
        b"\x80\x04ctorch.serialization\nos.mkdir\n(S'" + str(canary).encode() + b"'\ntR."
    )


def deflated_bomb(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            archive.writestr(name, bytes(1 << 24) if name.endswith("data/0") else data)


def ten_terabytes(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    path.write_bytes(data[: at + 20] + struct.pack("<II", 2**32 - 2, 2**32 - 2) + data[at + 28 :])


def old_format_ten_terabytes(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    # the number of elements, as one byte, follows the device and its memo
    at = data.index(b"cpu") + 5
    assert data[at : at + 2] == b"K\x03", data[at - 10 : at + 10]
    path.write_bytes(data[:at] + b"\x8a\x06" + (10 * 2**40).to_bytes(6, "little") + data[at + 2 :])


def endless_nesting(path: Path, canary: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".")


def empty(path: Path, canary: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path, canary: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 8)


FILES = [bare, nested, as_key, old_format, raw_script, attribute_walk, deflated_bomb]
FILES += [ten_terabytes, old_format_ten_terabytes, endless_nesting, empty, noise]


def refused(call: Callable[[], object]) -> str:
    """The one line of the UserError; within two seconds and 100 MB of Python memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(UserError) as caught:
            call()
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert time.monotonic() - start < 2, text
    assert "\n" not in text, text
    assert len(text) < 400, text
    return text


def seal(path: Path, **changes: object) -> None:
    """A manifest that is right about the files that are there, as an attacker would write it."""
    files = {}
    for file in sorted(path.glob("*.pt")):
        files[file.name] = {
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    body = {"format": 1, "step": 100, "meta": {}, "files": files, **changes}
    (path / "manifest.json").write_bytes(manifest.encode(body))


@pytest.mark.parametrize("make", FILES, ids=lambda f: f.__name__)
def test_a_hostile_file_runs_nothing_as_weights_and_inside_a_sealed_checkpoint(
    make: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"w{suffix}"
        make(path, canary)
        if make in (nested, as_key):  # beside tensors: what is none of them is left out
            assert list(starting_weights(str(path))[0])
            continue
        assert refused(lambda path=path: starting_weights(str(path))).startswith(
            f"{path}: no weights can be read from it: "
        )
    step = writing.save(tmp_path / "run", 100, {"model": {"w": torch.zeros(2)}}, {})
    make(step / "model.pt", canary)
    seal(step)
    found = reading.find(step, "best")  # the manifest is right, so only the load can refuse
    assert refused(lambda: found.read("model")).startswith(
        f"{step / 'model.pt'}: not a file of plain tensors ("
    )
    assert not canary.exists()


def test_the_canary_works() -> None:
    """Otherwise the tests above would prove nothing."""
    function, arguments = Touch(Path("/proc/canary")).__reduce__()
    with pytest.raises(OSError, match="/proc/canary"):
        function(*arguments)


@pytest.mark.parametrize(
    "name",
    ["../outside.pt", "/etc/passwd", "a/b.pt", "..", "", "x.pt\n", "~/x.pt", "model.PT", "é.pt"],
)
def test_a_path_in_a_manifest_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    step = writing.save(folder, 100, {"model": {"w": torch.zeros(2)}}, {})
    data = (step / "model.pt").read_bytes()
    (folder / "outside.pt").write_bytes(data)
    seal(step, files={name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    assert "names the illegal file" in refused(lambda: reading.find(step, "best"))
    assert reading.latest(folder) is None


WRONG = [
    {"files": []},
    {"files": {"model.pt": 3}},
    {"files": {"model.pt": {"size": 10**13}}},
    {"files": {"model.pt": {"size": 10**13, "sha256": "0"}}},
    {"files": {"model.pt": {"size": None, "sha256": []}}},
    {"files": {"absent.pt": {"size": 1, "sha256": "0"}}},
    {"step": "100"},
    {"step": 200},
    {"step": True},
    {"meta": [1]},
    {"format": "1"},
    {"format": 0},
    {"format": 10**30},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_sealed_manifest_with_wrong_values_is_refused(changes: dict, tmp_path: Path) -> None:
    step = writing.save(tmp_path, 100, {"model": {"w": torch.zeros(2)}}, {})
    seal(step, **changes)
    text = refused(lambda: reading.find(step, "best"))
    assert text.startswith(str(step))
    assert "damaged checkpoint (" in text or "update segtrain" in text


def test_links_pipes_and_devices_are_not_followed(tmp_path: Path) -> None:
    step = writing.save(tmp_path, 100, {"model": {"w": torch.zeros(2)}}, {})
    moved = (step / "model.pt").rename(tmp_path / "elsewhere.pt")
    (step / "model.pt").symlink_to(moved)
    assert "model.pt: " in refused(lambda: reading.find(step, "best"))
    (step / "model.pt").unlink()
    os.mkfifo(step / "model.pt")
    assert "model.pt is not a regular file" in refused(lambda: reading.find(step, "best"))
    (step / "manifest.json").unlink()
    (step / "manifest.json").symlink_to("/dev/zero")
    assert "damaged checkpoint" in refused(lambda: reading.find(step, "best"))
    assert "holds no whole checkpoint" in refused(lambda: starting_weights("/dev/zero"))
    assert reading.latest(tmp_path) is None


def test_a_manifest_of_65_megabytes_is_not_parsed(tmp_path: Path) -> None:
    step = writing.save(tmp_path, 100, {"model": {"w": torch.zeros(2)}}, {})
    with (step / "manifest.json").open("wb") as file:
        file.truncate(10 * 2**40)  # sparse: ten terabytes
    assert "manifest.json is larger than" in refused(lambda: reading.find(step, "best"))


def test_a_repeated_key_in_a_manifest_is_refused(tmp_path: Path) -> None:
    step = writing.save(tmp_path, 100, {"model": {"w": torch.zeros(2)}}, {})
    text = (step / "manifest.json").read_text()
    assert json.loads(text)["step"] == 100
    (step / "manifest.json").write_text(text.replace('"step": 100', '"step": 50,\n "step": 100'))
    assert "manifest.json is damaged or not ours" in refused(lambda: reading.find(step, "best"))
