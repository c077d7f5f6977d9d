"""The lab's hand in the virtual host: JSON lines over a virtio-serial port. Standard library only.

Request:  {"id": s, "argv": [...], "timeout": s, "stream": bool, "stdin": s} | {"id", "read": path}
          | {"id", "write": path, "data": base64, "mode": n, "append": bool} | {"hello": true}
Answer:   {"id", "status", "stdout", "stderr"} | {"id", "line": s} (stream) | {"id", "data": base64} | {"id", "error": s}
          | {"hello": {"boot_id", "release", "uptime"}}
"""

import base64
import json
import os
import subprocess
import sys
import threading
import time

PORT = "/dev/virtio-ports/org.kupgrade.lab"
lock = threading.Lock()


def hello():
    with open("/proc/sys/kernel/random/boot_id") as f:
        boot_id = f.read().strip()
    with open("/proc/uptime") as f:
        uptime = float(f.read().split()[0])
    return {"hello": {"boot_id": boot_id, "release": os.uname().release, "uptime": uptime}}


def say(port, message):
    data = json.dumps(message).encode() + b"\n"
    with lock:
        while data:
            data = data[os.write(port, data) :]


def execute(port, request):
    number, argv = request["id"], request["argv"]
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/root",
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "LC_ALL": "C.UTF-8",
                **request.get("env", {}),
            },
        )
    except OSError as error:
        return say(port, {"id": number, "error": str(error)})
    killer = threading.Timer(request.get("timeout", 60), lambda: os.killpg(child.pid, 9))
    killer.daemon = True
    killer.start()
    try:
        if request.get("stream"):
            errors = []
            drain = threading.Thread(target=lambda: errors.append(child.stderr.read()), daemon=True)
            drain.start()
            child.stdin.close()
            for line in child.stdout:
                say(port, {"id": number, "line": line.decode(errors="replace").rstrip("\n")})
            drain.join()
            out, err = b"", errors[0]
            child.wait()
        else:
            out, err = child.communicate(request.get("stdin", "").encode())
    finally:
        killer.cancel()
    say(
        port,
        {
            "id": number,
            "status": child.returncode,
            "stdout": out.decode(errors="replace"),
            "stderr": err.decode(errors="replace"),
        },
    )


def serve(port, request):
    try:
        if "argv" in request:
            execute(port, request)
        elif "read" in request:
            with open(request["read"], "rb") as f:
                say(port, {"id": request["id"], "data": base64.b64encode(f.read()).decode()})
        elif "write" in request:
            path = request["write"]
            os.makedirs(os.path.dirname(path), exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if request.get("append") else os.O_TRUNC)
            with os.fdopen(os.open(path, flags, request.get("mode", 0o644)), "wb") as f:
                f.write(base64.b64decode(request["data"]))
            say(port, {"id": request["id"], "status": 0})
    except Exception as error:
        say(port, {"id": request.get("id"), "error": repr(error)})


def main():
    port = os.open(PORT, os.O_RDWR)
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


sys.exit(main())
