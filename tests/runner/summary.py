#!/usr/bin/env python3
"""Prints what failed, what was slow and one line per tier; exits with 1 unless all of it is well.

    summary.py LOGS

LOGS holds what tests/run has recorded: `tiers` (a tier and the packages of its tests; `*` is every package of no other tier),
`steps` (parts of tiers that are no tests: tier, name, exit code, seconds), `runs` (exit codes of nextest), `times`, `memory`, and
nextest's reports.
"""

import os
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

SKIPPED = 77
# Lines of output of a failed test or step: enough for a panic with its message, short enough to read many.
TAIL = 40
SLOWEST = 12


@dataclass
class Tier:
    passed: int = 0
    failed: int = 0
    seconds: float = 0
    skips: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def rows(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []


def tail(text: str) -> str:
    lines = text.rstrip().splitlines()
    # The panic, and what stands before and after it; else the end.
    at = next((i for i, line in enumerate(lines) if "panicked at" in line or line.startswith("error")), None)
    lines = lines[-TAIL:] if at is None else lines[max(0, at - TAIL // 2) : at + TAIL // 2]
    return "\n".join(f"    {line}" for line in lines)


def output(case: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in case if part.tag in ("system-out", "system-err"))


def read_reports(logs: Path, tier_of, tiers: dict[str, Tier]) -> list[tuple[float, str]]:
    slow = []
    for report in sorted(logs.glob("junit-*.xml")):
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            binary = suite.get("name", "")
            tier = tiers[tier_of(binary.split("::")[0])]
            for case in suite.iter("testcase"):
                name = f"{binary} {case.get('name')}"
                seconds = float(case.get("time", 0))
                tier.seconds += seconds
                slow.append((seconds, name))
                bad = next((part for part in case if part.tag in ("failure", "error")), None)
                if bad is None:
                    tier.passed += 1
                    tier.skips += [line for line in output(case).splitlines() if line.startswith("SKIPPED")]
                else:
                    tier.failed += 1
                    text = output(case) or bad.text or ""
                    tier.failures.append((f"{name}: {bad.get('type', 'failed')} after {seconds:.0f} s", tail(text)))
    return sorted(slow, reverse=True)


def read_steps(logs: Path, tiers: dict[str, Tier]) -> None:
    for name, step, code, seconds in rows(logs / "steps"):
        tier = tiers[name]
        tier.seconds += int(seconds)
        log = logs / f"{name}-{step}.log"
        said = log.read_text(errors="replace") if log.exists() else ""
        if int(code) == 0:
            tier.passed += 1
        elif int(code) == SKIPPED:
            lines = said.strip().splitlines()
            tier.skips.append(lines[-1].removeprefix("SKIPPED: ") if lines else "without a reason")
        else:
            tier.failed += 1
            tier.failures.append((f"{name}: {step}: exit code {code}; see {log}", tail(said)))


def main() -> int:
    logs = Path(sys.argv[1])
    chosen = {tier: packages.split() for tier, packages in rows(logs / "tiers")}
    tier_of_package = {package: tier for tier, packages in chosen.items() for package in packages}
    tiers: dict[str, Tier] = defaultdict(Tier)
    slow = read_reports(logs, lambda package: tier_of_package.get(package, "unit"), tiers)
    tested = {tier: result.passed + result.failed for tier, result in tiers.items()}
    read_steps(logs, tiers)
    for tier, packages in chosen.items():
        if packages and not tested.get(tier):
            tiers[tier].failed += 1
            tiers[tier].failures.append((f"{tier}: none of its tests has run", ""))
    for run, code in rows(logs / "runs"):
        # 100: tests failed, which their tiers tell.
        if code not in ("0", "100") or (code == "100" and not any(tier.failed for tier in tiers.values())):
            tiers["runner"].failed += 1
            log = logs / f"{run}.log"
            tiers["runner"].failures.append((f"nextest ended with {code}; see {log}", tail(log.read_text(errors="replace"))))

    print()
    for seconds, name in slow[:SLOWEST]:
        print(f"  {seconds:6.1f} s  {name}")
    for what, seconds in rows(logs / "times"):
        print(f"  {int(seconds):6d} s  {what}")
    if (logs / "memory").exists():
        print(f"  {int((logs / 'memory').read_text()) / 2**20:6.1f} GiB of this machine's memory in use at most")
    # Near the end: of a long output that is what is kept, and read first.
    for name, tier in tiers.items():
        if tier.failures:
            print(f"\n== {name}: what failed")
            for title, text in tier.failures:
                print(f"  {title}\n{text}")

    print("\n== summary (seconds add up over tests that ran at the same time)")
    passed = failed = skipped = 0
    for name in [*chosen, *(name for name in tiers if name not in chosen)]:
        tier = tiers[name]
        counts = f"{tier.passed} passed, {tier.failed} failed"
        if tier.failed:
            failed += 1
            line = f"FAILED   {counts}"
        elif tier.passed:
            passed += 1
            line = f"ok       {counts}"
        elif tier.skips:
            line = f"SKIPPED  {tier.skips[0]}"
        else:
            failed += 1
            line = "FAILED   nothing has run"
        skipped += len(tier.skips)
        if tier.skips and (tier.passed or tier.failed):
            line += f"; {len(tier.skips)} SKIPPED inside: {tier.skips[0]}"
        print(f"{name:13} {tier.seconds:5.0f} s  {line}")
    if skipped and os.environ.get("CI") == "true":
        print("a skip is a failure with CI=true")
        failed += 1
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


sys.exit(main())
