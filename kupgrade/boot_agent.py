"""The agent of a boot: as `kupgrade resume`, with restorers that get ready while it imports.

`kupgrade-resume.service` starts it, and beside the init system the script that a crossing puts in front of that.
"""

from __future__ import annotations

import sys

from kupgrade.machine import nursery


def main(argv: list[str]) -> int:
    """See resume.main, imported late: what comes after the nursery is done by two processors at once."""
    nursery.begin()
    from kupgrade import resume

    return resume.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
