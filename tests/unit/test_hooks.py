"""The package hooks, run by real shells against a fake root: what is recorded, and that nothing makes them fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.model.kernel import KernelRelease
from kupgrade.requests import Requests

HOOKS = Path(__file__).parents[2] / "hooks"
POSTINST, POSTRM = "debian/postinst.d/zz-kupgrade", "debian/postrm.d/zz-kupgrade"
KERNEL_INSTALL, RPM, PACMAN = "kernel-install/95-kupgrade.install", "rpm/kernel-files", "pacman/kupgrade"
VERSION = "6.12.57+deb13-amd64"
SHELLS = [[shell] for shell in ("dash", "sh") if shutil.which(shell)] + [["bash", "--posix"]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("run/systemd/system", "var/lib"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def run(
    root: Path,
    hook: str,
    *words: str | bytes,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    shell: list[str] = SHELLS[0],
    full: bool = False,
    closed: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """A hook, as a package manager calls it. `full`: no byte more can be written to any file."""

    def limit() -> None:
        import resource

        if full:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if closed:
            os.closerange(0, 3)

    base = {"PATH": os.environ["PATH"], "KUPGRADE_ROOT": str(root), "KUPGRADE_LIBRARY": str(HOOKS / "request.sh")}
    return subprocess.run(
        [*shell, str(HOOKS / hook), *words],
        input=stdin.encode(),
        capture_output=True,
        env={**base, **(env or {})},
        preexec_fn=limit,
        restore_signals=False,
        timeout=60,
    )


def pending(root: Path) -> list[str]:
    folder = root / "var/lib/kupgrade/pending"
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def everything(root: Path) -> set[str]:
    return {str(each.relative_to(root)) for each in root.rglob("*")}


RECORDED = {
    POSTINST: ([VERSION, f"/boot/vmlinuz-{VERSION}"], "", "debian"),
    KERNEL_INSTALL: (["add", VERSION, "/efi/token", "/boot/vmlinuz"], "", "kernel-install"),
    RPM: (
        ["add"],
        f"/lib/modules/1/x.ko\n/usr/lib/modules/{VERSION}/vmlinuz\n/usr/lib/modules/{VERSION}/a/b.ko\n",
        "rpm",
    ),
    PACMAN: (["add"], f"usr/lib/modules/{VERSION}/vmlinuz\n", "pacman"),
}


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("hook", RECORDED)
def test_a_request_is_recorded(root: Path, hook: str, shell: list[str]) -> None:
    """One private file, named after the release, whole JSON, silent, and nothing else is left behind."""
    words, stdin, source = RECORDED[hook]
    done = run(root, hook, *words, stdin=stdin, shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert pending(root) == [f"{VERSION}.json"]
    path = root / f"var/lib/kupgrade/pending/{VERSION}.json"
    assert json.loads(path.read_text()) == {"format": "kupgrade.request/1", "release": VERSION, "source": source}
    assert Requests(root / "var/lib/kupgrade").read().releases == (VERSION,)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]
    assert sorted(each.name for each in path.parent.parent.iterdir()) == ["pending"]


CHROOT = """set -e
mount -t tmpfs none "$1" && cd "$1"
mkdir -p usr proc dev hooks var/lib run/systemd/system # as /run of a host that runs systemd
for name in bin lib lib64 sbin; do ln -s "usr/$name" "$name"; done
mount --bind /usr usr && mount --bind /dev dev && mount -t proc proc proc && mount --bind "$2" hooks
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a chroot")
@pytest.mark.parametrize(("chroot", "noted"), [(["chroot", "."], False), (["unshare", "-pf", "chroot", "."], True)])
def test_nothing_is_noted_in_a_chroot_with_the_run_of_its_host(tmp_path: Path, chroot: list[str], noted: bool) -> None:
    """Its root is not that of PID 1; where it is (here: of a PID namespace of its own) a kernel is noted."""
    hook = f"mount -t proc proc /proc; exec env -i KUPGRADE_LIBRARY=/hooks/request.sh sh /hooks/{POSTINST} {VERSION}"
    script = f"{CHROOT}\n{' '.join(chroot)} sh -c '{hook}' && find var -name '*.json'"
    argv = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), str(HOOKS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (f"{VERSION}.json" in done.stdout) is noted, done.stderr


TAKEN_BACK = {
    POSTRM: ([VERSION], "", {"DEB_MAINT_PARAMS": "'remove'"}),
    f"{POSTRM} purge": ([VERSION], "", {"DEB_MAINT_PARAMS": "purge"}),
    KERNEL_INSTALL: (["remove", VERSION, "/efi/token"], "", {}),
    RPM: (["remove"], f"/usr/lib/modules/{VERSION}/vmlinuz\n", {}),
    PACMAN: (["remove"], f"usr/lib/modules/{VERSION}/vmlinuz\n", {}),
}


@pytest.mark.parametrize("name", TAKEN_BACK)
def test_a_removed_kernel_is_withdrawn(root: Path, name: str) -> None:
    """Its request goes, others stay; once more is no error."""
    words, stdin, env = TAKEN_BACK[name]
    for version in (VERSION, "6.12.60"):
        run(root, POSTINST, version)
    for _ in range(2):
        done = run(root, name.partition(" ")[0], *words, stdin=stdin, env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert pending(root) == ["6.12.60.json"]


@pytest.mark.parametrize(
    ("hook", "parameters", "acts"),
    [
        (POSTINST, "configure 6.12.56", True),
        (POSTINST, "'configure' '6.12.56'", True),
        (POSTINST, '"configure"', True),
        (POSTINST, "abort-upgrade 6.12.56", False),
        (POSTINST, "triggered linux-update", False),
        (POSTINST, "configured", False),
        (POSTINST, "$(touch evil) configure", False),
        (POSTINST, "configure; touch evil", False),
        (POSTRM, "remove", True),
        (POSTRM, "'purge'", True),
        (POSTRM, "upgrade 6.12.57", False),
        (POSTRM, "abort-install", False),
        (POSTRM, "disappear linux 1", False),
    ],
)
def test_only_some_calls_of_a_package_script_count(root: Path, hook: str, parameters: str, acts: bool) -> None:
    """configure records, remove and purge withdraw, nothing is evaluated."""
    if hook == POSTRM:
        run(root, POSTINST, VERSION)
    done = run(root, hook, VERSION, env={"DEB_MAINT_PARAMS": parameters})
    assert done.returncode == 0
    assert (pending(root) == [f"{VERSION}.json"]) is (acts if hook == POSTINST else not acts)
    assert "evil" not in everything(root) and not Path("evil").exists()


HOSTILE: list[str | bytes] = [
    "", " ", ".", "..", "/", "../../etc/cron.d/x", "a/b", "-rf", "--help", "*", "?", "6.12 57", "6.12\n57", "6;reboot",
    "$(touch evil)", "`touch evil`", "${IFS}", "'", '"', '6.1","x":"', "\\", "%s%n", "6.12\t", "&", "|cat", "<x", ">x",
    "6.1ü", b"6.1\xff", ".hidden", "~root", "a" * 64, "a" * 100_000, "6.12.57\r", "é6.1", "[a]", "{a,b}", "#", "=x",
]  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_hostile_versions_leave_no_trace(root: Path, shell: list[str]) -> None:
    """What is no release is ignored with a message; nothing is run, made or removed by it."""
    before = everything(root)
    for version in HOSTILE:
        for hook, words in ((POSTINST, [version]), (POSTRM, [version]), (KERNEL_INSTALL, ["add", version])):
            done = run(root, hook, *words, shell=shell)
            assert (done.returncode, done.stdout) == (0, b""), version
            assert done.stderr == b"kupgrade: not a kernel release, ignored\n", version
    assert everything(root) == before and not Path("evil").exists()


@pytest.mark.parametrize("version", [VERSION, "6.1", "7.0.0-rc3", "6.12~x", "a" * 63, "5.10.0_x"])
def test_hooks_and_tool_agree_on_names(root: Path, version: str) -> None:
    """What a hook records the model takes for a release, and what it refuses the model refuses, too."""
    run(root, POSTINST, version)
    assert pending(root) == [f"{KernelRelease(version)}.json"]
    for bad in HOSTILE:
        if isinstance(bad, str):
            with pytest.raises(BadInputError):
                KernelRelease(bad)


@pytest.mark.parametrize("hook", [*RECORDED, POSTRM])
@pytest.mark.parametrize("words", [[], ["add"], ["remove"], ["frobnicate", VERSION], [""], ["add", ""], ["--"]])
def test_other_arguments_are_no_failure(root: Path, hook: str, words: list[str]) -> None:
    """Called wrongly a hook does nothing, successfully."""
    done = run(root, hook, *words, stdin="no\0such\n/usr/lib/modules//vmlinuz\nusr/lib/modules/../vmlinuz\n")
    assert (done.returncode, done.stdout) == (0, b"")
    assert set(pending(root)) <= {"add.json", "remove.json", "frobnicate.json"}  # Debian's first word is the version


def broken(root: Path, how: str) -> None:
    state = root / "var/lib/kupgrade"
    if how == "state is a file":
        state.write_text("x")
    elif how == "state is a link":
        (root / "elsewhere").mkdir()
        state.symlink_to(root / "elsewhere")
    elif how == "pending is a link":
        (root / "elsewhere").mkdir()
        state.mkdir()
        (state / "pending").symlink_to(root / "elsewhere")
    elif how == "pending is a pipe":
        state.mkdir()
        os.mkfifo(state / "pending")
    elif how == "pending is another's":
        (state / "pending").mkdir(parents=True)
        os.chown(state / "pending", 1234, 1234)
    elif how == "/var is a file":
        shutil.rmtree(root / "var")
        (root / "var").write_text("x")


@pytest.mark.parametrize(
    "how",
    [
        "state is a file", "state is a link", "pending is a link", "pending is a pipe", "/var is a file", "full",
        pytest.param("pending is another's", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs chown")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("hook", RECORDED)
def test_a_broken_place_is_told_and_is_no_failure(root: Path, hook: str, how: str) -> None:
    """A full disk, links, files and others' directories: one line on stderr, status 0, no half file."""
    broken(root, how)
    words, stdin, _ = RECORDED[hook]
    done = run(root, hook, *words, stdin=stdin, full=how == "full")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"kupgrade: 6.12.57+deb13-amd64 is not noted: ") and done.stderr.count(b"\n") == 1
    assert not [name for name in everything(root) if "json" in name or ".request" in name]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a mount namespace")
@pytest.mark.parametrize("option", ["ro", "size=4k,nr_inodes=1", "size=16k"])
def test_a_file_system_that_takes_nothing(root: Path, option: str) -> None:
    """Read-only /var, one without inodes, a full one: told, and never a failed package."""
    fill = f"dd if=/dev/zero of={root}/var/lib/filler bs=1k 2>/dev/null;" if option == "size=16k" else ""
    script = (
        f"mount -t tmpfs -o {option} none {root}/var && {{ mkdir -p {root}/var/lib/kupgrade/pending; "
        f"chmod -R 700 {root}/var/lib/kupgrade; {fill} :; }} 2>/dev/null; sh {HOOKS / POSTINST} {VERSION}; echo $?; "
        f"find {root}/var -name '*json*' -o -name '.request*'"
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        env={"PATH": os.environ["PATH"], "KUPGRADE_ROOT": str(root), "KUPGRADE_LIBRARY": str(HOOKS / "request.sh")},
        check=False,
    )
    if b"mount:" in done.stderr:
        pytest.skip("mounts are forbidden here")
    assert done.stdout == b"0\n" and b"is not noted" in done.stderr


def test_links_laid_in_the_way_are_not_followed(root: Path) -> None:
    """The name of a request, or of its temporary file, may be a link: the target stays as it is."""
    folder = root / "var/lib/kupgrade/pending"
    folder.mkdir(parents=True)
    for each in (folder.parent, folder):
        each.chmod(0o700)
    target = root / "precious"
    target.write_text("precious")
    (folder / f"{VERSION}.json").symlink_to(target)
    assert run(root, POSTINST, VERSION).returncode == 0
    assert target.read_text() == "precious" and not (folder / f"{VERSION}.json").is_symlink()
    (folder / "6.1.json").symlink_to(target)
    run(root, POSTRM, "6.1")
    assert target.read_text() == "precious" and pending(root) == [f"{VERSION}.json"]


@pytest.mark.parametrize("hook", [*RECORDED, POSTRM])
@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_without_stdin_stdout_and_stderr(root: Path, hook: str, shell: list[str]) -> None:
    """Descriptors that are closed are no failure, and those who need none of them do their work."""
    words = RECORDED[hook][0] if hook in RECORDED else [VERSION]
    assert run(root, hook, *words, closed=True, shell=shell).returncode == 0
    assert pending(root) == ([f"{VERSION}.json"] if hook in (POSTINST, KERNEL_INSTALL) else [])


@pytest.mark.parametrize("hook", RECORDED)
def test_a_removed_tool_leaves_quiet_hooks(root: Path, hook: str) -> None:
    """Configuration files that stay after a removal find no library, and do nothing."""
    words, stdin, _ = RECORDED[hook]
    done = run(root, hook, *words, stdin=stdin, env={"KUPGRADE_LIBRARY": str(root / "gone")})
    assert (done.returncode, done.stdout, done.stderr, pending(root)) == (0, b"", b"", [])


@pytest.mark.parametrize("hook", RECORDED)
def test_an_image_that_is_built_gets_no_request(root: Path, hook: str) -> None:
    """Without a running systemd (a chroot, an installer) nothing is recorded."""
    shutil.rmtree(root / "run")
    words, stdin, _ = RECORDED[hook]
    done = run(root, hook, *words, stdin=stdin)
    assert (done.returncode, done.stderr, pending(root)) == (0, b"", [])


def test_many_files_of_a_kernel_are_one_request(root: Path) -> None:
    """The trigger of rpm gets every file of a transaction, and finds the kernels in it."""
    names = "".join(f"/usr/lib/modules/{VERSION}/kernel/drivers/{n}.ko.xz\n" for n in range(5000))
    done = run(root, RPM, "add", stdin=f"{names}/usr/lib/modules/{VERSION}/vmlinuz\n/lib/modules/6.1/vmlinuz\n")
    assert done.returncode == 0 and pending(root) == ["6.1.json", f"{VERSION}.json"]


def test_names_are_what_their_callers_look_for() -> None:
    """run-parts takes names without dots, kernel-install .install only; all are executable but the library."""
    for hook in (POSTINST, POSTRM):
        assert "." not in Path(hook).name
    for hook in (*RECORDED, POSTRM):
        assert os.access(HOOKS / hook, os.X_OK)
        assert (HOOKS / hook).read_text().startswith("#!/bin/sh\n")
        assert "exit 77" not in (HOOKS / hook).read_text() and "python" not in (HOOKS / hook).read_text().lower()


@pytest.mark.skipif(not shutil.which("perl"), reason="needs perl")
def test_the_file_for_needrestart_is_perl() -> None:
    """It parses, and sets what its comment says."""
    script = f'our %nrconf; do "{HOOKS / "needrestart/50-kupgrade.conf"}" or die $@; print $nrconf{{kernelhints}};'
    done = subprocess.run(["perl", "-we", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0", b"")


@pytest.mark.skipif(not shutil.which("apt-config"), reason="needs apt")
def test_the_file_for_unattended_upgrades_is_read_by_apt() -> None:
    """apt takes it, and it comes after the one that sets the default."""
    path = HOOKS / "unattended-upgrades/52kupgrade"
    done = subprocess.run(["apt-config", "-c", str(path), "dump"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and 'Unattended-Upgrade::Automatic-Reboot "false";' in done.stdout
    assert path.name > "50unattended-upgrades"
