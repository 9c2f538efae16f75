"""`python -m segtrain ...`: the segtrain command, and what launchers start in every process."""

from __future__ import annotations

import sys

from segtrain.commands import main

if __name__ == "__main__":
    if sys.argv[1:2] in (["--worker"], ["--job"]):
        from segtrain.commands import train

        {"--worker": train.worker, "--job": train.job}[sys.argv[1]](sys.argv[2:])
    elif len(sys.argv) > 1 and sys.argv[1] in main.COMMANDS:
        main.COMMANDS[sys.argv.pop(1)]()
    else:
        main.segtrain()
