"""What /dev/liveupdate answers, case by case, over three kernels: one table for the kernel and for the fake of it.

A case returns what it saw: a word, or the class of the error and its errno.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.fakes.liveupdate_arrived import SECOND, THIRD
from tests.fakes.liveupdate_made import FIRST
from tests.fakes.liveupdate_rig import Case

TABLES: Mapping[str, Sequence[Case]] = {"first": FIRST, "second": SECOND, "third": THIRD}
FILES = ("liveupdate_rig.py", "liveupdate_made.py", "liveupdate_arrived.py", "liveupdate_cases.py")
