"""System V objects out of /proc/sysvipc."""

from __future__ import annotations

from pathlib import Path

from kupgrade.kernel import sysvipc
from kupgrade.kernel.sysvipc import IpcObject

SHM = """\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime
   5403713          3   600                    56   812   900      7   105   109   105   109 1700000000          0
"""
SEM = """\
       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime
         0          1   600         17   106   109   105   109          0 1700000000
"""


def test_objects_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    """What the kernel has no file for, there is none of."""
    folder = tmp_path / "proc/sysvipc"
    folder.mkdir(parents=True)
    (folder / "shm").write_text(SHM)
    (folder / "sem").write_text(SEM)
    shm, sem = sysvipc.objects(tmp_path)
    assert shm == IpcObject("shm", 3, 105, 105, 56)
    assert sem == IpcObject("sem", 1, 106, 105)
    assert sysvipc.objects(tmp_path / "nothing") == ()


def test_an_object_belongs_to_who_owns_it_and_to_who_made_it() -> None:
    """The owner can be changed (shmctl(2), IPC_SET)."""
    (sem,) = sysvipc.parse("sem", SEM)
    assert sem.belongs({106})
    assert sem.belongs({105})
    assert not sem.belongs({0, 33})
