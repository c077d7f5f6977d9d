"""Taking secrets out of text: what looks like one is replaced, and of a kernel command line only known values stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv6Address
from typing import Any

GONE = "[redacted]"

_NAMES = (
    r"passwd|password|passphrase|passcode|pwd|secret\w*|token\w*|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|credentials?|auth|authorization|cookie|session[_-]?id|signature|psk|salt"
)
_PARTS = _NAMES.replace(r"\w*", "")  # what may follow is asked for once: twice would take for ever in a long word
# NAME=value, NAME: value, "NAME": "value"; the name may have more before and after.
_ASSIGNED = re.compile(
    rf"""(?isx) ((?<![\w.-]) [\w.-]* (?:{_PARTS}|(?<![^\W_])pass(?![^\W_])) [\w.-]*+ \\*["']? \s* [=:] \s*)
    ( \"{{3}}.*?\"{{3}} | '{{3}}.*?'{{3}} | \\+".*?\\+" | "(?:\\.|[^"\\])*" | '[^']*'
    | (?:basic|bearer|digest|negotiate|token)\s+\S+ | [^\s,;}}\])]+ )"""
)
_OPTION = re.compile(rf"""(?ix) ((?:^|\s)--?[\w-]* (?:{_PARTS}|pass) [\w-]*+ \s+) ( "[^"]*" | '[^']*' | \S+ )""")
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/-]{8,}=*")
_URL_LOGIN = re.compile(r"(?i)(?<![a-z0-9])([a-z][a-z0-9+.-]{0,30}+://)[^\s/\"]*@")
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
# Forms that carry their meaning in themselves: JSON web tokens, keys of well-known services, long hex and base64.
_KNOWN = re.compile(
    r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bsk[-_](?:live[-_])?[\w-]{16,}|\bxox[abprs]-[\w-]{10,}|\$(?:1|2[aby]|5|6|y|argon2\w*)\$[\w./$=,+-]{8,}"
)
# What the operator's own programs print: nobody knows what is in it.
_HOOK = re.compile(
    r"(hook [\w-]+\.d/[^\s:]+: (?!(?:exit status|it took|it ended))"
    r"|(?:exit status \d+|it ended by signal \d+|it took longer than [\d.]+ s): ).+"
)
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])")
_IPV6 = re.compile(r"(?i)(?<![\w:.])[0-9a-f:]*:[0-9a-f:]*:[0-9a-f:.]*(?![\w:])")
_MAC = re.compile(r"(?i)\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b")

# Parameters whose values say how a kernel was started and nothing else; of all others the name stays.
_SAFE = frozenset((
    "root", "ro", "rw", "quiet", "splash", "console", "panic", "rootfstype", "rootflags", "rootwait", "rootdelay",
    "resume", "init", "rdinit", "kexec", "crashkernel", "memmap", "mem", "hugepages", "hugepagesz",
    "default_hugepagesz", "isolcpus", "nohz_full", "rcu_nocbs", "nosmt", "maxcpus", "nr_cpus", "iommu",
    "intel_iommu", "amd_iommu", "mitigations", "kho", "kho_scratch", "liveupdate", "lsm", "security", "selinux",
    "apparmor", "audit", "no_ipi_broadcast", "systemd.unit", "systemd.unified_cgroup_hierarchy", "BOOT_IMAGE",
    "initrd", "net.ifnames", "biosdevname", "consoleblank", "loglevel", "earlyprintk", "nomodeset", "acpi", "pci",
    "noapic", "nolapic", "reboot", "nokaslr", "kaslr", "transparent_hugepage", "numa_balancing", "lockdown",
    "module.sig_enforce", "modprobe.blacklist", "rd.driver.blacklist", "kvm_intel.tdx", "threadirqs", "preempt",
    "clocksource", "tsc", "nowatchdog", "nmi_watchdog", "softlockup_panic", "oops", "printk.devkmsg", "log_buf_len",
    "swiotlb", "cgroup_disable", "systemd.show_status", "kupgrade.ticket", "kupgrade.return", "kupgrade.pids",
    "kupgrade.instance",
))  # fmt: skip
_CMDLINE_NAMES = ("cmdline", "command line", "back_cmdline", "cmdline_append", "extra", "options")


def text(value: str, *, addresses: bool = False) -> str:
    """Without what looks like a secret; `addresses`: without IP and hardware addresses, too."""
    value = _PEM.sub(GONE, value)
    value = _URL_LOGIN.sub(rf"\1{GONE}@", value)
    for pattern in (_ASSIGNED, _OPTION, _BEARER, _HOOK):
        value = pattern.sub(rf"\1{GONE}", value)
    value = _KNOWN.sub(GONE, value)
    if addresses:
        value = _IPV4.sub(GONE, _IPV6.sub(_without_address, _MAC.sub(GONE, value)))
    return value


def _without_address(match: re.Match[str]) -> str:
    """An IPv6 address goes; a time of day or a PCI address, which look like one, stays."""
    try:
        IPv6Address(match[0].rstrip("."))
    except AddressValueError:
        return match[0]
    return GONE


def cmdline(value: str) -> str:
    """A kernel command line: of a parameter that is not known to be harmless only the name stays."""
    words = re.findall(r'(?:[^\s"]|"[^"]*(?:"|$))+', value)
    return " ".join(_word(word) for word in words)


def _word(word: str) -> str:
    name, equals, _ = word.partition("=")
    whole = word.count('"') % 2 == 0
    return word if not equals or (name in _SAFE and whole) else f"{name}={GONE}"


def data(value: Any, *, addresses: bool = False, name: str = "") -> Any:
    """JSON values: every text redacted, command lines and commands by their own rules."""
    match value:
        case str() if name in _CMDLINE_NAMES:
            return text(cmdline(value), addresses=addresses)
        case str():
            return text(value, addresses=addresses)
        case list() if name in ("command", "argv") and value:
            return [text(str(value[0]), addresses=addresses), *([GONE] if len(value) > 1 else [])]
        case list() | tuple():
            return [data(item, addresses=addresses, name=name) for item in value]
        case Mapping():
            shown: dict[str, Any] = {}
            for key, item in value.items():
                shown[_key(str(key), shown, addresses)] = _named(str(key), item, addresses)
            return shown
    return value


_SECRET_NAME = re.compile(rf"(?i)(?:^|[_.-])(?:{_NAMES})(?:$|[_.-])|passw(?:or)?d|passphrase")


def _key(key: str, taken: Mapping[str, Any], addresses: bool) -> str:
    """A key without what is secret in it; one that is like another then is numbered."""
    found = plain = text(key, addresses=addresses)
    number = 1
    while found in taken:
        number += 1
        found = f"{plain} {number}"
    return found


def _named(key: str, value: Any, addresses: bool) -> Any:
    if not _SECRET_NAME.search(key):
        return data(value, addresses=addresses, name=key)
    return GONE if isinstance(value, int | float) and not isinstance(value, bool) else _hidden(value)


def _hidden(value: Any) -> Any:
    """What lies under a secret name: its shape and numbers, no text."""
    match value:
        case str():
            return GONE
        case list() | tuple():
            return [_hidden(item) for item in value]
        case Mapping():
            return {text(str(key)): _hidden(item) for key, item in value.items()}
    return value


# TOML: a string; a list of strings, to the end of the text where it is not closed; the rest of a line.
_STRING = r"""(?:\"{3}(?:\\.|[^\\])*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
_LIST = rf"""\[(?:{_STRING}|\#[^\n]*|[^\]"'#])*(?:\]|.*)"""
_OWN_NAME = r"""(?:^|[\s{,.#])["']?(?:command|cmdline_append)["']?\s*=\s*"""
_OWN_WORDS = re.compile(rf"(?ms)({_OWN_NAME})(?:{_LIST}|{_STRING}|[^\n]*)")


def toml(source: str, *, addresses: bool = False) -> str:
    """A policy file: text rules, and of probes' commands and words for kernels nothing but the key."""
    return text(_OWN_WORDS.sub(rf'\1"{GONE}"', source), addresses=addresses)
