"""`descriptor_giver UNIT`: what the unit starts for a moment, so that its descriptors come into its store again."""

from __future__ import annotations

import sys

from kupgrade.errors import KupgradeError
from kupgrade.host import descriptor_store
from kupgrade.machine import descriptor_holder
from kupgrade.machine.places import Places


def main(argv: list[str]) -> int:
    """Ask the holder, hand over, wait until the manager has them."""
    try:
        descriptor_store.add(descriptor_holder.ask_give(Places(), argv[0]))
    except KupgradeError as error:
        sys.stderr.write(f"<3>kupgrade: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
