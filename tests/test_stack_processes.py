"""Daemons, ports, the lock, the folder: the parts that the stack is made of."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from patience import wait_for
from stub_components import stub

from infra import log_keeper, ports, procfs
from infra.daemon import Daemon, census
from infra.faults import PortTaken, StackBusy, StackMisconfigured
from infra.headway import Headway
from infra.home import INNER_PORTS, Home, Secrets, Settings, inner_ports
from infra.lock import exclusive
from infra.log_keeper import shorten_log
from infra.logs import follow, tail


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon("worker", tmp_path)
    yield made
    made.end(grace=0)


def started(daemon: Daemon, home: Path, *vices: str) -> int:
    component = stub("worker", ports.pick(1)[0], home, *vices)
    pid = daemon.start(component).pid
    wait_for(component.is_well)
    return pid


# -- daemons --------------------------------------------------------------------------------------------------------
def test_a_daemon_is_recognised_by_another_process(daemon: Daemon, tmp_path: Path) -> None:
    pid = started(daemon, tmp_path)
    code = (
        "import sys; from pathlib import Path; from infra.daemon import Daemon; "
        "print(Daemon('worker', Path(sys.argv[1])).running().pid)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pid
    assert procfs.look_at_process(pid) is not None and procfs.look_at_process(pid).session == pid  # type: ignore[union-attr]


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}, {"pid": 2**22 - 1}])
def test_a_reused_or_dead_pid_is_not_ours(daemon: Daemon, tmp_path: Path, change: dict[str, object]) -> None:
    started(daemon, tmp_path)
    noted = json.loads(daemon.pid_file.read_text())
    daemon.pid_file.write_text(json.dumps(noted | change))
    assert daemon.running() is None
    daemon.pid_file.write_text(json.dumps(noted))
    assert daemon.running() is not None


@pytest.mark.parametrize("text", ["", "12345", "{", '{"pid": 1}', "[]"])
def test_a_broken_pid_file_is_no_pid_file(daemon: Daemon, text: str) -> None:
    daemon.pid_file.parent.mkdir()
    daemon.pid_file.write_text(text)
    assert daemon.running() is None


def test_a_reused_pid_is_not_killed(daemon: Daemon) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    daemon.pid_file.parent.mkdir()
    noted = {"schema": 1, "pid": bystander.pid, "started": 1, "boot": procfs.boot_id(), "recipe": "", "since": 0}
    daemon.pid_file.write_text(json.dumps(noted))
    assert daemon.end(grace=1) == 0
    assert bystander.poll() is None
    assert not daemon.pid_file.exists()
    bystander.kill()
    bystander.wait()


def test_the_end_reaches_children_that_left_the_session(daemon: Daemon, tmp_path: Path) -> None:
    started(daemon, tmp_path, "parent")
    members = daemon.members()
    assert len(members) == 2 and len({process.session for process in members}) == 2
    assert daemon.end(grace=5) == 2
    assert [
        procfs.look_at_process(p.pid) for p in members if (now := procfs.look_at_process(p.pid)) and not now.zombie
    ] == []


def test_the_end_reaches_the_children_of_a_killed_leader(daemon: Daemon, tmp_path: Path) -> None:
    pid = started(daemon, tmp_path, "parent")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.running() is None)
    daemon.pid_file.unlink()  # even then
    assert [process.pid for process in daemon.members()] != []
    assert daemon.end(grace=5) == 1
    assert daemon.members() == []


def test_what_a_killed_leader_carried_out_may_go_on(daemon: Daemon, tmp_path: Path) -> None:
    pid = started(daemon, tmp_path, "parent", "runs")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.running() is None)
    assert daemon.end(grace=0, spares="WINNOW_TEST_RUN") == 1
    [run] = daemon.members()
    assert procfs.marked(run.pid, "WINNOW_TEST_RUN=") == "1"
    assert daemon.end(grace=0) == 1 and daemon.members() == []


def test_what_a_killed_one_left_among_its_temporary_files_goes(daemon: Daemon, tmp_path: Path) -> None:
    scratch = tmp_path / "data" / "tmp"
    scratch.mkdir(parents=True)
    (scratch / "model.onnx").write_bytes(b"of a request that was under way")
    write = "import tempfile, time; open(tempfile.mkdtemp() + '/here', 'w'); time.sleep(600)"
    daemon.start(replace(stub("worker", 0, tmp_path), argv=(sys.executable, "-c", write), scratch=scratch))
    wait_for(lambda: list(scratch.glob("*/here")))
    assert not (scratch / "model.onnx").exists() and scratch.stat().st_mode & 0o777 == 0o700


def test_who_ignores_sigterm_is_killed(daemon: Daemon, tmp_path: Path) -> None:
    started(daemon, tmp_path, "deaf")
    begun = time.monotonic()
    daemon.end(grace=0.5)
    assert 0.4 < time.monotonic() - begun < 5
    assert daemon.members() == []


def test_two_folders_do_not_see_each_other(daemon: Daemon, tmp_path: Path) -> None:
    started(daemon, tmp_path)
    assert census(tmp_path / "other") == {}
    assert [process.pid for process in census(tmp_path)["worker"]] == [p.pid for p in daemon.members()]


def test_who_waits_for_a_core_is_at_work(daemon: Daemon, tmp_path: Path) -> None:
    """Processes of a higher priority take nearly all of the one core that all may use.

    Many, each in a session of its own: some kernels divide a core among sessions first, whatever their priorities.
    """
    core = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{core}}}); print(end='', flush=True)\nwhile True: pass"
    greedy = [subprocess.Popen([sys.executable, "-S", "-c", spin], start_new_session=True) for _ in range(16)]
    try:
        wait_for(lambda: all(psutil.Process(each.pid).cpu_affinity() == [core] for each in greedy))
        argv = (sys.executable, "-S", "-c", f"import os; os.nice(19); {spin}")
        daemon.start(replace(stub("worker", 0, tmp_path), argv=argv))
        work = Headway(daemon, patience=2.0)
        time.sleep(1.0)
        assert not work.stands_still()
        leader, begun = daemon.running(), time.monotonic()
        assert leader is not None
        got = psutil.Process(leader.pid).cpu_times().user
        while time.monotonic() < begun + 4:
            assert not work.stands_still()
            time.sleep(0.2)
        assert psutil.Process(leader.pid).cpu_times().user - got < 0.4, "it did not have to wait: nothing was tried"
    finally:
        for each in greedy:
            each.kill()
        for each in greedy:
            each.wait()


# -- logs -----------------------------------------------------------------------------------------------------------
def test_logs_are_tailed_and_followed_across_rotation(daemon: Daemon, tmp_path: Path) -> None:
    daemon.log_file.parent.mkdir()
    daemon.log_file.write_text("".join(f"line {number}\n" for number in range(100)))
    assert list(tail(tmp_path, ["worker"], 2)) == [("worker", "line 98"), ("worker", "line 99")]
    lines = follow(tmp_path, ["worker"], every=0.01)
    with pytest.MonkeyPatch.context() as patch:
        writes = itertools.chain(
            [lambda: append(daemon.log_file, "more\nhalf a li"), lambda: daemon.log_file.write_text("fresh\n")],
            itertools.repeat(lambda: 0),
        )
        patch.setattr(time, "sleep", lambda _: write(next(writes)))
        assert next(lines) == ("worker", "more")
        assert next(lines) == ("worker", "fresh")


def write(step: Callable[[], object]) -> None:
    step()


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


def test_a_log_is_kept_short_while_it_is_written(daemon: Daemon, tmp_path: Path) -> None:
    spam = "import time\nfor i in range(10**9): print(f'line {i:09d}', flush=True); i % 50 or time.sleep(0.001)"
    daemon.start(replace(stub("worker", 0, tmp_path), argv=(sys.executable, "-S", "-c", spam)))
    log, older = daemon.log_file, daemon.log_file.with_suffix(".log.1")
    for _ in range(3):
        wait_for(lambda: log.stat().st_size > 100_000)
        assert shorten_log(log, most=100_000)
        assert older.stat().st_size >= 50_000, "what was written is kept for a while"
        assert log.stat().st_size < 100_000, "its writer goes on at the new end"
        assert b"\0" not in log.read_bytes()
        whole = (re.fullmatch(r"line (\d{9})", line) for line in daemon.tail(1000))  # one may be torn where it was cut
        both = [int(found[1]) for found in whole if found]
        assert len(both) >= 997 and both[-1] - both[0] < 1200, "hardly a line was lost"
    assert not shorten_log(log, most=10**9)
    shorten_log(older.with_name("none.log"))


def test_the_keeper_looks_after_the_logs_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "mlflow.log").write_bytes(b"x" * (log_keeper.MOST_BYTES + 1))
    (tmp_path / "s3.log").write_bytes(b"short")
    keeper = subprocess.Popen([sys.executable, "-I", "-S", log_keeper.__file__, str(tmp_path)])
    wait_for((tmp_path / "mlflow.log.1").exists)
    assert (tmp_path / "mlflow.log").read_bytes() == b"" and (tmp_path / "s3.log").read_bytes() == b"short"
    keeper.kill()
    keeper.wait()


# -- ports ----------------------------------------------------------------------------------------------------------
def test_a_taken_port_is_told_with_owner_holder_and_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(PortTaken) as refused:
            ports.check({"mlflow": number, "prefect": ports.pick(1)[0]})
    text = str(refused.value)
    assert (
        str(number) in text and "the MLflow server" in text and "--mlflow-port" in text and "WINNOW_MLFLOW_PORT" in text
    )
    assert f"(pid {os.getpid()})" in text
    assert "Prefect" not in text


def test_all_port_troubles_are_told_at_once() -> None:
    [free] = ports.pick(1)
    with pytest.raises(PortTaken) as refused:
        ports.check({"s3": 0, "endpoint": free, "admin": free})
    text = str(refused.value)
    assert "port 0 for the S3 server is not between 1 and 65535" in text
    assert f"port {free} for the serving endpoint is also that of admin" in text


def test_a_port_in_time_wait_counts_as_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", number))
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first and waits
        client.close()
    assert ports.is_free(number)


def test_inner_ports_differ_and_keep_what_they_were() -> None:
    found = inner_ports({"master": 12345})
    assert set(found) == set(INNER_PORTS) and found["master"] == 12345
    assert len(set(found.values())) == len(found)


# -- the folder -----------------------------------------------------------------------------------------------------
def test_secrets_are_for_the_owner_only_and_stay(tmp_path: Path) -> None:
    home = Home(tmp_path / ".winnow")
    settings, secrets = Settings(), Secrets()
    home.save(settings, secrets)
    assert home.secrets_file.stat().st_mode & 0o777 == 0o600
    assert home.path.stat().st_mode & 0o777 == 0o700
    assert (home.path / ".gitignore").read_text() == "*\n"
    assert (home.settings(), home.secrets()) == (settings, secrets)
    assert secrets.secret_key not in home.settings_file.read_text()
    assert Secrets() != Secrets()


def test_a_home_of_before_gets_the_secrets_that_it_lacks_and_keeps_its_own(tmp_path: Path) -> None:
    home, before = Home(tmp_path / ".winnow"), Secrets()
    home.save(Settings(), before)
    written = json.loads(home.secrets_file.read_text())
    del written["password"]
    home.secrets_file.write_text(json.dumps(written))
    found = home.secrets()
    assert found is not None and len(found.password) >= 32 and found.password != before.password
    assert replace(found, password="") == replace(before, password="")
    home.save(Settings(), found)
    assert home.secrets() == found


def test_a_damaged_or_newer_file_is_told_not_overwritten(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text("{")
    with pytest.raises(StackMisconfigured, match="cannot read"):
        home.settings()
    home.settings_file.write_text('{"schema": 2}')
    with pytest.raises(StackMisconfigured, match="schema 2"):
        home.settings()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackMisconfigured, match="set WINNOW_HOME"):
        Home(tmp_path / "file" / ".winnow").create()


# -- the lock -------------------------------------------------------------------------------------------------------
def test_the_lock_is_exclusive_and_freed_by_a_killed_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from infra.lock import exclusive\n"
        "with exclusive(Path(sys.argv[1]), patience=1, waiting=print):\n    print('held', flush=True); time.sleep(600)"
    )
    path, told = tmp_path / "lock", list[str]()
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(StackBusy, match=str(holder.pid)), exclusive(path, patience=0.3, waiting=told.append):
        pytest.fail("two holders")
    assert len(told) == 1 and str(holder.pid) in told[0]
    holder.kill()
    holder.communicate()
    with exclusive(path, patience=5, waiting=told.append):
        assert path.read_text() == str(os.getpid())
