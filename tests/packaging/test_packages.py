"""The packages in Debian roots: built, checked, installed, used, upgraded, removed, purged. Minutes; as root."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kupgrade.model.record import RecordKind
from kupgrade.rehearsal import tree
from kupgrade.rehearsal.cache import Cache
from kupgrade.statedir import StateDirectory
from tests.packaging.roots import TREE, Root, built, changeable, host_root
from tests.unit.cli.conftest import COMMITTED, HANDS_OFF, Event, write
from tests.unit.conftest import a_plan

pytestmark = [pytest.mark.vm, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for chroots")]
# What dpkg, apt and systemd's helper note of any package; a package's own files lie nowhere below.
NOTES = ("proc", "sys", "dev", "run", "tmp", "debs", "var/log", "var/lib/dpkg", "var/lib/apt")
CACHES = ("var/cache/apt", "var/cache/debconf", "var/cache/ldconfig", "var/cache/man")
UPGRADE = "20261121-041503-9f2c1a"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """On the file system of the cache: an overlay's two halves have to fit together."""
    root = Cache.default().root
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="packages-", dir=root) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def builder(place: Path) -> Root:
    """A root with the tree in /src, its packages in /debs, and those of the next version in /next."""
    root = built(place / "build")
    bump = "sed -i '1s/(0[^)]*)/(99.0)/' packaging/debian/changelog"
    root.run("sh", "-c", f"cp -a /src /src2 && cd /src2 && {bump} && packaging/build-deb /next")
    return root


@pytest.fixture
def host(place: Path, builder: Root) -> Iterator[Root]:
    """A host without kupgrade, with its packages at hand in /debs and /next."""
    directory = place / "host"
    root = changeable(host_root(), directory)
    for name in ("debs", "next"):
        shutil.copytree(builder.file(name), root.file(name))
    yield root
    shutil.rmtree(directory)


def install(host: Root, *debs: str) -> str:
    done = host.run("sh", "-c", f"apt-get -qy install {' '.join(debs)}")
    return done.stdout + done.stderr


def apt(host: Root, verb: str, package: str = "kupgrade") -> str:
    done = host.run("apt-get", "-qy", verb, package)
    return done.stdout + done.stderr


def files(host: Root) -> set[str]:
    """Every file, directory and link: type, mode, owner, size of files, where links lead."""
    prune = " -o ".join(f"-path /{name}" for name in (*NOTES, *CACHES))
    script = rf"find / -xdev \( {prune} \) -prune -o -type f -printf '%y %m %u %s %p\n' -o -printf '%y %m %u %l %p\n'"
    return set(host.run("sh", "-c", script).stdout.splitlines())


def state(host: Root, *events: Event, upgrade: str = UPGRADE, closed: bool = False) -> None:
    """An upgrade in the host's state directory, as this kernel's boot would have begun it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    states = StateDirectory(host.place / "written")
    journal = states.begin(a_plan(upgrade, boot_id=boot, old_release=os.uname().release))
    write(journal, events)
    journal.close()
    if closed:
        states.finish(a_plan(upgrade).upgrade)


def test_lintian_finds_nothing(builder: Root) -> None:
    """No error, warning, remark or pedantry; the source package is complete, too."""
    done = builder.run("sh", "-c", "lintian --allow-root -EvIL +pedantic /debs/*.changes")
    assert [line for line in done.stdout.splitlines() if line[:2] in ("E:", "W:", "I:", "P:", "X:")] == []


def test_installed_used_removed_purged(host: Root) -> None:
    """The command works where the package puts it; a purge leaves the host as it was."""
    before = files(host)
    install(host, "/debs/kupgrade_*.deb")
    assert "version" in host.run("kupgrade", "--version").stdout
    assert "preflight" in host.run("kupgrade", "--help").stdout
    policy = json.loads(host.run("kupgrade", "policy", "check", "--json").stdout)
    assert policy["files"] == ["/usr/lib/kupgrade/policy.d/50-default.toml"]
    done = host.run("kupgrade", "preflight", "--json", check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "systemd is PID 1" in done.stdout
    script = host.file("debs/smoke")
    shutil.copy(TREE / "packaging/debian/tests/smoke", script)
    host.run("sh", "/debs/smoke")
    for page in ("8 kupgrade", "5 kupgrade-policy"):
        section, name = page.split()
        assert f"usr/share/man/man{section}/{name}.{section}.gz" in host.run("dpkg", "-L", "kupgrade").stdout
    enabled = host.file("etc/systemd/system/sysinit.target.wants")
    assert {path.name for path in enabled.iterdir()} == {"kupgrade-lock.service", "kupgrade-resume.service"}
    packaged = {f"/{target}" for _, target, _ in tree.packaged()}
    listed = {line.removesuffix(".gz") for line in host.run("dpkg", "-L", "kupgrade").stdout.splitlines()}
    elsewhere = {
        "/usr/share/zsh/site-functions/": "/usr/share/zsh/vendor-completions/",
        "/etc/apt/": "/usr/share/kupgrade/etc/apt/",
        "/etc/needrestart/": "/usr/share/kupgrade/etc/needrestart/",
    }
    for place, target in elsewhere.items():
        packaged = {name.replace(place, target) for name in packaged}
    assert packaged <= listed
    linked = {name for name in packaged if name.startswith("/usr/share/kupgrade/etc/apt/")}
    for name in linked:
        assert host.run("readlink", name.removeprefix("/usr/share/kupgrade")).stdout.strip() == name
    # What a rehearsal installs in its virtual host is found from here, too.
    code = "from kupgrade.rehearsal import tree; print(tree.source(), sum(1 for _ in tree.files()), tree.digest())"
    assert host.run("python3", "-sPc", code).stdout.startswith("/usr/share/kupgrade ")
    own = {"etc/kupgrade/policy.d/own.toml": "x", "var/cache/kupgrade/python/x": "x"}
    for name, text in own.items():
        host.file(name).parent.mkdir(parents=True, exist_ok=True)
        host.file(name).write_text(text)
    apt(host, "remove")
    left = {line.split()[-1] for line in files(host) - before}
    kept = {f"/{parent}" for name in own for parent in (name, *map(str, Path(name).parents)) if "kupgrade" in parent}
    assert {name for name in left if "systemd" not in name} == kept
    apt(host, "purge")
    assert files(host) ^ before == set()


def test_the_standby_initramfs_is_made_of_what_is_installed(host: Root) -> None:
    """The agent's modules are found in dist-packages, compiled ones included; nothing of it is missing."""
    install(host, "/debs/kupgrade_*.deb")
    code = """
from pathlib import Path
from kupgrade.host import standby_python
from kupgrade.host.filetree import FileTree
tree = FileTree(Path("/"))
missing = standby_python.add(tree)
names = {entry.name for entry in tree.entries()}
base = "usr/lib/python3/dist-packages/"
assert missing == [], missing
for wanted in ("kupgrade/standby/agent", "kupgrade/machine/restorer", "kupgrade/journal", "pycriu/criu"):
    assert base + wanted + ".pyc" in names, wanted
assert not [name for name in names if "/kupgrade/cli/" in name]
"""
    host.run("python3", "-sPc", code)


def test_an_upgrade_of_the_package_keeps_history_and_what_is_open(host: Root) -> None:
    """Journals of the old version are told the same by the new one; what is open stays open, and that is said."""
    install(host, "/debs/kupgrade_*.deb")
    state(host, *COMMITTED, upgrade="20261120-041503-9f2c1a", closed=True)
    state(host, (RecordKind.STARTED, 0, {}), (RecordKind.DONE, 0, {"seconds": 0.5}))
    before = host.run("kupgrade", "history", "--json").stdout
    assert [json.loads(line)["outcome"] for line in before.splitlines()] == ["committed", "open"]
    said = install(host, "/next/kupgrade_*.deb")
    assert f"kernel upgrade {UPGRADE} is open; it goes on" in said
    assert "99.0" in host.run("dpkg", "-s", "kupgrade").stdout
    assert host.run("kupgrade", "history", "--json").stdout == before


def test_removal_takes_back_what_is_open(host: Root) -> None:
    """An upgrade that had touched nothing yet is closed as rolled back, and the history of it stays."""
    install(host, "/debs/kupgrade_*.deb")
    state(host)
    said = apt(host, "remove")
    assert f"kernel upgrade {UPGRADE} is open; it is taken back" in said
    assert "WARNING" not in said
    install(host, "/debs/kupgrade_*.deb")
    assert json.loads(host.run("kupgrade", "history", "--json").stdout)["outcome"] == "rolled-back"


def test_removal_stops_an_instance(host: Root) -> None:
    """One that had taken nothing yet is closed; the next installation finds none."""
    install(host, "/debs/kupgrade_*.deb")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    states = StateDirectory(host.place / "written")
    states.begin_instance("rt", a_plan(engine="instance", boot_id=boot, old_release=os.uname().release)).close()
    assert states.open_instances() == ("rt",)
    said = apt(host, "remove")
    assert "instance rt runs beside this kernel; it is stopped" in said
    assert "could not be stopped" not in said
    assert states.open_instances() == ()


def test_what_cannot_be_taken_back_is_said_and_kept_until_the_purge(host: Root) -> None:
    """A removal warns and leaves everything to a new installation; a purge wipes images and lets the units start."""
    before = files(host)
    install(host, "/debs/kupgrade_*.deb")
    state(host, *HANDS_OFF)
    images = host.file("var/lib/kupgrade/images")
    images.mkdir(0o700)
    (images / "pages-1.img").write_bytes(b"secret" * 1000)
    dropin = host.file("etc/systemd/system/demo.service.d/zzzz-kupgrade.conf")
    dropin.parent.mkdir(parents=True)
    dropin.write_text("[Service]\n")
    (dropin.parent / "90-kupgrade-stopped.conf").write_text("[Unit]\n")
    said = apt(host, "remove")
    assert f"WARNING: the kernel upgrade {UPGRADE} is still open" in said
    assert "Install kupgrade again" in said
    install(host, "/debs/kupgrade_*.deb")
    status = host.run("kupgrade", "status", "--json", check=False)
    assert UPGRADE in status.stdout
    assert "is given up" in apt(host, "purge")
    assert files(host) ^ before == set()


def test_the_module_is_built_by_dkms_and_goes_with_its_package(host: Root) -> None:
    """kspawn.ko for the headers that are there; after the purge neither module nor source."""
    before = files(host)
    install(host, "/debs/kupgrade-dkms_*.deb")
    release = next(path.name for path in (host.lower / "usr/lib/modules").iterdir())
    assert "kspawn" in host.run("sh", "-c", "dkms status").stdout
    built = host.run("sh", "-c", f"find /usr/lib/modules/{release} -name 'kspawn.ko*'").stdout.split()
    assert len(built) == 1
    assert "GPL" in host.run("modinfo", "-F", "license", built[0]).stdout
    apt(host, "purge", "kupgrade-dkms")
    left = {line for line in files(host) ^ before if "/usr/lib/modules/" not in line and "/var/lib/dkms" not in line}
    assert left == set()
    assert host.run("sh", "-c", "find / -xdev -name 'kspawn*' -not -path '/debs/*' -not -path '/proc/*'").stdout == ""


def test_the_wheel_finds_its_files(builder: Root) -> None:
    """In an environment of its own, as pipx makes one: the command, the manual page, what a rehearsal installs."""
    wheel = "pip wheel --no-deps --no-build-isolation --no-index -w /wheel ."
    builder.run("sh", "-c", f"cp -a /src /srcw && cd /srcw && {wheel}")
    script = "python3 -m venv --system-site-packages /venv && /venv/bin/pip install --no-index --no-deps /wheel/*.whl"
    builder.run("sh", "-c", script)
    assert "preflight" in builder.run("/venv/bin/kupgrade", "--help").stdout
    code = (
        "from kupgrade.rehearsal import tree, spawn_module as m; print(tree.source(), len(tree.packaged()), m.SOURCE)"
    )
    place, count, module = builder.run("/venv/bin/python", "-Pc", code).stdout.split()
    assert (place, int(count)) == ("/venv/share/kupgrade", len(tree.packaged()))
    assert builder.file(f"{module[1:]}/dkms.conf").is_file()
    assert builder.file("venv/share/man/man8/kupgrade.8").is_file()
    done = builder.run("/venv/bin/kupgrade", "preflight", check=False)
    assert (done.returncode, "a wheel has no units" in done.stdout) == (3, True), done.stdout


def test_the_rpm_holds_the_same(builder: Root) -> None:
    """rpmbuild takes the spec file; what it packs starts, and is what the manifest names."""
    builder.run("sh", "-c", "cd /src && packaging/build-rpm /rpms")
    builder.run("sh", "-c", "cd /rpms && for i in *.rpm; do rpm -qpl $i > $i.list; done")
    listed = {name for path in builder.file("rpms").glob("*.list") for name in path.read_text().splitlines()}
    assert {f"/{target}" for _, target, _ in tree.packaged("rpm")} <= listed
    assert "/usr/src/kspawn-0.1.0/dkms.conf" in listed
    unpack = "rpm2archive -n /rpms/kupgrade-0*.rpm | tar x && cp -a usr /"
    builder.run("sh", "-c", f"mkdir /unpacked && cd /unpacked && {unpack}")
    assert "version" in builder.run("/usr/bin/kupgrade", "--version").stdout
