"""Death, a full disk and damage around a save.

There is always a whole checkpoint (matrix rows R2 to R5).

The crashes are real: this file is also a program that forks a child per crash, in an interpreter
that uses no torch threads. `python test_save_crashes.py FOLDER` prints as JSON what was found after
each.
"""

import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rows import Tally, amount

from segtrain.checkpoints import reading, writing
from segtrain.errors import DiskError

ROOT = Path(__file__).parents[2]
DIED = 9
ENDED = 0
EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "shutil.rmtree",
}
POSITIONS = amount(25, 25, 500)
DAMAGED = amount(200, 200, 10_000)


# What is saved, and how: each dies at every event of a save in the long form.
PLAIN = "two entries"
VARIANTS = (PLAIN, "an average too", "no score", "two kept", "two best", "a megabyte")


def payload(step: int, variant: str = PLAIN) -> dict:
    count = 250_000 if variant == "a megabyte" else 300
    entries = {
        "model": {"w": torch.full((count,), float(step))},
        "optimizer": {"m": torch.full((300,), -float(step))},
    }
    return {**entries, "ema": {"w": torch.zeros(7)}} if variant == "an average too" else entries


def save(folder: Path, step: int, mark: float = 0.0, variant: str = PLAIN) -> None:
    score = {} if variant == "no score" else {"score": {100: 0.5, 200: 0.3}.get(step, 0.1)}
    keep = 2 if variant == "two kept" else 1
    best = 2 if variant == "two best" else 1
    writing.save(folder, step, payload(step, variant), {**score, "mark": mark}, keep, best)


# ---- the program: each state is what stands before the save, and the step that is saved

STATES = {"first": ([], 100), "next": ([100, 200, 300], 400), "again": ([100], 100)}


def forked(body: Callable[[], None]) -> int:
    """Exit status of a child that runs `body`.

    A child killed by a signal gives minus its number.
    """
    child = os.fork()
    if child == 0:
        try:
            body()
        except DiskError as error:
            told = re.search(
                r"was not saved: File too large; it needs about \d+ bytes, \d+ bytes are free",
                str(error),
            )
            os._exit(error.exit_code if told and str(error).startswith("/") else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(ENDED)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(event: int) -> None:
    """From now on this process counts what it asks of the file system, and dies just before request
    number `event`.
    """
    count = 0

    def hook(name: str, arguments: tuple) -> None:
        nonlocal count
        count += name in EVENTS
        if name in EVENTS and count == event:
            os._exit(DIED)

    os.fsync = lambda descriptor: hook("open", ())
    sys.addaudithook(hook)


def limit_files(size: int, deadly: bool) -> None:
    """No file grows beyond `size` bytes: the next byte kills (SIGXFSZ), or is refused as on a full
    disk (EFBIG).
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def examine(folder: Path, step: int, status: int, variant: str) -> dict:
    """What stands after the crash, and whether the next save works."""
    found = reading.latest(folder)
    whole = found is not None and all(
        torch.equal(next(iter(found.read(name).values())), next(iter(value.values())))
        for name, value in payload(found.step, variant).items()
    )
    result = {
        "status": status,
        "latest": found.step if found else None,
        "mark": found.meta["mark"] if found else None,
        "whole": whole,
        "best": getattr(reading.best(folder), "step", None),
        "second": (folder / "step_00000200").is_dir(),
    }
    save(folder, step + 100, variant=variant)
    # the best may have been moved aside
    kept = [path.name.removesuffix(".old-1") for path in folder.iterdir()]
    result["next"] = reading.find(folder, "latest").step == step + 100 and len(kept) == len(
        set(kept)
    ) <= (3 if variant in ("two kept", "two best") else 2)
    return result


def crash(work: Path, state: str, cause: Callable[[], None], variant: str = PLAIN) -> dict:
    step = STATES[state][1]
    shutil.copytree(work / "start" / state, work / "run")

    def body() -> None:
        cause()
        save(work / "run", step, 1.0, variant)

    result = examine(work / "run", step, forked(body), variant)
    shutil.rmtree(work / "run")
    return {"state": state, "variant": variant, **result}


def program(mode: str, work: Path, variant: str = PLAIN) -> list[dict]:
    """All crashes of one mode, for each state.

    The kernel outlives them all, so nothing has to wait for the disk.
    """
    os.fsync = lambda descriptor: None
    work.mkdir()
    save(work / "warm", 1)  # what is imported at the first save is no event of a save
    limit = max(path.stat().st_size for path in (work / "warm").rglob("*") if path.is_file())
    for state, (before, _) in STATES.items():
        (work / "start" / state).mkdir(parents=True)
        for earlier in before:
            save(work / "start" / state, earlier, variant=variant)
    found: list[dict] = []
    if mode == "event":
        for state in STATES:
            event = 1
            status = DIED
            while status != ENDED:
                found.append(crash(work, state, lambda at=event: die_at(at), variant))
                event = event + 1
                status = found[-1]["status"]
    else:
        for position in range(POSITIONS):
            size = position * limit // POSITIONS
            state = list(STATES)[position % len(STATES)]
            found.append(
                crash(work, state, lambda size=size: limit_files(size, deadly=mode == "kill"))
            )
    return found


# ---- the tests


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """All modes in one interpreter, since most of the time goes into `import torch`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path_factory.mktemp("crashes"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found: list[dict]) -> None:
    """A whole checkpoint wherever there was one, the best never lost, and the next save works."""
    for case in found:
        assert case["next"], case
        if case["state"] != "first":
            assert case["whole"], case
            assert case["best"] == (None if case["variant"] == "no score" else 100), case
        if (case["state"], case["variant"]) == ("next", "two best"):
            assert case["second"], case
        if case["latest"] is not None:
            assert case["whole"], case
            assert case["latest"] in {100, 300, 400}, case


@pytest.mark.row("R2")
def test_a_death_at_any_file_system_event_of_a_save_leaves_a_whole_checkpoint(
    crashes: dict[str, list[dict]], tally: Tally
) -> None:
    found = crashes["event"]
    check(found)
    tally(len(found))
    tally.inside += len(found)
    for state, variant in {(case["state"], case["variant"]) for case in found}:
        cases = [case for case in found if (case["state"], case["variant"]) == (state, variant)]
        assert [case["status"] for case in cases] == [DIED] * (len(cases) - 1) + [ENDED]
        old = sum(case["mark"] != 1.0 for case in cases)  # deaths before the new one counts
        assert len(cases) > 15, (state, len(cases), old)
        assert old >= 10, (state, len(cases), old)
        assert len(cases) - old >= 2, (state, len(cases), old)
        assert [case["mark"] == 1.0 for case in cases] == [False] * old + [True] * (
            len(cases) - old
        )


@pytest.mark.row("R3")
def test_a_death_at_any_byte_of_a_file_leaves_a_whole_checkpoint(
    crashes: dict[str, list[dict]], tally: Tally
) -> None:
    found = crashes["kill"]
    check(found)
    tally(len(found))
    assert len(found) == POSITIONS
    assert {case["status"] for case in found} == {-signal.SIGXFSZ}
    assert {case["latest"] for case in found if case["state"] == "next"} == {300}


@pytest.mark.row("R4")
def test_a_disk_full_at_any_byte_exits_74_and_leaves_a_whole_checkpoint(
    crashes: dict[str, list[dict]], tally: Tally
) -> None:
    found = crashes["full"]
    check(found)
    tally(len(found))
    assert len(found) == POSITIONS
    assert {case["status"] for case in found} == {DiskError.exit_code}
    assert {case["mark"] for case in found if case["state"] != "first"} == {0.0}


DAMAGES = [
    "truncate",
    "zero",
    "flip",
    "delete",
    "swap",
    "manifest",
    "empty",
    "link",
    "grow",
    "link folder",
]


def damage(kind: str, good: Path, bad: Path, rng: random.Random) -> None:
    """Damage one file of `bad`, or the folder."""
    file = bad / rng.choice(["model.pt", "optimizer.pt", "manifest.json"])
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data))
    if kind == "truncate":
        file.write_bytes(data[:at])
    elif kind == "zero":
        end = min(len(data), at + 16)
        data[at:end] = b"\0" * (end - at) if any(data[at:end]) else b"\1" * (end - at)
        file.write_bytes(data)
    elif kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    elif kind == "grow":
        file.write_bytes(data + b"\n")
    elif kind == "delete":
        file.unlink()
    elif kind == "swap":
        shutil.copy(good / file.name, file)
    elif kind == "manifest":
        (bad / "manifest.json").write_bytes(
            rng.choice([b"", b"{}", b"null", b"[]", b"[" * 99999, b"\xff\xfe", b"1" * 5000])
        )
    elif kind == "link":
        file.unlink()
        file.symlink_to(good / file.name)
    else:
        shutil.rmtree(bad)
        bad.symlink_to(good) if kind == "link folder" else bad.mkdir()


@pytest.mark.row("R5")
def test_each_of_200_damaged_checkpoints_is_found_named_and_fallen_back_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tally: Tally
) -> None:
    rng = random.Random(0)
    original = tmp_path / "original"
    writing.save(original, 100, payload(100), {"score": 0.5})
    writing.save(original, 200, payload(200), {"score": 0.9})
    for number in range(DAMAGED):
        folder = tmp_path / str(number)
        shutil.copytree(original, folder)
        kind = DAMAGES[number % len(DAMAGES)]
        damage(kind, folder / "step_00000100", folder / "step_00000200", rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "segtrain"):
            latest = reading.latest(folder)
            best = reading.best(folder)
        assert latest is not None, (kind, number)
        assert latest.step == 100, (kind, number)
        assert best is not None, (kind, number)
        assert best.step == 100, (kind, number)
        assert f"{folder}/step_00000200: damaged checkpoint skipped: " in caplog.text, (
            kind,
            number,
        )
        assert os.path.lexists(folder / "step_00000200")
        shutil.rmtree(folder)
    tally(DAMAGED, seed=0)


if __name__ == "__main__":
    logging.getLogger("segtrain").setLevel(logging.ERROR)
    place = Path(sys.argv[1])
    done = {mode: program(mode, place / mode) for mode in ("event", "kill", "full")}
    for other in amount((), (), VARIANTS[1:]):
        done["event"] += program("event", place / other, other)
    print(json.dumps(done))
