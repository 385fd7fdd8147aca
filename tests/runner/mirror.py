#!/usr/bin/env python3
"""Makes a folder equal to the files of a checkout that git knows.

    mirror.py CHECKOUT FOLDER

Only files whose content differs are written: cargo compiles what has a new modification time, and in a fresh clone that is every
file. Each file appears whole or not at all, so that the next run mends a folder in which an earlier one was killed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def known(checkout: Path) -> set[str]:
    # The clone may belong to another user.
    command = ["git", "-c", "safe.directory=*", "-C", str(checkout), "ls-files", "-z", "--cached"]
    names = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
    return {name for name in names if name and os.path.lexists(checkout / name)}


def content(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return os.readlink(path)
    return path.read_bytes() if path.is_file() else None


def write(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".mirror-part")
    part.unlink(missing_ok=True)
    if source.is_symlink():
        part.symlink_to(os.readlink(source))
    else:
        part.write_bytes(source.read_bytes())
        part.chmod(source.stat().st_mode & 0o777)
    part.replace(target)


def remove(folder: Path, names: set[str]) -> int:
    """Removes what is in the folder and not among the names, and the folders that are empty then."""
    removed = 0
    for here, folders, files in os.walk(folder, topdown=False):
        for name in files + [f for f in folders if os.path.islink(os.path.join(here, f))]:
            path = Path(here, name)
            if str(path.relative_to(folder)) not in names:
                path.unlink()
                removed += 1
        if Path(here) != folder and not os.listdir(here):
            os.rmdir(here)
    return removed


def main() -> int:
    checkout, folder = Path(sys.argv[1]), Path(sys.argv[2])
    names = known(checkout)
    folder.mkdir(parents=True, exist_ok=True)
    # First, so that a file that became a folder is out of the way.
    removed = remove(folder, names)
    written = 0
    for name in sorted(names):
        source, target = checkout / name, folder / name
        if content(source) != content(target):
            write(source, target)
            written += 1
        elif not source.is_symlink() and (source.stat().st_mode ^ target.stat().st_mode) & 0o777:
            target.chmod(source.stat().st_mode & 0o777)
    print(f"{len(names)} files, {written} written, {removed} removed")
    return 0


sys.exit(main())
