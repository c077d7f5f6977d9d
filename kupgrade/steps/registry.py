"""Imports every step, so that stored plans can be loaded."""

from __future__ import annotations

from kupgrade.steps import (
    after,
    beside,
    bootentry,
    checkpoint,
    crossing,
    descriptors,
    filling,
    freeze,
    handover,
    health,
    hook,
    images,
    instance,
    network,
    services,
    staging,
    stopping,
    takeover,
    watchdogs,
)
from kupgrade.steps.base import kinds

_ALL = (
    after,
    beside,
    bootentry,
    checkpoint,
    crossing,
    descriptors,
    filling,
    freeze,
    handover,
    health,
    hook,
    images,
    instance,
    network,
    services,
    staging,
    stopping,
    takeover,
    watchdogs,
)


def names() -> tuple[str, ...]:
    """The kinds of all steps, sorted."""
    load_all()
    return kinds()


def load_all() -> int:
    """Make sure that every step is registered; the number of modules."""
    return len(_ALL)
