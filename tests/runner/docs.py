#!/usr/bin/env python3
"""Documents the crates of the workspace with warnings as errors, against the libraries of the last build.

    docs.py RECORDS

RECORDS holds the command line of every crate that tests/runner/rustc compiled. `cargo doc` cannot use those libraries: it would
check all dependencies anew, aws-sdk-ec2 among them. A crate that was documented after it was compiled is left out.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Options of rustc that say what to generate, each with a value.
DROPPED = {"--emit", "--out-dir", "-C", "--error-format", "--json", "--diagnostic-width"}


def read(record: Path) -> tuple[dict[str, str], list[str]]:
    environment, _, arguments = record.read_bytes().decode().partition("\0\0")
    pairs = (line.split("=", 1) for line in environment.split("\0") if line)
    return dict(pairs), arguments.rstrip("\0").split("\0")


def options(arguments: list[str]) -> list[str]:
    kept = []
    rest = iter(arguments)
    for argument in rest:
        if argument in DROPPED:
            next(rest)
        elif argument.partition("=")[0] not in DROPPED and not argument.startswith("-C"):
            kept.append(argument)
    return kept


def document(record: Path) -> tuple[str, bool, str]:
    done = record.with_name(f".{record.name}.documented")
    environment, arguments = read(record)
    source = next(a for a in arguments if a.endswith(".rs"))
    # The record of a crate that the workspace no longer has.
    if not os.path.exists(source):
        record.unlink()
        return record.name, True, ""
    if done.exists() and done.stat().st_mtime >= record.stat().st_mtime:
        return record.name, True, ""
    began = record.stat().st_mtime
    command = [os.environ.get("RUSTDOC", "rustdoc"), *options(arguments), "-Dwarnings"]
    # As cargo doc does: in a program everything is private.
    if record.name.endswith("-bin"):
        command.append("--document-private-items")
    with tempfile.TemporaryDirectory() as scratch:
        result = subprocess.run(
            [*command, "--out-dir", scratch], env=os.environ | environment, capture_output=True, text=True
        )
    if result.returncode == 0:
        done.touch()
        os.utime(done, (began, began))
    return record.name, result.returncode == 0, result.stdout + result.stderr


def main() -> int:
    records = [p for p in sorted(Path(sys.argv[1]).iterdir()) if not p.name.startswith(".")]
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, good, output in pool.map(document, records):
            if output:
                print(f"{name}:\n{output}", end="")
            failed += not good
    print(f"{len(records) - failed} crates documented, {failed} with errors")
    return 1 if failed or not records else 0


sys.exit(main())
