"""kupgrade itself as a layer of the virtual host: package, units, policies, where a Debian package would put them."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from configparser import ConfigParser
from pathlib import Path

import kupgrade
from kupgrade.errors import KupgradeError

PACKAGE = Path(kupgrade.__file__).parent
# The tree's own files beside the package; where it was installed as a wheel, below its prefix.
_SOURCES = (PACKAGE.parent, Path(sys.prefix) / "share/kupgrade")
GUEST = Path(__file__).parent / "guest"
WORKLOAD = "demo.service"
SCRIPT = "#!/usr/bin/python3\nimport sys\n\nfrom kupgrade.cli.main import main\n\nsys.exit(main())\n"
UNIT_DIRECTORY = "usr/lib/systemd/system"


def files() -> Iterator[tuple[Path, str, int]]:
    """Every file to install: source, target relative to the root, mode."""
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path, f"usr/lib/python3/dist-packages/kupgrade/{path.relative_to(PACKAGE)}", 0o644
    yield from packaged()
    yield from lab()


def lab() -> Iterator[tuple[Path, str, int]]:
    """Of these, what is the laboratory's own: its hand in the virtual host, the workload, the network."""
    for name in ("agent.py", "workload.py", "resources.py", "roll_back.py", "refuse.py", "standby_fault.py"):
        yield GUEST / name, f"usr/lib/kupgrade-lab/{name}", 0o644
    for name in ("kupgrade-lab-agent.service", WORKLOAD):
        yield GUEST / name, f"{UNIT_DIRECTORY}/{name}", 0o644
    yield GUEST / "network.network", "etc/systemd/network/10-lab.network", 0o644


def source(places: Sequence[Path] = _SOURCES) -> Path:
    """The first of `places` that has units, policies and hooks as the tree has them; raises KupgradeError."""
    for place in places:
        if (place / "packaging/manifest").is_file():
            return place
    looked = ", ".join(map(str, places))
    raise KupgradeError("kupgrade's units are not there", f"looked in {looked}", "Install the whole package or wheel")


def packaged(kind: str = "deb") -> list[tuple[Path, str, int]]:
    """What packaging/manifest names for this kind of package, as packaging/install-files reads it."""
    top = source()
    found: dict[Path, tuple[str, int]] = {}
    for line in (top / "packaging/manifest").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, target, mode, wanted = line.split()
        for path in sorted(top.glob(pattern.lstrip("?"))):
            place = f"{target}{path.name}" if target.endswith("/") else target
            if path.is_file() and path not in found:
                found[path] = (place if wanted in ("all", kind) else "-", int(mode, 8))
    return [(path, target, mode) for path, (target, mode) in found.items() if target != "-"]


def digest() -> str:
    """A digest of everything install() writes."""
    total = hashlib.sha256(SCRIPT.encode())
    for source, target, mode in files():
        total.update(f"{target}\0{mode}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    return total.hexdigest()


def install(root: Path) -> None:
    """Install kupgrade and the lab's guest side below `root` (a directory of its own, or a whole root)."""
    put(root, files())
    script = root / "usr/bin/kupgrade"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SCRIPT)
    script.chmod(0o755)


def put(root: Path, wanted: Iterable[tuple[Path, str, int]]) -> None:
    """Copy `wanted` (as `files` yields it) below `root`; units are enabled as their [Install] sections say."""
    for source, target, mode in wanted:
        path = root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        shutil.copyfile(source, path)
        path.chmod(mode)
        if target.startswith(UNIT_DIRECTORY) and not path.parent.name.endswith(".d"):
            _enable(root, path)


def _enable(root: Path, unit: Path) -> None:
    """What `systemctl enable` does: links by the [Install] section. The workload is started when it is set up."""
    text = ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    text.optionxform = str  # type: ignore[assignment]
    text.read_string(unit.read_text())
    if not text.has_section("Install") or "@" in unit.name or unit.name == WORKLOAD:
        return
    install_section = text["Install"]
    for word, suffix in (("WantedBy", "wants"), ("RequiredBy", "requires")):
        for target in install_section.get(word, "").split():
            link = root / "etc/systemd/system" / f"{target}.{suffix}" / unit.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(f"/{UNIT_DIRECTORY}/{unit.name}")
