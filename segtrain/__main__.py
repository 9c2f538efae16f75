"""`python -m segtrain ...`: the segtrain command, and what launchers start in every process."""

from __future__ import annotations

import sys

from segtrain.commands import main, train

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        train.worker(sys.argv[2:])
    elif len(sys.argv) > 1 and sys.argv[1] == "--job":
        train.job(sys.argv[2:])
    elif len(sys.argv) > 1 and sys.argv[1] in main.COMMANDS:
        main.COMMANDS[sys.argv.pop(1)]()
    else:
        main.segtrain()
