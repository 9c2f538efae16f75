"""A checkpoint from a stranger runs nothing, takes little memory, ends in one line (row R6)."""

import hashlib
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_files import FILES, Touch, as_key, nested, seal
from rows import Tally

from segtrain.checkpoints import reading, writing
from segtrain.engine.imported import starting_weights
from segtrain.errors import UserError


def refused(call: Callable[[], object]) -> str:
    """The one line of the UserError; within two seconds of CPU and 100 MB of Python memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(UserError) as caught:
            call()
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert time.process_time() - start < 2, text
    assert "\n" not in text, text
    assert len(text) < 400, text
    return text


@pytest.mark.row("R6")
@pytest.mark.parametrize("make", FILES, ids=lambda f: f.__name__)
def test_a_hostile_file_runs_nothing_as_weights_and_inside_a_sealed_checkpoint(
    make: Callable[[Path, Path], None], tmp_path: Path, tally: Tally
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
    tally(3)


def test_the_canary_works() -> None:
    """Otherwise the tests above would prove nothing."""
    function, arguments = Touch(Path("/proc/canary")).__reduce__()
    with pytest.raises(OSError, match="/proc/canary"):
        function(*arguments)


@pytest.mark.row("R6")
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
    {"meta": {"class_names": 7}},
    {"meta": {"class_names": None}},
    {"meta": {"class_names": ["car", 7]}},
    {"meta": {"best": 0.5}},
    {"meta": {"numbers": [1]}},
    {"meta": {"train": None}},
    {"meta": {"evaluated": "yes"}},
    {"meta": {"best": {"step": 5}}},
    {"meta": {"numbers": {"mIoU": "high"}}},
    {"meta": {"skipped": [1]}},
    {"meta": {"skipped": {"all": 1, "row": 1}}},
    {"meta": {"pieces": "2"}},
    {"meta": {"fingerprint": 7}},
    {"format": "1"},
    {"format": 0},
    {"format": 10**30},
]


@pytest.mark.row("R6")
@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_sealed_manifest_with_wrong_values_is_refused(changes: dict, tmp_path: Path) -> None:
    step = writing.save(tmp_path, 100, {"model": {"w": torch.zeros(2)}}, {})
    seal(step, **changes)
    text = refused(lambda: reading.find(step, "best"))
    assert text.startswith(str(step))
    assert "damaged checkpoint (" in text or "update segtrain" in text


@pytest.mark.row("R6")
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


@pytest.mark.row("R6")
def test_a_manifest_of_65_megabytes_is_not_parsed(tmp_path: Path) -> None:
    step = writing.save(tmp_path, 100, {"model": {"w": torch.zeros(2)}}, {})
    with (step / "manifest.json").open("wb") as file:
        file.truncate(10 * 2**40)  # sparse: ten terabytes
    assert "manifest.json is larger than" in refused(lambda: reading.find(step, "best"))


@pytest.mark.row("R6")
def test_a_repeated_key_in_a_manifest_is_refused(tmp_path: Path) -> None:
    step = writing.save(tmp_path, 100, {"model": {"w": torch.zeros(2)}}, {})
    text = (step / "manifest.json").read_text()
    assert json.loads(text)["step"] == 100
    (step / "manifest.json").write_text(text.replace('"step": 100', '"step": 50,\n "step": 100'))
    assert "manifest.json is damaged or not ours" in refused(lambda: reading.find(step, "best"))
