"""train.py --distributed across two hosts: network namespaces of this machine, joined by a cable of their own.

Needs Linux, root and `ip`; a script stands in for ssh.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi_helpers import LONGEST, MPIEXEC, RANK_PROGRAM, apart, options, own_lines, weights
from poetry_helpers import Outcome, pseudo_poems, run_program

NAMES = tuple(f"minidl-{os.getpid()}-{number}" for number in range(2))
ADDRESSES = "10.213.7.1", "10.213.7.2"


def possible() -> bool:
    """Whether this process may make hosts."""
    if sys.platform != "linux" or os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    made = subprocess.run(["ip", "netns", "add", NAMES[0]], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", NAMES[0]], capture_output=True)
    return made


pytestmark = pytest.mark.skipif(not possible(), reason="hosts of its own need Linux, root and network namespaces")


def ip(command: str) -> str:
    return subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    ends = f"v{os.getpid()}a", f"v{os.getpid()}b"
    try:
        for name in NAMES:
            ip(f"netns add {name}")
        ip(f"link add {ends[0]} netns {NAMES[0]} type veth peer name {ends[1]} netns {NAMES[1]}")
        for name, end, address in zip(NAMES, ends, ADDRESSES, strict=True):
            ip(f"-n {name} addr add {address}/24 dev {end}")
            ip(f"-n {name} link set {end} up")
            ip(f"-n {name} link set lo up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """What mpiexec calls in the place of ssh: agent HOST COMMAND..."""
    path = tmp_path / "agent"
    path.write_text(
        textwrap.dedent(f"""\
            #!/bin/sh
            name={NAMES[1]}
            [ "$1" = {ADDRESSES[0]} ] && name={NAMES[0]}
            shift
            exec ip netns exec $name unshare --uts sh -c "hostname $name; $*"
            """),
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def on_both(agent: Path, folder: Path, what: str, step: int, *arguments: str) -> Outcome:
    """A rank on each host; `what` is done to the second one."""
    network = ADDRESSES[0].rpartition(".")[0] + ".0/24"
    settings = ("--prtemca", "plm_ssh_agent", agent, "--prtemca", "prte_if_include", network)
    mpi = (MPIEXEC, *settings, "--mca", "btl_tcp_if_include", network, "--bind-to", "none")
    where = ("--host", ",".join(f"{address}:1" for address in ADDRESSES), "-n", 2)
    program = (sys.executable, RANK_PROGRAM, what, 1, step, *arguments, "--distributed")
    command = " ".join(map(str, (*mpi, *where, *program)))
    first = ["ip", "netns", "exec", NAMES[0], "unshare", "--uts", "sh", "-c", f"hostname {NAMES[0]}; exec {command}"]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = subprocess.Popen(first, cwd=folder, env=environment, start_new_session=True, **pipes)
    try:
        out, err = running.communicate(timeout=LONGEST)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    return Outcome(running.returncode, out.decode("utf-8"), err.decode("utf-8").replace("\0", ""))


def sent() -> int:
    """Bytes that the second host has sent."""
    found = ip(f"netns exec {NAMES[1]} cat /sys/class/net/v{os.getpid()}b/statistics/tx_bytes")
    return int(found)


@pytest.mark.slow
def test_two_hosts_end_with_the_weights_of_one_process(
    hosts: None, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "poems.txt"
    text.write_text("\n".join(pseudo_poems(299)), encoding="utf-8")
    arguments = options(text, "--optimizer", "sgd", "--hidden-size", 64, "--embedding-size", 64)
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    assert run_program("train", *arguments).code == 0
    outcome = on_both(agent, tmp_path, "nothing", 0, *arguments)
    assert outcome.code == 0, outcome.err
    one = weights(tmp_path / "alone")
    assert apart(one, weights(tmp_path)) < 1e-5
    # every step the gradients cross the cable once: no more than the weights, and what MPI and TCP need
    steps = 3 * 9
    size = sum(array.nbytes for array in one.values())
    assert steps * size < sent() < 1.25 * steps * size


@pytest.mark.slow
def test_a_rank_that_is_killed_on_one_host_ends_those_on_the_other(hosts: None, agent: Path, tmp_path: Path) -> None:
    text = tmp_path / "poems.txt"
    text.write_text("\n".join(pseudo_poems(299)), encoding="utf-8")
    outcome = on_both(agent, tmp_path, "kill", 12, *options(text))
    assert outcome.code != 0 and own_lines(outcome) == []
    assert "epoch  1" in outcome.err and "epoch  2" not in outcome.err
