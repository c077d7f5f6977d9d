"""Faults a rehearsal injects: their spelling on the command line, and what they do to the virtual host."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kupgrade.errors import UsageError

AT_STEP = ("kill-tool", "power-cut")
# Of memory that is filled in place: who serves it is killed, or all who could take its place, too.
FILLING = ("kill-page-server", "kill-page-ring")
# criu-stops: in the middle of the last dump, without a word.
_ENGINES = ("criu-stops", "restore-fails", "probe-fails", "bad-initrd")  # those of both
WHOLE = ("panic-new-kernel", "hang-new-kernel", "images-corrupted", *_ENGINES)
# Of images in memory (store luo): whoever holds them in the new kernel is killed; that kernel takes no memory over.
IN_MEMORY = ("holder-dies", "memory-not-taken")
# With a kernel beside the other: what strikes the new one while the old one works at a step, or in between.
BESIDE_AT_STEP = (*AT_STEP, "panic-new-kernel", "hang-new-kernel", "kill-agent", "channel-corrupted")
# The lab makes these in the virtual host, before the upgrade is asked for.
REFUSING = ("device-refuses", "cpu-refuses-offline", "memory-refuses-offline")
BESIDE_WHOLE = (*REFUSING, *_ENGINES)
AFTER_COMMIT = "panic-old-kernel@after-commit"
# frozen: of the steps cross and hand-over, with every file system frozen and the jump, or the handover, not yet made.
# Of hand-over alone: quiesced, when the devices are let go of; told, when the new kernel was asked to take them.
WITHIN = ("frozen", "quiesced", "told")
MOMENTS = ("intent", "effect", "undo-intent", "undo-effect", *WITHIN)
_HAS = {("kexec", "cross"): ("frozen",), ("spawn", "hand-over"): WITHIN}
# Steps that a kernel beside the other does on a snapshot of the disk, which goes when it is fenced.
ON_SNAPSHOT = ("restore", "probe")
# And those that it does when there is no way back any more.
_SYSTEM = ("take-disk", "start-system", "adopt-units")
SERVING = (
    *_SYSTEM,
    "thaw",
    "unlock-network",
    "release-units",
    "fill-memory",
    "resume-watchdogs",
    "start-units",
    "soak",
    "mark-good",
    "settle-reboot",
)
# Without a step, but made by kupgrade itself, which spends them: nothing in the virtual host was changed for them.
_ONCE = ("criu-stops", "restore-fails", "probe-fails", "images-corrupted", *IN_MEMORY)
# Where a power cut finds a sealed checkpoint that no copy has outrun.
_PROTECTED = frozenset(
    {("dump", "effect"), ("commit", "intent")}
    | {(step, moment) for step in ("cross", "restore", "probe", "disarm") for moment in ("intent", "effect")}
)
# What user space of the new kernel's initrd does first, put into its copy in the virtual host.
INITRD_SCRIPTS = {
    "panic-new-kernel": "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
    "hang-new-kernel": "while :; do sleep 1; done",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `step` and `moment` are empty where they do not apply."""

    kind: str
    step: str = ""
    moment: str = ""

    def __str__(self) -> str:
        if self.kind == "panic-old-kernel":
            return AFTER_COMMIT
        return self.kind if not self.step else f"{self.kind}@{self.step}:{self.moment}"

    def costs_the_run(self, *, beside: bool, in_memory: bool = False) -> bool:
        """A power cut without a complete checkpoint, or after the commit: as on any host, services start anew.

        With a kernel beside the other the images are in memory only, and a new kernel that ends after the commit ends
        the machine's run. Images `in_memory` for a kexec end with whatever does not go on by kexec.
        """
        if in_memory and not self.step:
            return self.kind in (*IN_MEMORY, *INITRD_SCRIPTS, "bad-initrd")
        if beside and self.kind in ("panic-new-kernel", "hang-new-kernel"):
            return self.step in SERVING and (self.step, self.moment) != (SERVING[0], "intent")
        return self.kind == "power-cut" and (beside or in_memory or (self.step, self.moment) not in _PROTECTED)

    @property
    def fatal(self) -> bool:
        """Whether no upgrade commits that it strikes: the new kernel never gets so far as to serve."""
        return not self.step and self.kind in (*INITRD_SCRIPTS, *BESIDE_WHOLE)

    @property
    def repeatable(self) -> bool:
        """Whether another upgrade can follow in the same virtual host: nothing there was changed for good."""
        return (bool(self.step) or self.kind in _ONCE) and self.kind != "panic-old-kernel"

    @property
    def leaves_itself(self) -> bool:
        """Its own file stays armed: where it strikes no file can be written, or what is written is given up."""
        given_up = self.relayed and self.step in ON_SNAPSHOT
        return given_up or (self.moment == "frozen" and self.step == "cross")

    @property
    def path(self) -> str:
        """Its file: one that has to be spent while file systems are frozen does not lie on any of them."""
        volatile = self.moment in WITHIN and not self.leaves_itself
        return "/run/kupgrade-fault.json" if volatile else "/var/lib/kupgrade/fault.json"

    @property
    def relayed(self) -> bool:
        """Whether it strikes in a kernel beside the one that works at the step, by the hook on its console."""
        return bool(self.step) and self.kind not in (*AT_STEP, *FILLING)

    @property
    def armed(self) -> dict[str, str]:
        """The content of the file that arms kupgrade's own fault points; empty when the lab produces the fault."""
        if not self.step and (self.kind in INITRD_SCRIPTS or self.kind in ("bad-initrd", *REFUSING)):
            return {}
        return {"fault": self.kind, "step": self.step, "moment": self.moment}


def parse(text: str, steps: Collection[str] = (), engine: str = "kexec") -> Fault:
    """KIND, or KIND@STEP with an optional :MOMENT (default intent), of those of `engine`; raises UsageError.

    `steps`: every step there is, `commit` aside; empty: any is taken.
    """
    beside = engine == "spawn"
    at_step, whole = (BESIDE_AT_STEP, BESIDE_WHOLE) if beside else (AT_STEP, (*WHOLE, *IN_MEMORY))
    kind, at, rest = text.partition("@")
    step, _, moment = rest.partition(":")
    if beside and text == AFTER_COMMIT:
        return Fault(kind, "commit", "effect")
    if kind in (*at_step, *FILLING) and at and step:
        moment = moment or "intent"
        if steps and step not in {*steps, "commit"}:
            raise UsageError(f"{step!r} is no step", "", f"Known are commit, {', '.join(sorted(steps))}")
        if moment in WITHIN and moment not in _HAS.get((engine, step), ()):
            raise UsageError(f"{step} has no moment {moment!r} with the engine {engine}", "", "Take intent or effect")
        if moment in MOMENTS:
            return Fault(kind, step, moment)
    elif kind in whole and not at:
        return Fault(kind)
    known = ", ".join(
        (*(f"{k}@STEP[:intent|:effect]" for k in (*at_step, *FILLING)), *whole, *([AFTER_COMMIT] if beside else ()))
    )
    raise UsageError(f"{text!r} is no fault of {engine}", "", f"Known are {known}")
