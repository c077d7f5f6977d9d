"""Sessions of the live update device: the cases on the fake, the binding against the header, errors in words."""

from __future__ import annotations

import errno
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import liveupdate, liveupdate_errors
from kupgrade.kernel.liveupdate import END, NAME, SESSION, TRANSFER, Device, Session
from kupgrade.kernel.liveupdate_errors import (
    BadNameError,
    DeviceBusyError,
    FullError,
    HandoverDamagedError,
    LiveUpdateError,
    NotAllowedError,
    NotThereError,
    SessionExistsError,
    SessionLostError,
)
from tests.fakes.liveupdate import FakeLiveUpdate
from tests.fakes.liveupdate_arrived import SECOND, THIRD
from tests.fakes.liveupdate_made import FIRST, leave
from tests.fakes.liveupdate_rig import Case, Rig

HEADER = Path("/usr/include/linux/liveupdate.h")


def open_files() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def fake() -> FakeLiveUpdate:
    return FakeLiveUpdate()


@pytest.fixture
def rig(fake: FakeLiveUpdate) -> Rig:
    return Rig(fake, Path("/dev/shm"), fake.share)


@pytest.mark.parametrize("case", [each for each in FIRST if not each.real_only], ids=lambda case: case.name)
def test_the_fake_answers_as_the_kernel_does(rig: Rig, fake: FakeLiveUpdate, case: Case) -> None:
    """One kernel: each case of the table gives what the kernel was seen to give, and leaves nothing open."""
    assert case.seen(rig) == case.expected
    assert (fake.outgoing, fake.incoming) == ({}, {})


def test_the_fake_hands_over_as_the_kernel_does(rig: Rig, fake: FakeLiveUpdate) -> None:
    """Three kernels: what is held open arrives, what is not retrieved goes."""
    leave(rig)
    for table in (SECOND, THIRD):
        fake.kexec()
        rig.kept.clear()
        assert [(each.name, each.seen(rig)) for each in table] == [(each.name, each.expected) for each in table]


@pytest.mark.parametrize("table", [FIRST, SECOND, THIRD])
def test_every_case_has_a_name_of_its_own(table: list[Case]) -> None:
    """A result is found by its name."""
    assert len({each.name for each in table}) == len(table)


def test_a_kernel_that_does_not_take_over_loses_everything(fake: FakeLiveUpdate) -> None:
    """A reset, kexec_load(2), or a kernel with another format."""
    liveupdate.create_session("one", calls=fake)
    fake.kexec(takes_over=False)
    with pytest.raises(SessionLostError):
        liveupdate.retrieve_session("one", calls=fake)


def test_a_process_that_dies_takes_its_sessions_with_it(fake: FakeLiveUpdate) -> None:
    """Unless another one has a descriptor, too."""
    alone, shared = (liveupdate.create_session(name, calls=fake) for name in ("alone", "shared"))
    fake.share(shared.fileno())
    fake.die(alone.fileno(), shared.fileno())
    assert [liveupdate.session_lives(name, calls=fake) for name in ("alone", "shared")] == [False, True]


def test_the_binding_is_that_of_the_header(tmp_path: Path) -> None:
    """Requests and sizes as gcc sees them, where a header of Linux 7 is installed."""
    if not HEADER.exists() or not shutil.which("gcc"):
        assert (SESSION.size, TRANSFER.size, END.size, NAME.size) == (72, 16, 8, 72)
        return
    wanted = {
        "LIVEUPDATE_IOCTL_CREATE_SESSION": liveupdate.CREATE_SESSION,
        "LIVEUPDATE_IOCTL_RETRIEVE_SESSION": liveupdate.RETRIEVE_SESSION,
        "LIVEUPDATE_SESSION_PRESERVE_FD": liveupdate.PRESERVE_FD,
        "LIVEUPDATE_SESSION_RETRIEVE_FD": liveupdate.RETRIEVE_FD,
        "LIVEUPDATE_SESSION_FINISH": liveupdate.FINISH,
        "LIVEUPDATE_SESSION_GET_NAME": liveupdate.GET_NAME,
        "sizeof(struct liveupdate_ioctl_create_session)": SESSION.size,
        "sizeof(struct liveupdate_session_retrieve_fd)": TRANSFER.size,
        "sizeof(struct liveupdate_session_finish)": END.size,
        "sizeof(struct liveupdate_session_get_name)": NAME.size,
    }
    lines = "".join(
        f"_Static_assert({what} == {value}, {what!a});\n".replace("'", '"') for what, value in wanted.items()
    )
    (tmp_path / "abi.c").write_text(f"#include <linux/liveupdate.h>\n{lines}")
    subprocess.run(["gcc", "-fsyntax-only", tmp_path / "abi.c"], check=True)


@pytest.mark.parametrize("name", ["", "n" * 64, "ü" * 32, "a\0b"])
def test_a_name_that_cannot_be_is_refused_before_the_kernel_sees_it(fake: FakeLiveUpdate, name: str) -> None:
    """The kernel would say EINVAL, which has other meanings."""
    with Device.opened(calls=fake) as device:
        asked = len(fake.log)
        for call in (device.create_session, device.retrieve_session, device.session_lives):
            with pytest.raises(BadNameError, match="1 to 63 bytes"):
                call(name)
        assert len(fake.log) == asked


def test_a_kernel_without_the_device(tmp_path: Path) -> None:
    """The remedy names what is missing; the path is below the root."""
    with pytest.raises(NotThereError, match="no live update device") as caught:
        liveupdate.create_session("one", tmp_path)
    assert caught.value.path == str(tmp_path / "dev/liveupdate")
    assert "liveupdate=on" in caught.value.remedy
    assert caught.value.errno == errno.ENOENT


def test_a_file_that_is_not_the_device(tmp_path: Path) -> None:
    """The kernel's answer to an unknown request comes out as an error with its errno, and nothing stays open."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/liveupdate").write_text("")
    opened = open_files()
    with pytest.raises(LiveUpdateError) as caught:
        liveupdate.create_session("one", tmp_path)
    assert caught.value.errno == errno.ENOTTY
    assert open_files() == opened


def test_a_device_that_is_busy_is_waited_for(fake: FakeLiveUpdate) -> None:
    """It is exclusive, and held for moments by everybody who behaves."""
    fake.refusals[fake.OPEN] = [errno.EBUSY] * 3
    liveupdate.create_session("one", calls=fake).close()
    assert [request for request, _ in fake.log].count(fake.OPEN) == 4


def test_waiting_for_the_device_has_an_end(fake: FakeLiveUpdate) -> None:
    """Somebody keeps it."""
    with Device.opened(calls=fake):
        began = time.monotonic()
        with pytest.raises(DeviceBusyError):
            Device.opened(calls=fake, patience=0.1)
        assert 0.1 <= time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, NotAllowedError),
        (errno.ENXIO, NotThereError),
        (errno.EIO, HandoverDamagedError),
        (errno.EMFILE, LiveUpdateError),
    ],
)
def test_other_refusals_of_the_device(fake: FakeLiveUpdate, number: int, expected: type[LiveUpdateError]) -> None:
    """Not waited for."""
    fake.refusals[fake.OPEN] = [number]
    with pytest.raises(LiveUpdateError) as caught:
        liveupdate.session_lives("one", calls=fake)
    assert type(caught.value) is expected
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("request_", "number", "expected"),
    [
        (liveupdate.CREATE_SESSION, errno.ENOMEM, FullError),
        (liveupdate.CREATE_SESSION, errno.EMFILE, LiveUpdateError),
        (liveupdate.RETRIEVE_SESSION, errno.EIO, LiveUpdateError),
    ],
)
def test_the_device_is_let_go_of_after_an_error(
    fake: FakeLiveUpdate, request_: int, number: int, expected: type[LiveUpdateError]
) -> None:
    """Or nobody could ever open it again."""
    fake.refusals[request_] = [number]
    call = liveupdate.create_session if request_ == liveupdate.CREATE_SESSION else liveupdate.retrieve_session
    with pytest.raises(LiveUpdateError) as caught:
        call("one", calls=fake)
    assert type(caught.value) is expected
    Device.opened(calls=fake, patience=0.0).close()


def test_an_unsure_answer_is_not_taken_for_a_no(fake: FakeLiveUpdate) -> None:
    """session_lives says neither yes nor no when the kernel could not make a session for another reason."""
    fake.refusals[liveupdate.CREATE_SESSION] = [errno.ENOMEM]
    with pytest.raises(FullError):
        liveupdate.session_lives("one", calls=fake)


def test_every_error_says_what_why_and_what_to_do() -> None:
    """And is a KernelError with the errno, for those who only ask that."""
    error = SessionExistsError("CREATE_SESSION", "kupgrade", errno.EEXIST)
    assert isinstance(error, KernelError)
    assert (error.call, error.path, error.errno) == ("CREATE_SESSION", "kupgrade", errno.EEXIST)
    assert str(error) == (
        "CREATE_SESSION failed on kupgrade: an outgoing session of that name is held open (EEXIST). "
        "Close it, or end the process that holds it: what is in it is given up then"
    )
    for each in vars(liveupdate_errors).values():
        if isinstance(each, type) and issubclass(each, LiveUpdateError) and each is not LiveUpdateError:
            assert each.reason, each


def test_a_session_is_closed_once(fake: FakeLiveUpdate) -> None:
    """A second close would hit whatever has the number then; calls on it fail with EBADF."""
    session = liveupdate.create_session("one", calls=fake)
    session.close()
    session.close()
    assert session.fileno() == -1
    with pytest.raises(LiveUpdateError) as caught:
        session.finish()
    assert caught.value.errno == errno.EBADF


def test_a_detached_descriptor_outlives_its_object(fake: FakeLiveUpdate) -> None:
    """It is handed to another process, and taken up there by number."""
    with liveupdate.create_session("one", calls=fake) as session:
        fd = session.detach()
    assert liveupdate.session_lives("one", calls=fake)
    with Session.inherited(fd, fake) as again:
        assert again.name == "one"
    assert not liveupdate.session_lives("one", calls=fake)
