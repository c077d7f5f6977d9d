"""Builds the kspawn module for several kernels in a Debian chroot: `python -m tests.kmod.build 6.12 7.3`.

A kernel is named by a prefix of its release. Prints one line a kernel: release and the path of its kspawn.ko.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal.cache import Cache
from kupgrade.rehearsal.spawn_module import choose, module
from kupgrade.rehearsal.suites import Archive, mirror

KERNELS = ("6.12", "7.2", "7.3")


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of `python -m tests.kmod.build`."""
    parser = argparse.ArgumentParser(prog="python -m tests.kmod.build", description=__doc__)
    parser.add_argument("kernel", nargs="*", default=KERNELS, help="a prefix of the release (%(default)s)")
    options = parser.parse_args(argv)
    status = 0
    try:
        archive = Archive(Cache.default(), mirror())
        for wanted in options.kernel:
            headers = choose(archive, wanted)
            try:
                print(headers.release, module(archive, headers), flush=True)
            except KupgradeError as error:
                status = 1
                sys.stderr.write(f"{error}\n")
    except KupgradeError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.code)
    return status


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("a chroot is needed: run this as root")
    sys.exit(main())
