"""The folder of one hostile case: what a stranger wrote, what is ours, and what it looks like."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from warm import Ended

# One step of the smallest run there is, should something be trained that should not.
TINY = (
    "dataset=shapes",
    "dataset.train=2",
    "dataset.val=1",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "model=unet_32",
    "model.width=8",
    "optimizer=sgd",
    "train.steps=1",
    "train.batch_size=2",
    "train.precision=fp32",
    "train.eval_every=1",
    "train.threads=1",
    "train.device=cpu",
    "writer=[]",
    "log.progress=false",
    "log.images=0",
)
SECRET = "hunter2-of-the-victim"


class Places:
    """A user's folder `work`, beside it `victim`, which nobody may touch, and the stranger's."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.canary = base / "canary"  # must never exist
        self.work = base / "work"
        self.victim = base / "victim"
        self.stranger = base / "stranger"  # given as --config-dir
        self.weapons = base / "weapons"  # what configs point at
        for folder in (self.work, self.victim, self.stranger, self.weapons, base / "home"):
            folder.mkdir()
        (self.victim / "precious.txt").write_text("precious\n")
        (self.victim / "config.yaml").write_text(f"train:\n  monitor: {SECRET}\n")
        harm = f"open({str(self.canary)!r}, 'w').close()\n"
        for name in ("hubconf.py", "sitecustomize.py", "usercustomize.py"):
            (self.weapons / name).write_text(harm)
        # By hand, in the oldest protocol: call os.system with one string.
        pickled = f"cos\nsystem\n(S'touch {self.canary}'\ntR."
        (self.weapons / "weights.bin").write_bytes(pickled.encode())
        (self.weapons / "conf" / "model").mkdir(parents=True)
        (self.weapons / "conf" / "model" / "weapon.yaml").write_text("_target_: os.getcwd\n")

    @property
    def env(self) -> dict[str, str]:
        """The user's environment."""
        return {"HOME": str(self.base / "home"), "SECRET": SECRET, "BASE": str(self.base)}

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Write the stranger's configs, with their placeholders filled in."""
        for name, content in files.items():
            path = self.stranger / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                content = self.filled(content).encode()
            path.write_bytes(content)

    def filled(self, text: str) -> str:
        """A text with @CANARY@, @VICTIM@ and @WEAPONS@ as paths."""
        for name in ("canary", "victim", "weapons"):
            text = text.replace(f"@{name.upper()}@", str(vars(self)[name]))
        return text

    def look(self, without: Collection[str] = ()) -> dict[str, str]:
        """Every entry below the base with what it is; links are not followed."""
        found = {}
        for folder, names, files in os.walk(self.base):
            for name in (*names, *files):
                path = Path(folder, name)
                if path.is_symlink():
                    what = f"link to {path.readlink()}"
                elif path.is_file():
                    what = hashlib.sha256(path.read_bytes()).hexdigest()
                else:
                    what = "folder" if path.is_dir() else "special"
                found[str(path.relative_to(self.base))] = what
        return {name: what for name, what in found.items() if name not in without}


def assert_one_line(ended: Ended, name: str, code: int, *words: str) -> None:
    """The command ended with `code` and one printable line with all of `words`."""
    told = f"exit {ended.code} after {ended.seconds:.1f} s\n{ended.err[-2000:]}"
    assert "Traceback" not in ended.out + ended.err, told
    assert ended.code == code, told
    lines = ended.err.splitlines()
    assert len(lines) == 1, told
    assert lines[0].startswith(f"{name}: "), told
    assert lines[0].isprintable(), told
    assert len(lines[0]) < 1000, told
    for word in words:
        assert word in lines[0], (word, told)


def shown(ended: Ended, folder: Path) -> str:
    """All that a command said, and all text that lies below `folder`."""
    kinds = (".json", ".jsonl", ".log", ".txt", ".html", ".md", ".csv")
    files = (path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())
    return "".join([ended.out, ended.err, *(path.read_text() for path in files)])
