"""Whether images can stay in memory over a kexec: what the running kernel, the target and the memory say. Pure."""

from __future__ import annotations

from kupgrade.core.preserved import preserved_bytes
from kupgrade.model.facts import Facts
from kupgrade.model.kernel import CommandLine
from kupgrade.model.kho import KhoFacts
from kupgrade.model.plan import Refusal
from kupgrade.model.policy import Policy
from kupgrade.model.target import Target

WORDS = ("kho", "liveupdate")
SPARE = 128 << 20  # bytes that must stay available to go on with
NEXT_KERNEL = 256 << 20  # bytes for the next kernel and its user space, beside images and restored workloads
_ANOTHER = "Take a target of the same series"
_UNREAD = "Install what is missing to read it"
_OFF = ("d", "n", "f", "0")  # as the kernel's kstrtobool() reads them; "off" besides


def live_update_refusals(
    facts: Facts, policy: Policy, target: Target | None, memory: int, need: int
) -> tuple[Refusal, ...]:
    """Why images cannot pass in memory. `memory`: bytes of the workloads; `need`: bytes that their images may take."""
    found = handover_refusals(facts, policy)
    kho = facts.kho
    if kho is None or not kho.device_there:
        return found
    if target is not None:
        found = (*found, *target_handover_refusals(target, ", or another store"))
    return (*found, *_memory(facts, kho, memory, need, preserved_bytes(facts, policy)))


def handover_refusals(facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
    """Why this kernel hands no memory to another one, or would tell it to take none."""
    kho = facts.kho
    if kho is None or not kho.device_there:
        return (_no_device(kho),)
    found: list[Refusal] = []
    line = with_appended(CommandLine.parse(facts.cmdline), policy)
    for word in WORDS:
        if turned_off(line.get(word)):
            fact = f"its command line will say {word}={line.get(word)}"
            found.append(Refusal("the new kernel takes memory over", fact, f"Take {word} out of cmdline_append"))
    return tuple(found)


def target_handover_refusals(target: Target, otherwise: str = "") -> tuple[Refusal, ...]:
    """Why this target takes nothing over. `otherwise`: what else helps, as the end of a remedy."""
    if not target.handover:
        return ()
    fact = "; ".join(target.handover)
    remedy = _UNREAD if "not known" in fact else _ANOTHER
    return (Refusal(f"{target.image.release} understands what this kernel hands over", fact, remedy + otherwise),)


def memory_misread(facts: Facts, target: Target) -> bool:
    """Whether the target must not look at what this kernel leaves it.

    One that knows another version of the format panics as it starts, whether anything was preserved or not
    (kernel/liveupdate/luo_core.c, luo_restore_fail); with kho=off it does not look.
    """
    return facts.kho is not None and facts.kho.device_there and bool(target.handover)


def with_appended(line: CommandLine, policy: Policy) -> CommandLine:
    """With the words that the policy appends: the kernel's behind its own, those for init (after --) behind init's.

    A line on which they count already, as that of a kernel which came by a crossing, stays as it is.
    """
    more = CommandLine.parse(policy.engine.kexec.cmdline_append)
    ours, to_init = _parted(line)
    new, more_to_init = _parted(more)
    tails = {name: (line.values(name), more.values(name)) for name, _ in more}
    if all(has[-len(wanted) :] == wanted for has, wanted in tails.values()):
        new = ()
    if to_init[len(to_init) - len(more_to_init) :] == more_to_init:
        more_to_init = ()
    mark = ("--",) if to_init or more_to_init else ()
    return CommandLine((*ours, *new, *mark, *to_init, *more_to_init))


def _parted(line: CommandLine) -> tuple[tuple[str, ...], tuple[str, ...]]:
    at = line.words.index("--") if "--" in line.words else len(line.words)
    return line.words[:at], line.words[at + 1 :]


def turned_off(value: str | None) -> bool:
    """Whether a parameter with this value does not turn its feature on; absent counts as off."""
    text = (value or "").lower()
    return not text or text[:1] in _OFF or text.startswith("of")


def _no_device(kho: KhoFacts | None) -> Refusal:
    rule = "this kernel hands memory over (/dev/liveupdate)"
    words = None if kho is None else kho.words
    missing = [w for w in WORDS if turned_off(None if words is None else getattr(words, w))]
    if kho is not None and not missing and words is not None:
        reserve = f" beside crashkernel={words.crashkernel}" if words.crashkernel else ""
        return Refusal(
            rule,
            f"kho=on liveupdate=on are given, and yet there is no device: no room for KHO's scratch areas{reserve},"
            " or a kernel without CONFIG_LIVEUPDATE",
            "Set a smaller kho_scratch= (see the kernel's log), or take a kernel that has it",
        )
    given = " ".join(f"{word}=on" for word in missing) or "kho=on liveupdate=on"
    return Refusal(rule, f"its command line lacks {given}", "Boot such a kernel (CONFIG_LIVEUPDATE) with them")


def _memory(facts: Facts, kho: KhoFacts, memory: int, need: int, stored: int) -> tuple[Refusal, ...]:
    available = facts.stores.memory_available
    if available is not None and available < need + SPARE:
        fact = f"{available >> 20} MiB available, and the images may need {need >> 20} MiB"
        return (Refusal("memory for the images", fact, "Free memory, or use store pmem or disk"),)
    then = facts.memory_bytes - need - stored - (kho.scratch_bytes or 0)
    if facts.memory_bytes and then < memory + NEXT_KERNEL:
        fact = f"{max(0, then) >> 20} MiB would be left for the new kernel and {memory >> 20} MiB of workloads"
        return (Refusal("memory for images and restored workloads at once", fact, "Use store pmem or disk"),)
    return ()
