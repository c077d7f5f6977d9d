from __future__ import annotations

import errno

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import kexec
from kupgrade.kernel.libc import Libc


@pytest.fixture
def images(put):
    return put("boot/vmlinuz", "kernel"), put("boot/initrd", "initrd")


def test_load_passes_both_files_and_the_whole_command_line(libc, images):
    """load() hands the kernel both descriptors and the command line as given."""
    kexec.load(libc, images[0], images[1], "root=/dev/vda quiet")
    assert libc.calls == [("kexec_file_load", True, True, b"root=/dev/vda quiet", 0)]


def test_load_without_initrd_says_so(libc, images):
    """Without an initrd the flag KEXEC_FILE_NO_INITRAMFS is set, else descriptor -1 would be an error."""
    kexec.load(libc, images[0], None, "")
    assert libc.calls == [("kexec_file_load", True, False, b"", kexec.FILE_NO_INITRAMFS)]


def test_busy_is_tried_again(libc, images):
    """EBUSY means that somebody holds the kexec lock for a moment: the load is tried again."""
    libc.errors["kexec_file_load"] = [errno.EBUSY, errno.EBUSY]
    kexec.load(libc, images[0], images[1], "")
    assert len(libc.calls) == 3


def test_busy_for_ever_ends_at_the_deadline(libc, images, monkeypatch):
    """EBUSY that does not pass becomes an error instead of an endless wait."""
    monkeypatch.setattr(kexec, "BUSY_DEADLINE", 0.1)
    libc.errors["kexec_file_load"] = [errno.EBUSY] * 1000
    with pytest.raises(KernelError) as caught:
        kexec.load(libc, images[0], images[1], "")
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("number", [n for n in kexec.REMEDIES if n != errno.EBUSY])
def test_every_other_error_is_final_and_has_a_remedy(libc, images, number):
    """Errors that do not pass are raised at once, name the image and say what to do."""
    libc.errors["kexec_file_load"] = [number]
    with pytest.raises(KernelError) as caught:
        kexec.load(libc, images[0], images[1], "")
    assert (caught.value.errno, caught.value.path) == (number, str(images[0]))
    assert caught.value.remedy
    assert len(libc.calls) == 1


def test_load_of_an_absent_image_never_reaches_the_system_call(libc, tmp_path):
    """A missing file is reported as such."""
    with pytest.raises(KernelError) as caught:
        kexec.load(libc, tmp_path / "vmlinuz", None, "")
    assert caught.value.call == "open"
    assert not libc.calls


def test_unload_asks_for_unloading(libc):
    """unload() sets KEXEC_FILE_UNLOAD."""
    kexec.unload(libc)
    assert libc.calls[0][-1] & kexec.FILE_UNLOAD


def test_execute_without_a_loaded_kernel_is_explained(libc):
    """EINVAL of reboot(2) means that no kernel is loaded."""
    libc.errors["reboot"] = [errno.EINVAL]
    with pytest.raises(KernelError, match="No kernel is loaded"):
        kexec.execute(libc)
    assert libc.calls == [("reboot", 0x45584543)]


@pytest.mark.parametrize("folder", ["sys/kernel/kexec_", "sys/kernel/kexec/"])
def test_state_is_read_from_the_old_and_the_new_place(put, tmp_path, folder):
    """Linux 7.2 moved the files to /sys/kernel/kexec/: both are understood."""
    put(folder + "loaded", "1\n")
    put(folder + "crash_loaded", "0\n")
    put(folder + "crash_size", "268435456\n")
    put("proc/sys/kernel/kexec_load_disabled", "0\n")
    put("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    state = kexec.read_state(tmp_path)
    assert state == kexec.KexecState(True, True, False, 256 << 20, False, kexec.Lockdown.INTEGRITY)


def test_a_kernel_without_kexec_is_told_from_one_with_nothing_loaded(tmp_path):
    """What is not there is unknown, not false."""
    state = kexec.read_state(tmp_path)
    assert state == kexec.KexecState(False, None, None, None, None, kexec.Lockdown.UNKNOWN)


def test_an_unknown_architecture_is_refused():
    """Without a known system call number nothing is called at all."""
    with pytest.raises(KernelError, match="known for"):
        Libc("sparc64")
