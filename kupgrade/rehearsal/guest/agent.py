"""The lab's hand in the virtual host: JSON lines over a virtio-serial port. Standard library only.

Requests:
    {"id", "argv": [...], "timeout": seconds, "stdin": text, "env": {...}, "stream": bool}
    {"id", "read": path}
    {"id", "write": path, "data": base64, "mode": number, "append": bool}
    {"hello": true}
Empty lines and what is no JSON are skipped: half of a message may be left from another kernel's agent.
Answers:
    {"id", "status", "stdout", "stderr"} | {"id", "line": text} (stream)
    {"id", "data": base64} | {"id", "error": text}
    {"hello": {"boot_id", "release", "uptime", "agent", "time"}}, also without being asked when it starts
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
import uuid
from typing import Any

PORT = "/dev/virtio-ports/org.kupgrade.lab"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
INSTANCE = uuid.uuid4().hex
lock = threading.Lock()


def hello() -> dict[str, Any]:
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip()
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    return {
        "hello": {
            "boot_id": boot_id,
            "release": os.uname().release,
            "uptime": uptime,
            "agent": INSTANCE,
            "time": time.time(),
        }
    }


def say(port: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    with lock:
        while data:
            data = data[os.write(port, data) :]


def execute(port: int, request: dict[str, Any]) -> None:
    number = request["id"]
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        request["argv"],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        cwd="/root",
        env={**ENVIRONMENT, **request.get("env", {})},
    )
    killer = threading.Timer(request.get("timeout", 60), lambda: os.killpg(child.pid, 9))
    killer.daemon = True
    killer.start()
    try:
        if request.get("stream"):
            out, err = b"", follow(port, number, child)
        else:
            out, err = child.communicate(request.get("stdin", "").encode())
    finally:
        killer.cancel()
    texts = {"stdout": out.decode(errors="replace"), "stderr": err.decode(errors="replace")}
    say(port, {"id": number, "status": child.returncode, **texts})


def follow(port: int, number: str, child: subprocess.Popen[bytes]) -> bytes:
    errors: list[bytes] = []
    assert child.stdin and child.stdout and child.stderr
    stderr = child.stderr
    drain = threading.Thread(target=lambda: errors.append(stderr.read()), daemon=True)
    drain.start()
    child.stdin.close()
    for line in child.stdout:
        say(port, {"id": number, "line": line.decode(errors="replace").rstrip("\n")})
    drain.join()
    child.wait()
    return errors[0]


def write(request: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(request["write"]), exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if request.get("append") else os.O_TRUNC)
    with os.fdopen(os.open(request["write"], flags, request.get("mode", 0o644)), "wb") as file:
        file.write(base64.b64decode(request["data"]))


def serve(port: int, request: dict[str, Any]) -> None:
    try:
        if "argv" in request:
            execute(port, request)
        elif "read" in request:
            with open(request["read"], "rb") as file:
                say(port, {"id": request["id"], "data": base64.b64encode(file.read()).decode()})
        elif "write" in request:
            write(request)
            say(port, {"id": request["id"], "status": 0})
    except Exception as error:
        say(port, {"id": request.get("id"), "error": repr(error)})


def wait_for_port() -> int:
    """The open port. In a kernel that came up beside another one it appears when that one lets go of it."""
    while True:
        try:
            return os.open(PORT, os.O_RDWR)
        except OSError:
            time.sleep(0.2)


def main() -> None:
    port = wait_for_port()
    os.write(port, b"\n")  # ends what an agent of another kernel may have left unfinished
    say(port, hello())
    rest = b""
    while True:
        data = os.read(port, 65536)
        if not data:  # nobody holds the other end just now
            time.sleep(0.2)
            continue
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                request = json.loads(line)
            except ValueError:
                continue  # half a line from before this boot
            if request.get("hello"):
                say(port, hello())
            elif "write" in request:
                serve(port, request)  # in order: chunks of one file
            else:
                threading.Thread(target=serve, args=(port, request), daemon=True).start()


if __name__ == "__main__":
    main()
