from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from kupgrade.errors import BadInputError, ToolError
from kupgrade.host import nft
from kupgrade.host.nft import Direction


def test_the_input_lock_is_one_transaction_that_replaces_the_table():
    """Delete and define stand in one text; ports are sorted and once each; nothing goes out blocked."""
    assert nft.ruleset([5555, 80, 80], [53], Direction.INPUT) == (
        "table inet kupgrade_lock\n"
        "delete table inet kupgrade_lock\n"
        "table inet kupgrade_lock {\n"
        "\tchain open_input {\n"
        "\t}\n"
        "\tchain open_output {\n"
        "\t}\n"
        "\tchain input {\n"
        "\t\ttype filter hook input priority -300; policy accept;\n"
        "\t\tjump open_input\n"
        "\t\ttcp dport { 80, 5555 } drop\n"
        "\t\tudp dport { 53 } drop\n"
        "\t}\n"
        "}\n"
    )


def test_both_directions_match_the_local_port_each_way():
    """Incoming by destination, outgoing by source."""
    text = nft.ruleset([80], [], Direction.BOTH)
    assert "hook output" in text
    assert "tcp sport { 80 } drop" in text
    assert "udp" not in text


OPEN = """
import socket
from kupgrade.host import nft
servers = {}
for name in ("asked", "other"):
    servers[name] = socket.create_server(("127.0.0.1", 0))
ports = {name: server.getsockname()[1] for name, server in servers.items()}
def answers(name):
    try:
        socket.create_connection(("127.0.0.1", ports[name]), 0.3).close()
    except TimeoutError:
        return False
    return True
def told():
    print(answers("asked"), answers("other"), nft.locked())
nft.lock(ports.values(), [], nft.Direction.BOTH)
told()
nft.open_loopback([ports["asked"]], [])
told()
nft.open_loopback([], [])
told()
"""


def test_a_workload_is_asked_on_loopback_while_all_others_stay_locked():
    """Before the commit nobody else may hear anything, nor say it; afterwards nothing is open any more."""
    if not shutil.which("nft") or not shutil.which("unshare"):
        pytest.skip("nft or unshare is not installed")
    argv = ["unshare", "--net", "sh", "-c", f'ip link set lo up && exec "{sys.executable}" -c "$0"', OPEN]
    done = subprocess.run(argv, capture_output=True, text=True)
    if "unshare failed" in done.stderr or "None" in done.stdout:
        pytest.skip(f"no network namespace with nftables here: {done.stderr[-200:]}")
    assert done.stdout.splitlines() == ["False False True", "True False True", "False False True"], done.stderr


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_ports_out_of_range_are_refused(port):
    """Before nft sees them."""
    with pytest.raises(BadInputError):
        nft.ruleset([port], [], Direction.INPUT)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("echo 'tcp dport 80 drop'", True),
        ("echo 'table inet kupgrade_lock {}'", False),
        ("echo 'Error: No such file or directory' >&2; exit 1", False),
        ("echo 'Operation not permitted' >&2; exit 1", None),
    ],
)
def test_locked_tells_unknown_from_no(tool, body, answer):
    """A table without a drop is no lock; an nft that may not look does not know."""
    tool("nft", body)
    assert nft.locked() is answer


def test_locked_without_nft_is_unknown(tool):
    """No tool, no answer."""
    assert nft.locked() is None


def test_a_refused_lock_is_an_error(tool):
    """The caller must not go on to the dump believing in a lock."""
    tool("nft", "echo 'Error: Could not process rule' >&2; exit 1")
    with pytest.raises(ToolError, match="Could not process rule"):
        nft.lock([80], [], Direction.INPUT)


SCRIPT = """
from kupgrade.host import nft
from kupgrade.host.nft import Direction
answers = [nft.locked()]
nft.lock([80, 443], [53], Direction.BOTH)
answers.append(nft.locked())
nft.lock([80], [], Direction.INPUT)
answers.append(nft.locked())
nft.unlock()
nft.unlock()
answers.append(nft.locked())
print(answers)
"""


PROGRAM = "from kupgrade.host import libnftables\nlibnftables.load = lambda: None\n"


@pytest.mark.parametrize("before", ["", PROGRAM], ids=["library", "program"])
def test_the_real_nft_takes_it_in_a_network_namespace_of_its_own(before):
    """Lock, replace, unlock, unlock again; the host's rules are not touched."""
    if not shutil.which("nft") or not shutil.which("unshare"):
        pytest.skip("nft or unshare is not installed")
    argv = ["unshare", "--net", sys.executable, "-c", before + SCRIPT]
    done = subprocess.run(argv, capture_output=True, text=True)
    if "unshare failed" in done.stderr or "[None" in done.stdout:
        pytest.skip(f"no network namespace with nftables here: {done.stderr[-200:]}")
    assert done.stdout == "[False, True, True, False]\n", done.stderr


QUIET = """
import socket
from kupgrade.host import nft
lo = [nft.Interface("lo", 1)]
receiver = socket.socket(type=socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
receiver.settimeout(0.3)
def heard():
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", receiver.getsockname())
    try:
        return receiver.recv(1) == b"x"
    except TimeoutError:
        return False
answers = []
silence, end = nft.silence, nft.end_silence
for act in (lambda _: None, lambda i: silence(i, dry=True), silence, silence, end, end):
    act(lo)
    answers.append(heard())
print(answers)
"""


@pytest.mark.parametrize("before", ["", PROGRAM], ids=["library", "program"])
def test_a_silent_interface_sends_nothing_and_a_check_changes_nothing(before):
    """Asked of the kernel: datagrams come through, also after a dry run, and not while it is silent."""
    if not shutil.which("nft") or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("nft, ip or unshare is not installed")
    inner = ["sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, "-c", before + QUIET]
    done = subprocess.run(["unshare", "--net", *inner], capture_output=True, text=True)
    if "unshare failed" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"no network namespace with such a hook here: {done.stderr[-200:]}")
    assert done.stdout == "[True, True, False, False, True, True]\n", done.stdout + done.stderr


def test_a_name_that_nft_would_read_otherwise_is_refused():
    """A quote in an interface's name ends what stands in quotes."""
    with pytest.raises(BadInputError, match="nft cannot be told"):
        nft.silence([nft.Interface('e"0', 2)])


REFUSED = """
from kupgrade.errors import ToolError
from kupgrade.host import libnftables, nft
try:
    nft.apply("table inet kupgrade_lock { nonsense }")
except ToolError as error:
    print(libnftables.load() is not None, error)
"""


def test_the_library_says_why_it_refuses():
    """As the program would."""
    if not shutil.which("nft") or not shutil.which("unshare"):
        pytest.skip("nft or unshare is not installed")
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", REFUSED], capture_output=True, text=True)
    if "unshare failed" in done.stderr:
        pytest.skip("no network namespace here")
    assert "True" in done.stdout and "Error: syntax error" in done.stdout, done.stderr
