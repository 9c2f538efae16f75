"""Standard output and error that break, in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from processes import redirected

# What is written at once, by print, by a library and by a process that is started afterwards.
SCRIPT = """
import os, subprocess, sys
from segtrain.runtime import console
with console.forgiving():
    for number in range(3):
        print("text", number, flush=True)
    os.write(1, b"library")
    print("an error", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo a child; exit 0"], check=True)
    with open(sys.argv[1], "w") as file:
        file.write(str(file.fileno()))
    print("kept until the end")
"""


@pytest.mark.parametrize("streams", ["pipe", ">&- 2>&-", ">/dev/full 2>&1", "<&- >&- 2>/dev/full"])
def test_a_command_ends_with_0_and_its_files_whatever_becomes_of_its_streams(
    tmp_path: Path, streams: str
) -> None:
    done = redirected(streams, sys.executable, "-c", SCRIPT, tmp_path / "file")
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "file").read_text()) > 2, "a file of ours has a standard stream's number"


def test_what_can_be_written_arrives_whole_and_in_order(tmp_path: Path) -> None:
    done = redirected("", sys.executable, "-c", SCRIPT, tmp_path / "file")
    assert done.stdout == "text 0\ntext 1\ntext 2\nlibrarya child\nkept until the end\n"
    assert done.stderr == "an error\n"
