"""CPUs in sysfs and /proc/cpuinfo: what is unknown stays unknown, and a change counts only when it reads back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel import cpu
from kupgrade.model.machine import CpuSet, NumaNode

Put = Callable[[str, str], Path]
CPU = "sys/devices/system/cpu"


def block(number: int, apic_id: int, flags: str = "fpu lm pdpe1gb x2apic") -> str:
    return (
        f"processor\t: {number}\nvendor_id\t: AuthenticAMD\napicid\t\t: {apic_id}\ninitial apicid\t: {apic_id}\n"
        f"flags\t\t: {flags}\naddress sizes\t: 48 bits physical, 48 bits virtual\npower management:\n"
    )


@pytest.fixture
def machine(put: Put) -> Put:
    """Two cores of two threads on two nodes; CPU 3 is offline."""
    put("proc/cpuinfo", "\n".join(block(number, apic) for number, apic in ((0, 0), (1, 2), (2, 1))))
    for name, text in {"online": "0-2", "present": "0-3", "possible": "0-7", "isolated": ""}.items():
        put(f"{CPU}/{name}", text + "\n")
    for number, siblings in ((0, "0,2"), (1, "1"), (2, "0,2")):
        put(f"{CPU}/cpu{number}/topology/core_cpus_list", siblings)
        put(f"{CPU}/cpu{number}/topology/core_id", str(number % 2))
        put(f"{CPU}/cpu{number}/topology/physical_package_id", "-1" if number == 1 else "0")
    for number in (1, 2):
        put(f"{CPU}/cpu{number}/online", "1\n")
    put(f"{CPU}/cpu3/online", "0\n")
    put("sys/devices/system/node/node0/cpulist", "0,2\n")
    put("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:        2048 kB\n")
    put("sys/devices/system/node/node1/cpulist", "1\n")
    put("sys/devices/system/node/possible", "0-1\n")
    return put


def test_the_topology_is_read(machine: Put, tmp_path: Path) -> None:
    """APIC IDs, cores and nodes of online CPUs; an offline one is present and otherwise unknown."""
    found = cpu.topology(root=tmp_path)
    assert [each.apic_id for each in found.cpus] == [0, 2, 1, None]
    assert found.cores == (CpuSet.of(0, 2), CpuSet.of(1))
    assert [each.node for each in found.cpus] == [0, 1, 0, None]
    assert found.cpu(1).package is None
    assert found.nodes == (NumaNode(0, CpuSet.of(0, 2), 2048 << 10), NumaNode(1, CpuSet.of(1), None))
    assert found.cpu(3).siblings is None


def test_apic_ids_noted_before_are_kept(machine: Put, tmp_path: Path) -> None:
    """The kernel forgets them when a CPU goes offline; what it says now counts more."""
    found = cpu.topology({3: 3, 0: 77}, tmp_path)
    assert [each.apic_id for each in found.cpus] == [0, 2, 1, 3]


def test_the_masks_are_read(machine: Put, tmp_path: Path) -> None:
    """No file for nohz_full is unknown; an empty one for isolcpus is the empty set; (null) is empty too."""
    found = cpu.masks(tmp_path)
    assert (found.present, found.possible) == (CpuSet.of(0, 1, 2, 3), CpuSet.parse("0-7"))
    assert (found.isolated, found.nohz_full) == (CpuSet(), None)
    machine(f"{CPU}/nohz_full", "  (null)\n")
    assert cpu.masks(tmp_path).nohz_full == CpuSet()


def test_features_are_those_of_all_cpus() -> None:
    """A flag that one CPU lacks is not there; physical bits are the fewest."""
    info = cpu.parse_cpuinfo(block(0, 0) + "\n" + block(1, 8, "fpu lm la57").replace("48 bits phy", "46 bits phy"))
    assert info.apic_ids == {0: 0, 1: 8}
    assert info.flags == {"fpu", "lm"}
    assert (info.gib_pages, info.five_levels, info.hypervisor, info.physical_bits) == (False, False, False, 46)
    assert cpu.parse_cpuinfo(block(0, 0)).gib_pages


def test_a_cpu_without_an_apic_id_is_refused() -> None:
    """That is another architecture."""
    with pytest.raises(BadInputError):
        cpu.parse_cpuinfo("processor\t: 0\nBogoMIPS\t: 48.00\n")


@given(st.text(alphabet="processor apicid:0123456789\n\t-", max_size=120))
def test_arbitrary_cpuinfo_is_read_or_refused(text: str) -> None:
    """No text makes the reader fail in another way."""
    try:
        cpu.parse_cpuinfo(text)
    except BadInputError:
        pass


def test_a_cpu_is_taken_offline_and_brought_back(machine: Put, tmp_path: Path) -> None:
    """The file says so afterwards; doing it twice is harmless."""
    for _ in range(2):
        cpu.take_offline(2, tmp_path)
        assert (tmp_path / CPU / "cpu2/online").read_text()[0] == "0"


def test_a_change_that_does_not_read_back_is_an_error(machine: Put, tmp_path: Path, monkeypatch) -> None:
    """The write alone proves nothing."""
    monkeypatch.setattr(cpu, "write_text", lambda path, text: None)
    with pytest.raises(KernelError) as caught:
        cpu.bring_online(3, tmp_path)
    assert caught.value.errno == errno.EAGAIN


def test_a_cpu_that_cannot_go_offline_says_so(machine: Put, tmp_path: Path) -> None:
    """CPU 0 has no such file."""
    assert not cpu.can_go_offline(0, tmp_path)
    assert cpu.can_go_offline(1, tmp_path)
    assert cpu.is_online(0, tmp_path)
    with pytest.raises(KernelError) as caught:
        cpu.take_offline(0, tmp_path)
    assert caught.value.errno == errno.ENOENT


def test_old_kernels_name_siblings_otherwise(machine: Put, tmp_path: Path) -> None:
    """Before core_cpus_list there was thread_siblings_list."""
    (tmp_path / CPU / "cpu1/topology/core_cpus_list").unlink()
    assert cpu.topology(root=tmp_path).cpu(1).siblings is None
    machine(f"{CPU}/cpu1/topology/thread_siblings_list", "1\n")
    assert cpu.topology(root=tmp_path).cpu(1).siblings == CpuSet.of(1)


def test_smt_control_may_be_unknown(machine: Put, tmp_path: Path) -> None:
    """Without the file."""
    assert cpu.smt_control(tmp_path) is None
    machine(f"{CPU}/smt/control", "off\n")
    assert cpu.smt_control(tmp_path) == "off"


def test_a_kernel_without_numa_has_no_nodes(tmp_path: Path) -> None:
    """Nor an error."""
    assert cpu.nodes(tmp_path) == ()
