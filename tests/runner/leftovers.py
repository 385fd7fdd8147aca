#!/usr/bin/env python3
"""Ends what a run of the tests left behind, and reports it.

    leftovers.py before FOLDER    records the mounts and loop devices of this machine
    leftovers.py after FOLDER     ends processes, mounts and loop devices of the run

FOLDER belongs to the run. FOLDER/scenarios is REATTACH_SCENARIOS of all its processes, and by this they are known. In it, each
process that serves several tests has written its number to NAME.pid; it ends itself when the file `stop` appears.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# For processes that end themselves: they stop a control plane, and machines with mounts.
PATIENCE = 60


def mounts() -> list[str]:
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    return [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]


def loops() -> dict[str, str]:
    command = ["losetup", "--json", "--list", "--output", "NAME,BACK-FILE"]
    try:
        output = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return {}
    return {d["name"]: d["back-file"] or "" for d in json.loads(output or '{"loopdevices": []}')["loopdevices"]}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (OSError, IndexError):
        return False


def ours(path: str) -> bool:
    """A path in the cache, or in a temporary folder of a test whose process has ended."""
    cache = os.environ.get("REATTACH_CACHE", "")
    if cache and path.startswith(cache + "/"):
        return True
    owner = re.match(re.escape(tempfile.gettempdir()) + r"/reattach-[a-z-]*?(\d+)-", path)
    return bool(owner) and not alive(int(owner[1]))


def processes(scenarios: str) -> dict[int, str]:
    """The run's processes with their names: those with its variable, and all that descend from them."""
    mark = b"REATTACH_SCENARIOS=" + scenarios.encode()
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or not alive(pid := int(entry)):
            continue
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        name, _, rest = stat.partition("(")[2].rpartition(") ")
        names[pid] = name
        children.setdefault(int(rest.split()[1]), []).append(pid)
        if mark in environment.split(b"\0"):
            found.append(pid)
    # This process and those that wait for it.
    spared = set()
    own = os.getpid()
    while own > 1:
        spared.add(own)
        own = next((parent for parent, pids in children.items() if own in pids), 0)
    result: dict[int, str] = {}
    while found:
        pid = found.pop()
        if pid not in result and pid not in spared:
            result[pid] = names[pid]
            found += children.get(pid, [])
    return result


def wait(what, seconds: float):
    """Until nothing is left, or the time is over; what is left then."""
    end = time.monotonic() + seconds
    while (left := what()) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def end_processes(scenarios: Path) -> list[str]:
    said = []
    if scenarios.is_dir():
        (scenarios / "stop").touch()
    hosts = {}
    for file in scenarios.glob("*.pid"):
        text = file.read_text().strip()
        if text.isdigit():
            hosts[int(text)] = file.stem
    for pid in wait(lambda: [pid for pid in hosts if alive(pid)], PATIENCE):
        said.append(f"{hosts[pid]} (process {pid}) did not end within {PATIENCE} s after it was told to stop")
    # Children of a process that just ended may be about to end.
    if left := wait(lambda: processes(str(scenarios)), 3):
        said += [f"process {pid} ({name}) was still running" for pid, name in sorted(left.items())]
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for pid in processes(str(scenarios)):
                try:
                    os.kill(pid, kind)
                except ProcessLookupError:
                    pass
            if not wait(lambda: processes(str(scenarios)), 5):
                break
    return said


def end_mounts(before: dict) -> list[str]:
    said = []
    for point in reversed(mounts()):
        if point not in before["mounts"] and ours(point):
            said.append(f"{point} was still mounted")
            subprocess.run(["umount", "--lazy", point], stderr=subprocess.DEVNULL)
    for device, file in loops().items():
        if before["loops"].get(device) != file and ours(file):
            said.append(f"{device} was still attached to {file}")
            subprocess.run(["losetup", "--detach", device], stderr=subprocess.DEVNULL)
    return said


def main() -> None:
    folder = Path(sys.argv[2])
    record = folder / "before.json"
    if sys.argv[1] == "before":
        record.write_text(json.dumps({"mounts": mounts(), "loops": loops()}))
        return
    said = end_processes(folder / "scenarios")
    if record.exists():
        said += end_mounts(json.loads(record.read_text()))
    if said:
        print("== left behind, and ended now")
        for line in said:
            print(f"  {line}")


main()
