"""The files of kernel modules and of what they need, by depmod's indexes.

Sources: modules.dep(5), depmod.d(5) (softdep), kernel/module/main.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host.kernels import modules_directory
from kupgrade.model.kernel import KernelRelease

# What modprobe reads; the text files are depmod's source for them.
INDEXES = (
    *("modules.dep.bin", "modules.alias.bin", "modules.symbols.bin", "modules.builtin.bin"),
    *("modules.builtin.alias.bin", "modules.builtin.modinfo", "modules.softdep", "modules.weakdep", "modules.order"),
)


@dataclass(frozen=True, slots=True)
class ModuleFiles:
    """`folder`: of the release (/usr/lib/modules/RELEASE). `files`: paths in it, sorted. `absent`: not installed."""

    folder: Path
    files: tuple[str, ...]
    absent: tuple[str, ...]


def _stem(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _lines(folder: Path, name: str) -> list[str]:
    try:
        return (folder / name).read_text(errors="replace").splitlines()
    except OSError:
        return []


def closure(release: KernelRelease, names: Iterable[str], root: Path = Path("/")) -> ModuleFiles:
    """The files of modules, of what they depend on, and of what is to be loaded before them (softdep pre).

    Built-in ones have no file. Raises BadInputError when the release's modules are not installed.
    """
    folder = modules_directory(release, root)
    lines = _lines(folder, "modules.dep") if folder else []
    if folder is None or not lines:
        why = "there is no directory with a modules.dep"
        raise BadInputError(
            f"The modules of {release} are not installed", why, f"Install them, or run depmod {release}"
        )
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
    by_stem = {_stem(path): path for path in needs}
    builtin = {_stem(line) for line in _lines(folder, "modules.builtin")}
    before = _softdeps(folder)
    aliases: dict[str, str] = {}
    for line in _lines(folder, "modules.alias") if before else ():
        words = line.split()
        if len(words) == 3:
            aliases.setdefault(words[1].replace("-", "_"), words[2])
    found: set[str] = set()
    absent = []
    todo = [(name.replace("-", "_"), True) for name in names]
    while todo:
        name, wanted = todo.pop()
        path = by_stem.get(name) or by_stem.get(aliases.get(name, ""))
        if path is None:
            if wanted and name not in builtin:
                absent.append(name)
            continue
        if path in found:
            continue
        found.add(path)
        todo += [(_stem(each), True) for each in needs[path]]
        todo += [(each, False) for each in before.get(_stem(path), ())]
    return ModuleFiles(folder, tuple(sorted(found)), tuple(sorted(absent)))


def _softdeps(folder: Path) -> dict[str, tuple[str, ...]]:
    """Module to the modules, or aliases, that are loaded before it."""
    found = {}
    for line in _lines(folder, "modules.softdep"):
        words = line.split()
        if len(words) > 2 and words[0] == "softdep":
            kind, names = "", []
            for word in words[2:]:
                if word.endswith(":"):
                    kind = word
                elif kind == "pre:":
                    names.append(word.replace("-", "_"))
            found[words[1].replace("-", "_")] = tuple(names)
    return found
