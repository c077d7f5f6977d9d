"""What a kernel image would take over by KHO and live update, told from its file.

Sources: include/linux/kho/abi/kexec_handover.h (KHO_FDT_COMPATIBLE), luo.h (LUO_ABI_COMPATIBLE), memfd.h
(MEMFD_LUO_FH_COMPATIBLE). Each is compared as a whole string by the kernel that takes over, so it stands in its image
with no text before it and a NUL behind. The name of an option is no sign: kernels without KHO print it when they
ignore what was handed over.

Reading an image of a distribution takes about half a second (unpacking, mostly); callers keep the answer. Two
answers are compared by `model.kho.differs`.
"""

from __future__ import annotations

from pathlib import Path

from kupgrade.host import image
from kupgrade.model.kernel import KernelImage
from kupgrade.model.kho import KhoAbi

# What is written in an image, and the option without which it cannot be there
PARTS = {"kho": "CONFIG_KEXEC_HANDOVER", "luo": "CONFIG_LIVEUPDATE", "memfd": "CONFIG_LIVEUPDATE_MEMFD"}


def _unknown(why: str) -> KhoAbi:
    return KhoAbi(None, None, None, known=False, unread=why)


def of_image(facts: KernelImage) -> KhoAbi:
    """The names in an image that was read. Unknown, if it was not unpacked or contradicts itself."""
    if facts.unread:
        return _unknown(facts.unread)
    found: dict[str, str | None] = dict.fromkeys(PARTS)
    for part, option in PARTS.items():
        names = [each for each in facts.handover_abi if each.startswith(f"{part}-v")]
        if len(names) > 1:
            return _unknown(f"{facts.path} names {' and '.join(names)}")
        if facts.config is not None:
            configured = facts.config.get(option) == "y"
            if configured and not names:
                return _unknown(f"{facts.path} was built with {option}, but names no {part} format")
            if names and not configured:
                return _unknown(f"{facts.path} was built without {option}, but names {names[0]}")
        found[part] = names[0] if names else None
    return KhoAbi(found["kho"], found["luo"], found["memfd"], known=True)


def read(path: Path) -> KhoAbi:
    """The names in the image at `path`. Raises BadInputError when it is no image, or a damaged one."""
    return of_image(image.read(path))
