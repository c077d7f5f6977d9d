"""What journald keeps of a stream in a file of its state, by which it finds the stream again when it starts anew.

/run/systemd/journal/streams/DEV:INODE, in the form of systemd's journald-stream.c.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, replace

DAEMON_INFO = 3 << 3 | 6  # LOG_DAEMON | LOG_INFO, systemd's default of SyslogFacility= and SyslogLevel=
_FLAGS = ("LEVEL_PREFIX", "FORWARD_TO_SYSLOG", "FORWARD_TO_KMSG", "FORWARD_TO_CONSOLE")


@dataclass(frozen=True, slots=True)
class Stream:
    """What journald keeps of a stream. `priority`: facility and level as in syslog(3); `stream_id`: 32 hex digits."""

    unit: str
    identifier: str
    stream_id: str
    priority: int = DAEMON_INFO
    level_prefix: bool = True
    forward_to_syslog: bool = False
    forward_to_kmsg: bool = False
    forward_to_console: bool = False


def state_text(stream: Stream) -> str:
    """The state file of `stream`, as stdout_stream_load() of systemd 215 and later reads it."""
    flags = (stream.level_prefix, stream.forward_to_syslog, stream.forward_to_kmsg, stream.forward_to_console)
    lines = ["# This is private data. Do not parse", f"PRIORITY={stream.priority}"]
    lines += [f"{name}={flag:d}" for name, flag in zip(_FLAGS, flags, strict=True)]
    lines.append(f"STREAM_ID={stream.stream_id}")
    named = {"IDENTIFIER": stream.identifier, "UNIT": stream.unit}
    lines += [f"{name}={_quoted(value)}" for name, value in named.items() if value]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    printable = "".join(each if each.isprintable() else "?" for each in value)
    return '"' + re.sub(r'(["\\`$])', r"\\\1", printable) + '"'


def parse_state(text: str) -> Stream:
    """A stream from the state file that journald wrote of it; what is missing or not understood has its default."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    stream = new_stream(_unescaped(found.get("UNIT", "")), _unescaped(found.get("IDENTIFIER", "")))
    if re.fullmatch(r"[0-9]{1,3}", found.get("PRIORITY", "")):
        stream = replace(stream, priority=int(found["PRIORITY"]))
    if re.fullmatch(r"[0-9a-f]{32}", found.get("STREAM_ID", "")):
        stream = replace(stream, stream_id=found["STREAM_ID"])
    flags = [found.get(name, default) == "1" for name, default in zip(_FLAGS, "1000", strict=True)]
    return Stream(stream.unit, stream.identifier, stream.stream_id, stream.priority, *flags)


def _unescaped(value: str) -> str:
    """systemd's cescape() taken back."""
    value = value.strip('"')
    try:
        return value.encode().decode("unicode_escape").encode("latin-1").decode(errors="replace")
    except UnicodeError:
        return value


def new_stream(unit: str, identifier: str) -> Stream:
    """A stream with systemd's defaults and an ID of its own."""
    return Stream(unit, identifier, uuid.uuid4().hex)
