"""kupgrade itself as a layer of the virtual host: package, units, policies, where a Debian package would put them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import kupgrade

PACKAGE = Path(kupgrade.__file__).parent
SOURCE = PACKAGE.parent
GUEST = Path(__file__).parent / "guest"
WORKLOAD = "demo.service"
SCRIPT = "#!/usr/bin/python3\nimport sys\n\nfrom kupgrade.cli.main import main\n\nsys.exit(main())\n"
UNIT_DIRECTORY = "usr/lib/systemd/system"
UNIT_SUFFIXES = (".service", ".path", ".timer", ".socket", ".target", ".mount", ".slice")


def files() -> Iterator[tuple[Path, str, int]]:
    """Every file to install: source, target relative to the root, mode."""
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path, f"usr/lib/python3/dist-packages/kupgrade/{path.relative_to(PACKAGE)}", 0o644
    for path in _under("packaging/systemd"):
        if path.suffix in UNIT_SUFFIXES:
            yield path, f"{UNIT_DIRECTORY}/{path.name}", 0o644
        elif path.suffix == ".conf":  # a drop-in: UNIT.d/NAME.conf
            yield path, f"{UNIT_DIRECTORY}/{path.parent.name}/{path.name}", 0o644
    for kind, target in (
        ("tmpfiles", "usr/lib/tmpfiles.d"),
        ("modprobe", "usr/lib/modprobe.d"),
        ("catalog", "usr/lib/systemd/catalog"),
    ):
        for path in _under(f"packaging/{kind}"):
            yield path, f"{target}/{path.name}", 0o644
    for path in _under("packaging/modules-load"):
        yield path, f"usr/lib/modules-load.d/{path.name}", 0o644
    for path in _under("policies"):
        shipped = path.name == "default.toml"
        target = "usr/lib/kupgrade/policy.d/50-default.toml" if shipped else f"usr/share/kupgrade/policies/{path.name}"
        yield path, target, 0o644
    for path in _under("hooks"):
        yield path, f"usr/share/kupgrade/hooks/{path.relative_to(SOURCE / 'hooks')}", 0o755
    for name in ("agent.py", "workload.py", "resources.py", "roll_back.py", "refuse.py", "standby_fault.py"):
        yield GUEST / name, f"usr/lib/kupgrade-lab/{name}", 0o644
    for name in ("kupgrade-lab-agent.service", WORKLOAD):
        yield GUEST / name, f"{UNIT_DIRECTORY}/{name}", 0o644
    yield GUEST / "network.network", "etc/systemd/network/10-lab.network", 0o644


def _under(directory: str) -> list[Path]:
    root = SOURCE / directory
    return sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []


def digest() -> str:
    """A digest of everything install() writes."""
    total = hashlib.sha256(SCRIPT.encode())
    for source, target, mode in files():
        total.update(f"{target}\0{mode}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    return total.hexdigest()


def install(root: Path) -> None:
    """Install kupgrade and the lab's guest side below `root` (a directory of its own, or a whole root)."""
    for source, target, mode in files():
        path = root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        shutil.copyfile(source, path)
        path.chmod(mode)
        if target.startswith(UNIT_DIRECTORY) and not path.parent.name.endswith(".d"):
            _enable(root, path)
    script = root / "usr/bin/kupgrade"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SCRIPT)
    script.chmod(0o755)


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
