"""Another user of the machine, who has no key, gets nothing from any port of the stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stranger
from conftest import RunningStack
from test_stack import in_store, listeners, members

from infra import ports
from infra.certificates import inner_tls
from infra.daemon import Daemon
from infra.home import ADMIN_GRPC, Home, Secrets, Settings
from infra.recipes import s3_server, weed

SHELL_SECONDS = 6.0


def as_stranger(command: Sequence[str], **given: Any) -> subprocess.CompletedProcess[str]:
    """Run it as nobody where we may, and where nobody can reach it; else as ourselves, without a variable."""
    clean = {**given, "cwd": "/", "env": {"PATH": os.environ["PATH"]}}
    if os.getuid() == 0:
        nobody: dict[str, Any] = {"user": stranger.NOBODY, "group": stranger.NOBODY, "extra_groups": []}
        try:
            return subprocess.run(command, **clean, **nobody)
        except PermissionError:  # it lies in a home that is closed
            pass
    return subprocess.run(command, **clean)


def settings_of(stack: RunningStack) -> Settings:
    settings = Home(stack.home).settings()
    assert settings is not None
    return settings


def open_ports(stack: RunningStack) -> set[int]:
    """All ports on which a process of the stack listens."""
    inodes = {f"socket:[{row[9]}]": int(row[1].rsplit(":", 1)[1], 16) for row in listeners()}
    found = set()
    for process in members(stack):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                name = os.readlink(entry)  # noqa: PTH115 - a socket is no path
            except OSError:
                continue
            found |= {inodes[name]} if name in inodes else set()
    return found


def test_no_port_gives_anything_to_who_has_no_key(stack: RunningStack) -> None:
    in_store(stack, "store.put('private', b'1'); store.write_record('private.json', b'1')")
    settings = settings_of(stack)
    inner = {number for name, number in settings.inner_ports.items() if name != "worker"}
    inner |= {settings.inner_ports["admin"] + ADMIN_GRPC}
    known = {*settings.ports.values(), *inner, settings.inner_ports["worker"]}
    control = open_ports(stack) - known  # by which Prefect's worker tells its runs to stop; it wants a token of each
    assert len(control) == 1 and known < open_ports(stack)
    sockets = [str(path) for port in inner for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]
    assert len(sockets) >= 4

    asked = json.dumps({"ports": sorted(known | control), "sockets": sockets})
    command = [sys.executable, "-I", stranger.__file__]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, env={})
    found: dict[str, list[tuple[str, str, int, str]]] = json.loads(done.stdout)

    def answered(port: int) -> dict[int, set[str]]:
        """Requests by status."""
        seen: dict[int, set[str]] = {}
        for how, request, status, _ in found[str(port)]:
            seen.setdefault(status, set()).add(request if how == "plain" else f"{how} {request}")
        return seen

    assert {path: found[path] for path in sockets} == {path: [] for path in sockets}
    assert [found[str(port)] for port in control] == [[]]
    for port in inner:  # what speaks HTTP says that it wants TLS, and there without a certificate nothing more
        texts = {text for _, _, _, text in found[str(port)]}
        assert texts <= {"Client sent an HTTP request to an HTTPS server.\n"}, (port, found[str(port)])
        assert set(answered(port)) <= {400}, port
    every = {f"{method} {path}" for method, path in stranger.REQUESTS}
    assert answered(settings.ports["mlflow"]) == {401: every}
    assert answered(settings.ports["admin"]) == {401: every}
    s3 = answered(settings.ports["s3"])
    assert s3.pop(200, set()) <= {"GET /status"}
    assert {"GET /", "GET /winnow/private", "DELETE /winnow/private", "PUT /winnow/planted"} <= s3[403]
    assert answered(settings.ports["prefect"])[401] == {request for request in every if " /api/" in request}
    assert set(answered(settings.inner_ports["worker"])) <= {404, 405}
    assert set(answered(settings.ports["endpoint"])) <= {404, 405}
    assert in_store(stack, "print(store.get('private'), store.read_record('private.json'))") == "b'1' b'1'"
    assert in_store(stack, "print(store.get('planted'), store.get('winnow/planted'))") == "None None"


def shell(stack: RunningStack, lines: str, run: Any, **given: Any) -> str:
    """What SeaweedFS's own shell prints."""
    numbers = settings_of(stack).inner_ports
    master, filer = (f"127.0.0.1:{numbers[name]}.{numbers[f'{name}.grpc']}" for name in ("master", "filer"))
    command = [os.path.realpath(weed()), "shell", f"-master={master}", f"-filer={filer}"]
    try:
        done = run(command, input=lines, timeout=SHELL_SECONDS, capture_output=True, text=True, **given)
    except subprocess.TimeoutExpired as ended:  # it tries again for ever
        return (ended.stdout or b"").decode()
    return str(done.stdout)


def test_seaweedfs_shell_lists_reads_and_deletes_only_with_our_certificate(stack: RunningStack, tmp_path: Path) -> None:
    in_store(stack, "store.put('shelled', b'a secret')")
    lines = "fs.ls /buckets/winnow\nfs.cat /buckets/winnow/shelled\nfs.rm /buckets/winnow/shelled\n"
    told = shell(stack, lines, as_stranger)
    assert "shelled" not in told and "a secret" not in told
    assert in_store(stack, "print(store.get('shelled'))") == "b'a secret'"
    ours = {**os.environ, **inner_tls(stack.home / "certificates")}
    assert "shelled" in shell(stack, "fs.ls /buckets/winnow\n", subprocess.run, env=ours, cwd=tmp_path)


@pytest.mark.slow
def test_a_home_of_before_goes_on_working(servers_wanted: None, tmp_path: Path) -> None:
    """Data that were written when the inner ports had no certificates."""
    settings, secrets = Settings(ports={"s3": ports.pick(1)[0]}), Secrets()
    now = s3_server(tmp_path, settings, secrets)
    before = replace(now, argv=now.argv[now.argv.index(weed()) :])
    contents = []
    for component, code in ((before, "store.prepare(); store.put('kept', b'1')"), (now, "print(store.get('kept'))")):
        daemon = Daemon("s3", tmp_path)
        daemon.start(component)
        deadline = time.monotonic() + 60
        while not component.is_well():
            assert time.monotonic() < deadline, daemon.tail(30)
            time.sleep(0.05)
        environment = {
            "AWS_ACCESS_KEY_ID": secrets.access_key,
            "AWS_SECRET_ACCESS_KEY": secrets.secret_key,
            "AWS_ENDPOINT_URL_S3": component.url,
        }
        contents.append(in_store(RunningStack(tmp_path, environment), code))
        daemon.end(grace=5)
    assert contents == ["", "b'1'"]
