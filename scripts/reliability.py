"""Run the matrix of failures and print its coverage table.

Run:  python scripts/reliability.py                 the fast form, some ten minutes on two cores
      python scripts/reliability.py --long          the long form, some hours
      python scripts/reliability.py --rows R1 R5    these rows alone

Every row of the matrix (docs/reliability.md) is shown by tests that are marked with its name; the
table says how many cases ran, by which seeds, where kills landed, and what failed. It is printed at
the end, after Ctrl-C too, and stays in `--out` beside the output of the tests. The exit code is 1
where a case failed or a row has fewer cases than its form demands.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from rows import ROWS  # noqa: E402  (the rows are the tests' own)

# What a test that passed has written is gigabytes, over the hours of the long form.
TIDY = ["-o", "tmp_path_retention_policy=failed", "-p", "no:cacheprovider"]

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--long", action="store_true", help="the long form")
parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=[], help="only these")
parser.add_argument("--out", type=Path, default=Path("outputs/reliability"), help="folder")
parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="shares of tests")


def records(files: list[Path]) -> list[dict[str, Any]]:
    """Return the whole lines that the tests have written so far."""
    texts = [file.read_text() for file in files if file.exists()]
    lines = "".join(texts).splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def table(lines: list[dict[str, Any]], long: bool, rows: list[str]) -> tuple[str, bool]:
    """Return the coverage table, and whether every row has what it demands."""
    shown = [
        "| row | what happens | cases | demanded | seeds | kills before / between / inside saves "
        "| failed | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = True
    for name, row in ROWS.items():
        if rows and name not in rows:
            continue
        mine = [line for line in lines if name in line["rows"]]
        cases = sum(line["cases"] for line in mine)
        failed = [line["test"] for line in mine if line["failed"]]
        demanded = row.long if long else row.fast
        seeds = sorted({seed for line in mine for seed in line["seeds"]})
        landed = [sum(line[where] for line in mine) for where in ("before", "between", "inside")]
        kills = " / ".join(map(str, landed)) if any(landed) else ""
        seconds = sum(line["seconds"] for line in mine)
        on_gpu = "needs a GPU" in row.what
        whole &= not failed and (cases >= demanded or on_gpu)
        shown.append(
            f"| {name} | {row.what} | {cases:,} | {demanded:,} | "
            f"{', '.join(map(str, seeds))} | {kills} | {len(failed)} | {seconds:.0f} |"
        )
    total = sum(line["cases"] for line in lines)
    failures = [line["test"] for line in lines if line["failed"]]
    skipped = sum(line["skipped"] for line in lines)
    shown += ["", f"{total:,} cases in {len(lines):,} tests, {skipped} skipped"]
    shown += [f"failed: {test}" for test in failures]
    return "\n".join(shown), whole


def main() -> None:
    """Run the tests in shares, say how far they are, print the table."""
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shares = range(options.processes)
    files = [options.out / f"cases_{share}.jsonl" for share in shares]
    logs = [options.out / f"tests_{share}.log" for share in shares]
    running = []
    for share, file, log in zip(shares, files, logs, strict=True):
        file.unlink(missing_ok=True)
        environment = {
            "SEGTRAIN_RELIABILITY": "all" if options.long else "fast",
            "SEGTRAIN_ROWS_RECORD": str(file.resolve()),
            "SEGTRAIN_ROWS_SHARE": f"{share}/{options.processes}",
            "SEGTRAIN_ROWS": " ".join(options.rows),
            "OMP_NUM_THREADS": "1",
        }
        with log.open("w") as output:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "pytest", "-q", "-m", "row and not gpu", *TIDY],
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    began = time.monotonic()
    told = began
    try:
        while any(process.poll() is None for process in running):
            time.sleep(0.5)
            if time.monotonic() - told > 15:
                told = time.monotonic()
                done = records(files)
                cases = sum(line["cases"] for line in done)
                print(f"{told - began:.0f} s: {len(done)} tests, {cases:,} cases", flush=True)
    except KeyboardInterrupt:
        for process in running:
            process.terminate()
    text, whole = table(records(files), options.long, options.rows)
    seconds = time.monotonic() - began
    text += f"\n{seconds:.0f} s in {options.processes} processes; the tests' output: {options.out}"
    (options.out / "coverage.md").write_text(text + "\n")
    print(text)
    ended = [process.wait() for process in running]
    # 5 is pytest's code of a share without tests.
    sys.exit(0 if whole and set(ended) <= {0, 5} else 1)


if __name__ == "__main__":
    main()
