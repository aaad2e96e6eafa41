"""TCP ports on loopback: which are free, and a clear word about one that is not."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from infra.faults import PortTaken
from infra.procfs import listening_pid, name

LOOPBACK = "127.0.0.1"
_DYING_PATIENCE = 3.0


@dataclass(frozen=True)
class Port:
    """A port that people see: what needs it, and how to choose another."""

    name: str
    owner: str
    default: int

    @property
    def flag(self) -> str:
        return f"--{self.name}-port"

    @property
    def variable(self) -> str:
        return f"WINNOW_{self.name.upper()}_PORT"


PUBLIC = (
    Port("s3", "the S3 server", 8333),
    Port("mlflow", "the MLflow server", 5000),
    Port("prefect", "the Prefect server", 4200),
    Port("endpoint", "the serving endpoint", 8080),
    Port("admin", "the endpoint's admin listener", 8081),
)


def is_free(port: int) -> bool:
    """Whether a server could listen on that loopback port now."""
    with socket.socket() as probe:
        # As servers do: a connection in TIME_WAIT does not keep the port, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
        return True


def listener(port: int) -> str:
    """Who has the port, as ``name (pid 123)``; empty where that cannot be seen (another user's process)."""
    pid = listening_pid(port)
    return f"{name(pid)} (pid {pid})" if pid is not None else ""


def pick(count: int, *, twin: int = 0) -> list[int]:
    """That many free ports, all different, below those that the kernel gives to outgoing connections.

    They are free now, and only another server can take them; whoever needs them should take them soon.
    With ``twin``, the ports that lie so much higher are free as well.
    """
    try:
        ceiling = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        ceiling = 32768
    found: list[int] = []
    for port in random.SystemRandom().sample(range(10240, max(ceiling, 24000) - twin), 2048):
        if len(found) == count:
            break
        if is_free(port) and (not twin or is_free(port + twin)):
            found.append(port)
    return found


def check(ports: Mapping[str, int], ours: Set[int] = frozenset()) -> None:
    """Refuse to start on ports that are taken, out of range or given twice; names all of them at once.

    A port of one of the processes ``ours`` counts as free: that process is about to be ended.

    Raises:
        PortTaken: with the port, who needs it, who has it where that can be seen, and the flag.
    """
    deadline = time.monotonic() + _DYING_PATIENCE
    while (wrong := _wrong(ports, ours)) and time.monotonic() < deadline:
        if not all(dying for _, dying in wrong):
            break
        time.sleep(0.1)
    if wrong:
        raise PortTaken("\n".join(text for text, _ in wrong))


def _wrong(ports: Mapping[str, int], ours: Set[int]) -> list[tuple[str, bool]]:
    """What is wrong with the ports, and whether time may fix it: a process that is dying holds its port unseen."""
    found = []
    for port in PUBLIC:
        if port.name not in ports:
            continue
        number = ports[port.name]
        remedy = f"choose another with {port.flag} or {port.variable}"
        twins = [other for other, value in ports.items() if value == number and other != port.name]
        if not 0 < number < 65536:
            found.append((f"port {number} for {port.owner} is not between 1 and 65535; {remedy}", False))
        elif twins:
            found.append((f"port {number} for {port.owner} is also that of {', '.join(twins)}; {remedy}", False))
        elif not is_free(number) and listening_pid(number) not in ours:
            holder = listener(number)
            by = f" by {holder}" if holder else ""
            found.append((f"port {number} is taken{by}, and {port.owner} needs it; {remedy}", not holder))
    return found
