"""Run as root in a virtual host: the steps that prepare a kernel beside this one, by the real loop and a real journal.

`beside_inside.py PLAN JOURNAL KILL`: carries out the stored plan's first phase with these steps instead of its own;
when the new kernel stands, the wish to roll back comes. KILL (step:moment, or empty): SIGKILL there. Run again, it goes
on from the journal. Prints one line of JSON when it is over.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from kupgrade.core.fold import fold
from kupgrade.executor import Loop, advance, start
from kupgrade.host import kernels
from kupgrade.journal import Journal
from kupgrade.kernel import cpu, memory_blocks, proc
from kupgrade.machine.observed import SystemClock, observe_now
from kupgrade.machine.places import Places
from kupgrade.machine.real_host import compose
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.memory import BlockState
from kupgrade.model.plan import Phase, Plan, Side
from kupgrade.model.record import Record, State, StepStatus
from kupgrade.planfile import read
from kupgrade.steps.base import spec
from kupgrade.steps.beside import BuildStandby, LoadSpawnModule, SpawnKernel, TakeCpus, TakeMemory

MEMORY = 640 << 20  # what an emulated host of 4 GiB frees at run time as good as always; longer runs may fail
WINDOW = 64 << 20
STANDBY = "/var/lib/kupgrade/standby.cpio"


def spawning(plan: Plan) -> Plan:
    kernel = str(kernels.locate(KernelRelease(plan.new_release)).kernel)
    steps = (
        LoadSpawnModule(),
        TakeCpus((3, 2)),
        TakeMemory(MEMORY),
        BuildStandby(plan.new_release, STANDBY, ("virtio_net", "virtio_blk")),
        SpawnKernel(plan.new_release, kernel, STANDBY, str(plan.upgrade), 1, (3, 2), MEMORY, WINDOW, "", 90.0),
    )
    return replace(plan, phases=(Phase("staging", Side.OLD, tuple(spec(step) for step in steps)),))


def resources() -> list[object]:
    online = [each.number for each in memory_blocks.blocks() if each.state is BlockState.ONLINE]
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return [str(cpu.masks().online), online, total, Path("/dev/kspawn").exists(), Path(STANDBY).exists()]


def main(plan_path: str, journal_path: str, kill: str) -> None:
    places = Places()
    for folder in (places.run, places.state):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = Path(journal_path)
    fresh = not path.exists()
    journal = Journal.create(path) if fresh else Journal.open(path)
    plan = spawning(read(Path(plan_path))) if fresh else fold(journal.records).plan

    def fault(step: str, moment: str) -> None:
        if f"{step}:{moment}" == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def wish() -> str:
        done = fold(journal.records).steps[-1].status is StepStatus.DONE
        return "it stands" if done else ""

    def watch(record: Record, _state: State) -> None:
        step = "" if record.step is None else plan.steps[record.step].kind
        print(f"{record.uptime:9.3f} {record.kind.value} {step} {dict(record.data) if step else ''}", file=sys.stderr)

    host = compose(plan, places)
    clock = SystemClock()
    loop = Loop(journal, host, lambda state: observe_now(state, places), clock, fault, watch, wish)
    if fresh:
        Path(journal_path + ".resources").write_text(json.dumps(resources()))
        start(loop, plan, proc.boot_id())
    state = advance(loop)
    before = json.loads(Path(journal_path + ".resources").read_text())
    figures = {
        plan.steps[r.step].kind: dict(r.data) for r in journal.records if r.step is not None and r.kind.value == "done"
    }
    outcome = state.outcome.value if state.outcome else state.hands_off
    print(json.dumps({"outcome": outcome, "before": before, "after": resources(), "figures": figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
