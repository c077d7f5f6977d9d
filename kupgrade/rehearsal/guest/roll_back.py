"""An operator who changes their mind: `roll_back.py STEP` asks for the way back once STEP is done. Stdlib only."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from typing import Any

JOURNALS = "/var/lib/kupgrade/upgrades/*/journal"
PATIENCE = 900.0  # seconds


def records(earlier: frozenset[str]) -> list[dict[str, Any]]:
    """Those of the newest upgrade that is not one of the `earlier` ones, without a torn tail."""
    found: list[dict[str, Any]] = []
    paths = sorted({*glob.glob(JOURNALS)} - earlier)
    if paths:
        with open(paths[-1], "rb") as file:
            for line in file:
                try:
                    found.append(json.loads(line[9:]))  # behind the line's checksum
                except ValueError:
                    break
    return found


def done(step: str, earlier: frozenset[str]) -> bool:
    """Whether the open upgrade has done the step."""
    kinds: list[str] = []
    for record in records(earlier):
        if record.get("kind") == "planned":
            kinds = [each["kind"] for phase in record["data"]["plan"]["phases"] for each in phase["steps"]]
        elif record.get("kind") == "done" and kinds[record["step"]] == step:
            return True
    return False


def main() -> None:
    earlier = frozenset(glob.glob(JOURNALS))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if os.path.exists("/var/lib/kupgrade/current") and done(sys.argv[1], earlier):
            os.execv("/usr/bin/kupgrade", ["kupgrade", "rollback", "--no-wait"])
        time.sleep(0.05)


if __name__ == "__main__":
    main()
