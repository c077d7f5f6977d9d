"""kupgrade as the virtual host gets it."""

from __future__ import annotations

from pathlib import Path

from kupgrade.rehearsal import tree


def test_the_tree_is_installed_where_a_package_would_put_it(tmp_path: Path) -> None:
    """Package, command, units with their links, the default policy; a second installation changes nothing."""
    tree.install(tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    tree.install(tmp_path)
    assert before == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert (tmp_path / "usr/lib/python3/dist-packages/kupgrade/errors.py").is_file()
    assert (tmp_path / "usr/bin/kupgrade").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "usr/lib/kupgrade/policy.d/50-default.toml").is_file()
    links = tmp_path / "etc/systemd/system"
    assert (links / "sysinit.target.wants/kupgrade-resume.service").is_symlink()
    assert (links / "multi-user.target.wants/kupgrade-lab-agent.service").is_symlink()
    assert not list(tmp_path.rglob("__pycache__"))


def test_the_digest_follows_the_content() -> None:
    """The same tree gives the same digest, so that an image is built once for it."""
    assert tree.digest() == tree.digest()
