"""Secrets in text: what is taken out, and what has to stay readable."""

from __future__ import annotations

import time

import pytest

from kupgrade.core.redact import GONE, cmdline, data, text, toml

SECRET = "hunter2-Zq8x"


@pytest.mark.parametrize(
    "line",
    [
        f"password={SECRET}",
        f"DB_PASSWORD: {SECRET}",
        f'"api_key": "{SECRET}"',
        f"curl -H 'Authorization: Bearer {SECRET}-{SECRET}'",
        f"mysql --password {SECRET} -u root",
        f"mysql --password={SECRET}",
        f"client_secret = '{SECRET} and more'",
        f"postgres://app:{SECRET}@db.example.org/app",
        f"https://{SECRET}@example.org/",
        f"X-Auth-Token: {SECRET}",
        f"pass={SECRET}",
        f"Cookie: {SECRET}; other",
        f"said Bearer {SECRET}-{SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}",
        f"kupgrade: hook gate.d/10-a: {SECRET}",
        f"The hook gate.d/10-a says no: exit status 1: {SECRET}",
        f"The hook gate.d/10-a says no: it took longer than 2.5 s: {SECRET} {SECRET}",
        f"root:$6$saltsalt${SECRET}{SECRET}:19000:0",
        f"token eyJhbGciOiJIUzI1NiJ9.{SECRET}{SECRET}.{SECRET}",
        f"key ghp_{SECRET.replace('-', '')}{SECRET.replace('-', '')}",
        f"redis://:{SECRET}@db:6379/0",
        f"https://app:a@{SECRET}@example.org/",
        f"url:-https://app:{SECRET}@example.org/",
        f"--password {SECRET}",
        f'password = """{SECRET}"""',
        f"password = '''\n{SECRET}'''",
        f"first line\\npassword={SECRET}",
        f"docker run -e DB_PASS={SECRET} db",
        f'{{"error": "exit status 1, {{\\"password\\": \\"{SECRET} {SECRET}\\"}}"}}',
    ],
)
def test_what_looks_like_a_secret_goes(line: str) -> None:
    """In logs, errors and files."""
    assert SECRET not in text(line)
    assert SECRET.replace("-", "") not in text(line)
    assert GONE in text(line)


@pytest.mark.parametrize(
    "line",
    [
        "compass: 3, bypass: no",
        "see https://www.kernel.org/doc/html/latest/admin-guide/kdump/ or ask kernel@example.org",
        "take authority in the new kernel (the new release runs with the ticket of this upgrade)",
        "passes the devices behind 0000:00:02.0 to the new kernel",
        "store pmem passed over: there is no /dev/pmem0",
        "hook gate.d/10-a was called, exit status 0",
        "freeze web, jobs: 1.25 s",
        "Linux version 6.12.48+deb13-amd64 (gcc 14.2.0)",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "kexec_core: Starting new kernel",
    ],
)
def test_what_a_report_is_for_stays(line: str) -> None:
    """Prose about passing authority is no secret."""
    assert text(line) == line


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        ("peer 192.0.2.17:443 closed", "192.0.2.17"),
        ("peer 2001:db8::17 closed", "2001:db8::17"),
        ("peer [fe80::1ff:fe23:4567:890a]", "fe80::1ff:fe23:4567:890a"),
        ("eth0 52:54:00:12:34:56", "52:54:00:12:34:56"),
    ],
)
def test_addresses_go_when_asked(line: str, gone: str) -> None:
    """And stay otherwise; times, versions and PCI addresses are none."""
    assert gone in text(line)
    assert gone not in text(line, addresses=True)
    for harmless in ("at 12:34:56", "0000:00:02.0", "6.12.48-1", "criu 4.2.1", "1.2.3", "d41d8cd98f00b204"):
        assert text(harmless, addresses=True) == harmless


def test_of_a_command_line_only_known_values_stay() -> None:
    """Whatever an administrator hands to his own software is his own."""
    line = (
        f'BOOT_IMAGE=/vmlinuz root=UUID=1234 ro quiet panic=3 my.thing={SECRET} other="{SECRET} x" flag -- {SECRET}=1'
    )
    shown = cmdline(line)
    assert shown.startswith("BOOT_IMAGE=/vmlinuz root=UUID=1234 ro quiet panic=3 my.thing=[redacted]")
    assert SECRET not in shown.partition("--")[0]


def test_stored_data_is_redacted_by_its_keys() -> None:
    """Commands keep their program, command lines their known words, keys that name a secret nothing."""
    value = {
        "probe": {"kind": "command", "command": ["/usr/bin/check", "--key", SECRET]},
        "cmdline": f"root=/dev/vda own={SECRET}",
        "facts": {"command line": f"quiet own={SECRET}"},
        "deep": [{"auth_token": SECRET, "passed": 3, "note": f"secret={SECRET}"}],
    }
    shown = data(value)
    assert SECRET not in str(shown)
    assert shown["probe"]["command"] == ["/usr/bin/check", GONE]
    assert shown["deep"][0]["passed"] == 3


def test_a_policy_keeps_its_keys() -> None:
    """A probe's command, over several lines too, and words for kernels go."""
    source = f'[workload.probe]\nkind = "command"\ncommand = [\n  "/bin/x",\n  "{SECRET}",\n]\ntimeout = "1s"\n'
    source += f'[engine.kexec]\ncmdline_append = "own={SECRET}"\n'
    shown = toml(source)
    assert SECRET not in shown
    assert 'timeout = "1s"' in shown
    assert "cmdline_append = " in shown


@pytest.mark.parametrize("line", [f'quiet own="{SECRET} and more', f'own="a {SECRET}', f'quiet="x own={SECRET}'])
def test_a_quote_that_is_never_closed_hides_what_is_behind_it(line: str) -> None:
    """The kernel takes it to the end of the line, as does a command line that was cut off."""
    assert SECRET not in cmdline(line)


@pytest.mark.parametrize(
    "value",
    [
        {"passwords": [SECRET]},
        {"credentials": {"user": "app", "value": SECRET}},
        {"PGPASSWORD": SECRET},
        {"dbPassword": SECRET},
        {f"https://app:{SECRET}@example.org/": 1.5},
    ],
)
def test_stored_data_is_redacted_however_deep_it_lies(value: object) -> None:
    """In lists, in objects, and where it is a key itself."""
    assert SECRET not in str(data(value))


def test_keys_that_look_alike_without_their_secrets_stay_apart() -> None:
    """None of their values is lost."""
    shown = data({"192.0.2.1": 1, "192.0.2.2": 2, "tokens": [3, 4]}, addresses=True)
    assert sorted(map(str, shown.values())) == ["1", "2", "[3, 4]"]
    assert "192.0.2" not in str(shown)


@pytest.mark.parametrize(
    "source",
    [
        f'command = ["/bin/sh", "-c", "[ -f /x ] && ask {SECRET}"]',
        f'[workload]\nprobe = {{ kind = "command", command = ["/bin/x", "{SECRET}"] }}',
        f'"command" = ["/bin/x", "{SECRET}"]',
        f'probe.command = ["/bin/x", "{SECRET}"]',
        f'# command = ["/bin/x", "{SECRET}"]',
        f'command = ["/bin/x",  # not ]\n  "{SECRET}"]',
        f'command = ["/bin/x", "{SECRET}',
        f'cmdline_append = """\nown={SECRET}"""',
        f'# cmdline_append = "own={SECRET}"',
        f'kexec = {{ cmdline_append = "own={SECRET}" }}',
    ],
)
def test_a_policy_may_be_written_in_any_form(source: str) -> None:
    """Inline, dotted, over several lines, commented out, or not whole."""
    shown = toml(f'{source}\n\ntimeout = "1s"\n')
    assert SECRET not in shown


@pytest.mark.parametrize("word", ["a", "x-", "a.", "token", "\\", '"', "secret_", "https://"])
def test_a_long_word_takes_no_longer_than_many_short_ones(word: str) -> None:
    """A bitmap, a key or an image in hexadecimal digits must not keep a report from ever being made."""
    begun = time.process_time()
    text(word * 4000)
    assert time.process_time() - begun < 1.0
