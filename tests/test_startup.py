"""What a run does not use is not imported.

A start is mostly imports, and everybody waits for it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# With torch these were 8.7 s of a start. torch._dynamo comes in with torchvision's detection
# operators, and also with torch's own optimizers (segtrain/optim/eager.py).
UNUSED = ["torchvision", "albumentations", "torch._dynamo", "sympy", "scipy"]
PROGRAM = """
import sys
from segtrain.commands.main import segtrain
from segtrain.engine import train

def update_once(*arguments):
    update(*arguments)
    print("imported:", *sorted(sys.modules))
    raise SystemExit(0)

update, train.update = train.update, update_once
segtrain()
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules that the default run has imported after its first update."""
    folder = tmp_path_factory.mktemp("startup")
    small = ["train.batch_size=2", "train.threads=1", "dataset.crop=[32,32]"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"hydra.run.dir={folder / 'run'}", *small],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("imported:")]
    assert len(lines) == 1, done.stdout + done.stderr
    return set(lines[0].split()[1:])


@pytest.mark.parametrize("library", UNUSED)
def test_the_first_step_of_a_semantic_run_is_made_without(library: str, imported: set[str]) -> None:
    assert "torch" in imported  # the list is one of modules
    assert library not in imported
