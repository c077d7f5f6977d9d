"""Known problems, hooks and descriptor stores, as the preflight tells them: text for people, and its JSON twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kupgrade.core.errata import Finding, finding_text
from kupgrade.core.explain import span
from kupgrade.core.hooks import timeout_at
from kupgrade.core.preserved import store_losses, store_notes
from kupgrade.model.codec import encode
from kupgrade.model.erratum import Severity
from kupgrade.model.facts import Facts
from kupgrade.model.policy import Policy

# By engine.
Known = Mapping[str, Sequence[Finding]]


def more_text(facts: Facts, policy: Policy, known: Known) -> Iterator[str]:
    """Lines; none when there is nothing to tell."""
    by_id = {each.erratum.id: each for found in known.values() for each in found}
    if by_id:
        yield "\nKnown problems"
    for name, each in sorted(by_id.items()):
        engines = [engine for engine, found in known.items() if name in {one.erratum.id for one in found}]
        refused = each.erratum.severity is Severity.REFUSE and not (each.unknown or each.ignored)
        only = "" if len(engines) == len(known) else f" (engine {', '.join(engines)})"
        yield f"  - {'refused' if refused else 'warning'}{only}: {finding_text(each)}"
    if facts.hooks:
        yield "\nHooks"
    for hook in facts.hooks:
        undo = f"undone by {hook.undo}" if hook.undo else "no inverse"
        yield f"  - {hook.point.value}: {hook.path}, at most {span(timeout_at(policy, hook.point))}, {undo}"
    stored = (
        *store_notes(facts, policy),
        *(f"{loss.what} is lost: {loss.why}" for loss in store_losses(facts, policy)),
    )
    if stored:
        yield "\nDescriptor stores"
    for line in stored:
        yield f"  - {line}"


def more_json(facts: Facts, policy: Policy, known: Known) -> dict[str, Any]:
    """`errata` by engine, `hooks` with their timeouts in seconds, `descriptor_stores` with what of them is lost."""
    return {
        "errata": {
            engine: [
                {
                    "id": each.erratum.id,
                    "severity": each.erratum.severity.value,
                    "ignored": each.ignored,
                    "unknown": list(each.unknown),
                    "consequence": each.erratum.consequence,
                    "remedy": each.erratum.remedy,
                    "sources": list(each.erratum.sources),
                }
                for each in found
            ]
            for engine, found in known.items()
        },
        "hooks": [{**encode(hook), "timeout": timeout_at(policy, hook.point)} for hook in facts.hooks],
        "descriptor_stores": {
            "stores": encode(facts.descriptor_stores),
            "losses": encode(store_losses(facts, policy)),
        },
    }
