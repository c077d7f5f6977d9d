"""One conversation with the ports of a host, to be held with the fake machine and with a real one.

What a port answers must not depend on which of the two stands behind it: the crash tests believe the fake. Answers are
values that mean the same on both (yes, no, unknown, more than nothing, refused), never paths or sizes.

In a virtual host: `python3 conversation.py before|jump|after PLAN`; `before` and `after` print their answers as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.model.kernel import CommandLine
from kupgrade.model.plan import Plan, StepSpec
from kupgrade.model.workload import StopOrder
from kupgrade.steps.base import load

Answers = list[tuple[str, Any]]
DEADLINE = 300  # seconds until the dead-man of the next boot would strike
PANIC = 7  # seconds, a value that nothing else sets
WATCHDOG = 900.0  # seconds, more than anything here takes
BYSTANDER = "batch.service"


def _spec(plan: Plan, kind: str) -> StepSpec:
    return next(spec for spec in plan.steps if spec.kind == kind)


class Conversation:
    """Asks, and notes each answer with the question."""

    def __init__(self, host: Any, plan: Plan) -> None:
        self.host, self.plan = host, plan
        dump: Any = load(_spec(plan, "dump"))
        self.store, self.workloads = dump.store, dump.workloads
        self.initrd: Any = load(_spec(plan, "stage-initrd"))
        self.kernel: Any = load(_spec(plan, "load-kernel"))
        self.answers: Answers = []

    def ask(self, question: str, answer: Callable[[], Any]) -> None:
        """Note the answer; an error is an answer, too."""
        try:
            value = answer()
        except KupgradeError:
            value = "refused"
        except Exception as error:  # never a right answer: the name tells what went wrong
            value = f"{type(error).__name__}: {error}"
        self.answers.append((question, value))

    def each(self, question: str, answer: Callable[[Any], Any]) -> None:
        """Ask about every workload; one answer when they agree."""
        for workload in self.workloads:
            self.ask(question, lambda workload=workload: answer(workload))

    def before(self) -> Answers:
        """In the old kernel, up to the loaded image; leaves the workloads frozen, dumped and sealed."""
        self._stores()
        self._kernel()
        self._boot_default()
        self._after()
        self._network_and_units()
        self._stopping()
        self._watchdogs()
        self._freeze_and_dump()
        host = self.host
        self.ask("a watchdog is armed, or there is none", lambda: bool(host.crossing.arm_watchdog(DEADLINE)))
        return self.answers

    def _stores(self) -> None:
        images, store = self.host.images, self.store
        self.ask("ready before it is prepared", lambda: images.ready(store))
        self.ask("present before anything", lambda: images.present(store))
        self.ask("prepare", lambda: images.prepare(store))
        self.ask("prepare again", lambda: images.prepare(store))
        self.ask("ready", lambda: images.ready(store))
        self.ask("sealed before anything", lambda: images.sealed(store))
        self.ask("verify before anything", lambda: images.verify(store))

    def _kernel(self) -> None:
        crossing, step, out = self.host.crossing, self.initrd, self.initrd.out
        # Without the words that bring the agent up: nobody but this conversation acts in the next boot.
        line = str(CommandLine.parse(self.kernel.cmdline).without("init", "systemd.unit"))
        self.ask("staged before", lambda: crossing.staged(out))
        self.ask("load without its initrd", lambda: crossing.load(self.kernel.kernel, out + ".absent", line))
        self.ask("stage", lambda: crossing.stage(step.initrd, out, step.pid_floor, DEADLINE))
        self.ask("staged", lambda: crossing.staged(out))
        self.ask("loaded before", crossing.loaded)
        for _ in range(2):
            self.ask("load", lambda: crossing.load(self.kernel.kernel, out, line))
            self.ask("loaded", crossing.loaded)
            self.ask("unload", crossing.unload)
            self.ask("loaded after the unload", crossing.loaded)
        self.ask("load for the jump", lambda: crossing.load(self.kernel.kernel, out, line))
        was = crossing.panic_timeout()
        self.ask("set kernel.panic", lambda: crossing.set_panic_timeout(PANIC))
        self.ask("kernel.panic", crossing.panic_timeout)
        self.ask("kernel.panic back", lambda: crossing.set_panic_timeout(was))
        self.ask("kernel.panic as it was", lambda: crossing.panic_timeout() == was)
        self.ask("a dead-man in a boot that has none", crossing.deadman)
        self.ask("cancel no dead-man", crossing.cancel_deadman)

    def _boot_default(self) -> None:
        boot, plan = self.host.boot, self.plan
        stored = boot.stored()
        self.ask("the old release is the default", lambda: boot.default() == boot.entry_for(plan.old_release) != "")
        self.ask("set the default", lambda: boot.set_default(boot.entry_for(plan.new_release)))
        self.ask("the new release is the default", lambda: boot.default() == boot.entry_for(plan.new_release))
        self.ask("what is stored has changed", lambda: boot.stored() != stored)
        self.ask("restore the default", lambda: boot.restore_default(stored))
        self.ask("what is stored is as it was", lambda: boot.stored() == stored)

    def _after(self) -> None:
        after, plan = self.host.after, self.plan
        mine, newer = f"linux-image-{plan.new_release}", "linux-image-999.1"
        self.ask("wait for what is over", lambda: after.wait_until(0.0))
        self.ask("the clock goes forward", lambda: after.uptime() <= after.uptime())
        for _ in range(2):
            self.ask("name others", lambda: after.settle_reboot(plan.new_release, (newer, "dbus")))
            self.ask("others are named", lambda: {newer, "dbus"} <= set(after.reboot_wishes().packages or ()))
            self.ask("a restart is asked for", lambda: after.reboot_wishes().flag)
            self.ask("not for the kernel that was settled", lambda: mine in (after.reboot_wishes().packages or ()))
        self.ask("settle a newer one", lambda: after.settle_reboot("999.1", ()))
        self.ask("it is gone", lambda: newer in (after.reboot_wishes().packages or ()))
        self.ask("the other is not", lambda: "dbus" in (after.reboot_wishes().packages or ()))

    def _network_and_units(self) -> None:
        network, units, workloads = self.host.network, self.host.units, self.workloads
        self.ask("the gate", lambda: self.host.health.gate(workloads, self.store, ()))
        self.ask("locked before", network.locked)
        for _ in range(2):
            self.ask("lock", lambda: network.lock(workloads, both=False))
            self.ask("lock again", lambda: network.lock(workloads, both=False))
            self.ask("locked", network.locked)
            self.ask("unlock", network.unlock)
            self.ask("locked after the unlock", network.locked)
        self.ask("lock for the jump", lambda: network.lock(workloads, both=False))
        self.each("held before", units.held)
        self.each("hold", lambda w: units.hold(w, str(self.plan.upgrade), DEADLINE))
        self.each("held", units.held)
        self.ask("release", lambda: units.release(workloads))
        self.each("held after the release", units.held)
        self.each("adopted after hold and release", units.adopted)
        self.each("hold for the jump", lambda w: units.hold(w, str(self.plan.upgrade), DEADLINE))
        self.each("adopted while held", units.adopted)

    def _stopping(self) -> None:
        stopping, one = self.host.stopping, (BYSTANDER,)
        self.ask("it runs", lambda: stopping.up(one) == one)
        self.ask("nobody is kept down", lambda: stopping.kept_down() == ())
        for _ in range(2):
            self.ask("keep it down", lambda: stopping.keep_down(one, str(self.plan.upgrade)))
            self.ask("it is kept down", lambda: stopping.kept_down() == one)
            self.ask("it runs on", lambda: stopping.up(one) == one)
            self.ask("stop it", lambda: stopping.stop([StopOrder(BYSTANDER, 30.0)], one))
            self.ask("stop it again", lambda: stopping.stop([StopOrder(BYSTANDER, 30.0)], one))
            self.ask("it does not run", lambda: stopping.up(one) == ())
            self._let_go()
        self.ask("keep it down for the jump", lambda: stopping.keep_down(one, str(self.plan.upgrade)))
        self.ask("stop it for the jump", lambda: stopping.stop([StopOrder(BYSTANDER, 30.0)], one))

    def _let_go(self) -> None:
        stopping, one = self.host.stopping, (BYSTANDER,)
        self.ask("start it in vain", lambda: self.host.units.start(one))
        self.ask("it still does not run", lambda: stopping.up(one) == ())
        self.ask("let it go", lambda: stopping.let_go(one) == ())
        self.ask("it runs again", lambda: stopping.up(one) == one)
        self.ask("nobody is kept down any more", lambda: stopping.kept_down() == ())

    def _watchdogs(self) -> None:
        units, workloads = self.host.units, self.workloads
        self.each("no watchdog", lambda w: units.watch(w, 0.0))
        for _ in range(2):
            self.ask("none is watched", lambda: units.watched(workloads) == ())
            self.each("watch it", lambda w: units.watch(w, WATCHDOG))
            self.ask("all are watched", lambda: {w.seconds for w in units.watched(workloads)} == {WATCHDOG})
            self.each("watch it no more", lambda w: units.watch(w, 0.0))

    def _freeze_and_dump(self) -> None:
        host, store, workloads = self.host, self.store, self.workloads
        checkpoints, freezer, images = host.checkpoints, host.freezer, host.images
        self.ask("the originals are there", lambda: checkpoints.restored(workloads))
        self.ask("running", lambda: checkpoints.running(workloads))
        self.each("its processes are those of the plan", lambda w: freezer.pids(w) == tuple(sorted(w.pids)))
        self.each("pre-dump", lambda w: min(checkpoints.pre_dump(store, [(w, 1)])) > 0)
        self.ask("sealed after a pre-dump", lambda: images.sealed(store))
        for _ in range(2):
            self.each("frozen before", freezer.frozen)
            self.each("freeze", freezer.freeze)
            self.each("frozen", freezer.frozen)
            self.ask("running while frozen", lambda: checkpoints.running(workloads))
            self.ask("there while frozen", lambda: checkpoints.restored(workloads))
            self.each("thaw", freezer.thaw)
            self.ask("running after the thaw", lambda: checkpoints.running(workloads))
        self.each("freeze for the dump", freezer.freeze)
        self.each("dump", lambda w: checkpoints.dump(store, [w]) > 0)
        self.each("frozen after the dump", freezer.frozen)
        self.ask("present", lambda: images.present(store))
        self.ask("sealed before the seal", lambda: images.sealed(store))
        self._seal()
        self.ask("withdraw", lambda: images.withdraw(store))
        self.ask("let go of what was dumped", lambda: checkpoints.let_go(workloads))
        self.ask("sealed after the withdrawal", lambda: images.sealed(store))
        self.ask("verify after the withdrawal", lambda: images.verify(store))
        self._seal()

    def _seal(self) -> None:
        images, store, plan = self.host.images, self.store, self.plan
        releases = (plan.old_release, plan.new_release)
        self.ask("seal", lambda: images.seal(store, str(plan.upgrade), releases) > 0)
        self.ask("sealed", lambda: images.sealed(store))
        self.ask("recheck", lambda: images.recheck(store))
        self.ask("verify", lambda: images.verify(store))

    def after(self) -> Answers:
        """In the new kernel: restore twice, let the copies run, tidy up."""
        host, store, workloads = self.host, self.store, self.workloads
        self.ask("the dead-man counts", host.crossing.deadman)
        self.ask("locked by the boot itself", host.network.locked)
        self.ask("ready in a new boot", lambda: host.images.ready(store))
        self.ask("prepare in a new boot", lambda: host.images.prepare(store))
        self.ask("sealed in a new boot", lambda: host.images.sealed(store))
        self.ask("verify in a new boot", lambda: host.images.verify(store))
        self.ask("loaded in a new boot", host.crossing.loaded)
        self.each("held in a new boot", host.units.held)
        self.each("adopted before the restore", lambda w: host.units.adopted(w) != "")
        self.ask("restored before", lambda: host.checkpoints.restored(workloads))
        self.ask("running before", lambda: host.checkpoints.running(workloads))
        self.ask("lock both ways", lambda: host.network.lock(workloads, both=True))
        for _ in range(2):
            self._restore()
            self.ask("end the copies", lambda: host.checkpoints.kill(workloads))
            self.ask("restored after their end", lambda: host.checkpoints.restored(workloads))
        self._restore()
        self.ask("cancel the dead-man", host.crossing.cancel_deadman)
        self.ask("the dead-man is gone", host.crossing.deadman)
        self.ask("disarm the watchdog", host.crossing.disarm_watchdog)
        self.ask("let them run", lambda: host.checkpoints.thaw_restored(workloads))
        self.ask("running", lambda: host.checkpoints.running(workloads))
        self.ask("unlock", host.network.unlock)
        self.ask("locked after the unlock", host.network.locked)
        self.ask("release", lambda: host.units.release(workloads))
        self.each("held after the release", host.units.held)
        self.each("adopted in the end", host.units.adopted)
        self._watchdogs()
        self.ask("the bystander is kept down in a new boot", lambda: host.stopping.kept_down() == (BYSTANDER,))
        self._let_go()
        self.ask("wipe", lambda: host.images.wipe(store))
        self.ask("present after the wipe", lambda: host.images.present(store))
        self.ask("unstage", lambda: host.crossing.unstage(self.initrd.out))
        self.ask("staged after the unstage", lambda: host.crossing.staged(self.initrd.out))
        self.ask("running in the end", lambda: host.checkpoints.running(workloads))
        return self.answers

    def _restore(self) -> None:
        checkpoints, workloads = self.host.checkpoints, self.workloads
        self.ask("summon", lambda: checkpoints.summon(workloads))
        self.ask("restore", lambda: checkpoints.restore(self.store, workloads, 120.0) is not None)  # figures differ
        self.ask("restored", lambda: checkpoints.restored(workloads))
        self.ask("stopped", lambda: checkpoints.running(workloads))
        self.each("adopted", self.host.units.adopted)


def make_bystander(units: Sequence[str]) -> None:
    """A service that does nothing and that no boot starts; and `units` listen to what is said in their name."""
    Path("/etc/systemd/system", BYSTANDER).write_text("[Service]\nExecStart=/bin/sleep infinity\n")
    for unit in units:
        dropin = Path(f"/etc/systemd/system/{unit}.d/10-conversation.conf")
        dropin.parent.mkdir(exist_ok=True)
        dropin.write_text("[Service]\nNotifyAccess=main\n")
    subprocess.run(["sh", "-c", f"systemctl daemon-reload && systemctl start {BYSTANDER}"], check=True)


def main(argv: list[str]) -> int:
    """One part of the conversation with this machine."""
    from kupgrade.machine.places import Places
    from kupgrade.machine.real_host import compose
    from kupgrade.planfile import read

    part, path = argv
    plan = read(Path(path))
    places = Places()
    places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    conversation = Conversation(compose(plan, places), plan)
    if part == "before":
        make_bystander([each.unit for each in conversation.workloads])
    if part == "jump":
        conversation.host.crossing.cross()
    answers = conversation.before() if part == "before" else conversation.after()
    sys.stdout.write(json.dumps(answers) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
