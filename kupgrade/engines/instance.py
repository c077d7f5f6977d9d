"""An instance: the steps that start a kernel beside this one and no others. Its end is their undo.

The plan passes no authority and never commits: when every step is done it stands (core/recovery.py), and a wish to stop
it is a wish to undo, as in an upgrade before its commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.core.instance_choice import InstanceChoice
from kupgrade.model.instance import PARAMETER, Wish
from kupgrade.model.plan import Phase, Side, StepSpec
from kupgrade.model.policy import SpawnOptions
from kupgrade.steps.base import Step, spec
from kupgrade.steps.beside import BuildStandby, LoadSpawnModule, SpawnKernel, TakeCpus, TakeMemory
from kupgrade.steps.instance import StartKernel

EPOCH = 1
SETTLE = 5.0  # seconds in which a kernel without an agent is watched before it counts as started


@dataclass(frozen=True, slots=True)
class InstanceOrder:
    """What to start: `kernel` is the image's path, `standby` where its initramfs is built, without an initrd."""

    upgrade: str
    wish: Wish
    release: str
    kernel: str
    standby: str
    choice: InstanceChoice
    options: SpawnOptions


def phases(order: InstanceOrder) -> tuple[Phase, ...]:
    """What can fail without having taken anything comes first."""
    choice, agent = order.choice, not order.wish.initrd
    steps: list[Step] = [LoadSpawnModule()]
    if agent:
        steps.append(BuildStandby(order.release, order.standby, ()))
    steps += [TakeCpus(choice.cpus), TakeMemory(choice.memory), _with_agent(order) if agent else _without(order)]
    made: tuple[StepSpec, ...] = tuple(spec(step) for step in steps)
    return (Phase("starting", Side.OLD, made),)


def _with_agent(order: InstanceOrder) -> SpawnKernel:
    choice = order.choice
    return SpawnKernel(
        release=order.release,
        kernel=order.kernel,
        initrd=order.standby,
        upgrade=order.upgrade,
        epoch=EPOCH,
        cpus=choice.cpus,
        memory=choice.memory,
        window=choice.window,
        extra=f"{PARAMETER}={order.wish.name} {order.wish.append}".strip(),
        timeout=order.options.hello_timeout,
        serial=order.options.serial,
    )


def _without(order: InstanceOrder) -> StartKernel:
    choice = order.choice
    return StartKernel(
        release=order.release,
        kernel=order.kernel,
        initrd=order.wish.initrd,
        upgrade=order.upgrade,
        epoch=EPOCH,
        cpus=choice.cpus,
        memory=choice.memory,
        window=choice.window,
        extra=order.wish.append,
        settle=SETTLE,
        serial=order.options.serial,
    )
