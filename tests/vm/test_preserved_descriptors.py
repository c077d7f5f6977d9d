"""What a service keeps in systemd's descriptor store comes through kernel upgrades, on the way back as well."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kupgrade.errors import ExitCode, KupgradeError
from kupgrade.rehearsal import inside, kho_kernel, virtual_host
from tests.vm import stored_inside
from tests.vm.hosts import Guest, say, skipped_without, started
from tests.vm.test_workloads import kupgrade

pytestmark = [pytest.mark.vm, pytest.mark.extended]

UNIT = "stored.service"
SERVICE = """[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/python3 {script}
StateDirectory=stored
FileDescriptorStoreMax=8
FileDescriptorStorePreserve=yes

[Install]
WantedBy=multi-user.target
"""
POLICY = f"""
[[preserve]]
unit = "{UNIT}"
"""
# Says no in the new kernel, in the blackout: from there the way back is another kexec.
NO = """#!/bin/sh
test "$(uname -r)" = "{release}"
"""
LOST = {f"{UNIT}: wake": "eventfd"}
HOOK = "/etc/kupgrade/hooks/pre-resume.d/10-no"
KEPT = {
    name: {"size": len(content), "digest": hashlib.sha256(content).hexdigest(), "seals": seals}
    for name, content, seals in (
        ("table", stored_inside.TABLE, stored_inside.SEALED),
        ("cache", stored_inside.CACHE, 0),
    )
}


@pytest.fixture
def handover() -> Iterator[Guest]:
    """A virtual host with the demonstration workload, whose two kernels hand memory over."""
    line = virtual_host.command_line(kho_kernel.COMMAND_LINE)
    with skipped_without():
        host = virtual_host.build("khokernel-7.2", "khokernel-7.3", say, line=line)
    with started(host) as found:
        found.start_workload()
        yield found


def stored(guest: Guest) -> list[str]:
    """The names of what is in the store now."""
    text = inside.shell(guest.link, f"systemd-analyze --json=short fdstore {UNIT}")
    return sorted(entry["fdname"] for entry in json.loads(text or "[]"))


def found_in(guest: Guest, boot_id: str) -> dict[str, Any]:
    """What the service found when it was started in that boot, which it is soon."""
    path = f"/var/lib/stored/{boot_id}.json"
    inside.shell(guest.link, f"for i in $(seq 240); do test -s {path} && exit 0; sleep 0.5; done; exit 1", 150.0)
    found: dict[str, Any] = json.loads(guest.link.read(path))
    return found


def upgrade(guest: Guest, *words: str) -> dict[str, Any]:
    """From one end of an upgrade to the other, over however many boots; what the history says of it."""
    link = guest.link
    assert kupgrade(link, "apply", "--yes", "--no-wait", "--kernel", guest.release, *words)[0] == ExitCode.DONE
    deadline = time.monotonic() + 600.0
    while time.monotonic() < deadline:
        time.sleep(1.0)
        with contextlib.suppress(KupgradeError):  # crossing, booting, or busy
            if inside.standing(link) == ("over", "finished"):
                break
    last: dict[str, Any] = kupgrade(link, "status")[1]["last"]
    return last


def test_memory_in_a_descriptor_store_comes_through_upgrades(handover: Guest) -> None:
    """Two memory files, one sealed, whole after a way back by kexec and after the upgrade; an eventfd told as lost."""
    guest, link = handover, handover.link
    old = link.boots[0].release
    script = guest.push(stored_inside)
    link.write(f"/etc/systemd/system/{UNIT}", SERVICE.format(script=script).encode())
    link.write("/etc/kupgrade/policy.d/60-preserve.toml", POLICY.encode())
    inside.shell(link, f"systemctl daemon-reload; systemctl enable --quiet --now {UNIT}")
    assert stored(guest) == ["cache", "table", "wake"]

    status, plan = kupgrade(link, "plan", "--kernel", guest.release)
    assert status == ExitCode.DONE
    text = json.dumps(plan)
    assert f"{UNIT}: stored descriptor wake" in text and "eventfd: only memory files" in text
    assert f"{UNIT}: table, {UNIT}: cache" in text or f"{UNIT}: cache, {UNIT}: table" in text

    inside.shell(link, f"mkdir -p {HOOK.rpartition('/')[0]}")
    link.write(HOOK, NO.format(release=old).encode(), 0o755)
    last = upgrade(guest)
    assert (last["outcome"], last["lost"]) == ("rolled-back", LOST)
    assert link.boots[-1].release == old and len(link.boots) > 1
    assert found_in(guest, link.boots[-1].boot_id) == KEPT
    assert inside.leftovers(link) == ()

    inside.shell(link, f"rm {HOOK}")
    last = upgrade(guest, "--retry-failed")
    assert (last["outcome"], last["lost"]) == ("committed", {})  # what was lost on the first way was not stored again
    assert link.boots[-1].release == guest.release
    assert found_in(guest, link.boots[-1].boot_id) == KEPT
    assert stored(guest) == ["cache", "table"]
    assert inside.leftovers(link) == ()
