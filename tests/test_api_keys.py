"""Keys, TLS and the audit log: of the files, and of a running endpoint."""

from __future__ import annotations

import json
import ssl
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from click.testing import CliRunner
from conftest import Server
from cryptography import x509
from endpoint_process import ASK, TOKEN, Endpoint, endpoint
from onnx_models import numbered
from patience import wait_for
from server_certificate import server_certificate
from test_serving_endpoint import start

from flows.commands.command_keys import audit_command, keys_command
from model_registry.api_keys import KeyFile, KeysUnreadable
from model_registry.audit_log import AuditBroken, AuditLog, verify_audit
from model_registry.store import Store
from serving.exceptions import Forbidden, TooManyRequests, Unauthorized
from serving.front.data_plane import DataPlane
from serving.front.request_reader import RequestReader
from serving.key_ring import KeyRing, Principal
from serving.limits import RequestLimits


# -- the file ---------------------------------------------------------------------------------------------------
def test_a_key_is_kept_as_a_hash_that_only_the_file_s_secret_makes(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    assert file.read() is None
    key, text = file.add("shop", models=("digits",), rate=5, days=1)
    kept = file.path.read_text()
    assert text not in kept and text[3:] not in kept
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    found = file.read()
    assert found is not None
    assert found.digest_of(text) == key.digest
    other = KeyFile(tmp_path / "other.json")
    other.add("shop")
    assert (again := other.read()) is not None and again.digest_of(text) != key.digest


def test_two_who_add_at_once_lose_no_key(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    with ThreadPoolExecutor(8) as pool:
        texts = {made[1] for made in pool.map(lambda i: file.add(f"k{i}"), range(16))}
    found = file.read()
    assert found is not None
    assert {found.digest_of(text) for text in texts} == {key.digest for key in found.keys}


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [(b"{", 0o600, "damaged"), (b"{}", 0o600, "secret"), (b"", 0o600, "damaged"), (b"{}", 0o644, "chmod 600")],
)
def test_a_damaged_or_open_file_is_named_with_the_remedy(
    tmp_path: Path, content: bytes, mode: int, message: str
) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(KeysUnreadable, match=message):
        KeyFile(path).read()
    ring = KeyRing(path)
    assert ring.wanted, "a file that cannot be read opens nothing"
    with pytest.raises(Unauthorized):
        ring.find(b"Bearer x")


@pytest.mark.parametrize(("mode", "read"), [(0o440, True), (0o444, True), (0o460, False), (0o446, False)])
def test_a_file_of_another_user_may_be_read_but_not_written_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, read: bool
) -> None:
    """A Secret that Kubernetes mounts belongs to root, and a group or everybody may read it."""
    file = KeyFile(tmp_path / "keys.json")
    file.add("a")
    file.path.chmod(mode)
    with pytest.raises(KeysUnreadable, match="chmod 600"):
        file.read()
    mine = file.path.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: mine + 1)
    if read:
        assert file.read() is not None
    else:
        with pytest.raises(KeysUnreadable, match="open to others"):
            file.read()


def bearer(text: str) -> bytes:
    return f"Bearer {text}".encode()


def test_changes_are_taken_over_and_a_removed_file_opens_nothing(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    ring = KeyRing(file.path, "admin")
    assert not ring.wanted
    key, text = file.add("a")
    assert ring.reload() and ring.wanted and not ring.reload()
    assert ring.find(bearer(text)).key == key
    assert ring.find(b"Bearer admin").key.name == "the admin token"
    for wrong in (b"", b"Bearer ", bearer(text + "x"), bearer(text[:-1]), b"Basic " + text.encode(), bearer("admin2")):
        with pytest.raises(Unauthorized):
            ring.find(wrong)
    file.revoke(key.id)
    assert ring.reload()
    with pytest.raises(Unauthorized):
        ring.find(bearer(text))
    _, other = file.add("b")
    ring.reload()
    file.path.write_text("{")
    assert ring.reload() and "damaged" in ring.fault
    assert ring.find(bearer(other)), "the keys stay as they were"
    file.path.unlink()
    assert ring.reload() and "is gone" in ring.faults["keys"]
    assert ring.wanted
    with pytest.raises(Unauthorized):
        ring.find(bearer(other))


def test_the_remedy_of_an_open_file_is_noticed(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, text = file.add("a")
    file.path.chmod(0o644)
    ring = KeyRing(file.path)
    assert "chmod 600" in ring.fault and not ring.reload()
    file.path.chmod(0o600)
    assert ring.reload() and ring.fault == "" and ring.find(bearer(text))


def test_what_keeps_the_file_from_being_read_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, text = file.add("a")
    ring = KeyRing(file.path)

    def no_descriptors(path: Path) -> bytes:
        raise OSError(24, "Too many open files")

    for name in ("read_bytes", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, no_descriptors if name == "read_bytes" else lambda path: no_descriptors(path))
            file.path.touch()
            assert ring.reload() and not ring.reload() and "Too many open files" in ring.fault, name
            assert ring.find(bearer(text)), "the keys stay as they were"
        assert ring.reload() and ring.fault == "", name


def test_who_has_ended_reads_no_more_with_a_head_that_was_taken_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, text = file.add("a", days=1)
    plane = DataPlane(cast(Any, SimpleNamespace(models={})), RequestLimits(), KeyRing(file.path))
    reader = RequestReader(plane.heads, plane.limits, plane.admit, lambda: None, plane.arriving)
    request = b"GET /v2/models HTTP/1.1\r\nhost: a\r\nauthorization: " + bearer(text) + b"\r\n\r\n"

    def refusal() -> Any:
        arrived = reader.feed(request)
        assert arrived is not None
        return arrived[0].refusal

    assert refusal() is None
    later = time.time() + 2 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert refusal()[0] == 401


def test_a_key_is_for_models_actions_and_a_time(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, _ = file.add("a", models=("digits",), actions=("infer",))
    who = Principal(key)
    who.require("infer", "digits")
    for action, model in (("infer", "other"), ("read", "digits"), ("read", "")):
        with pytest.raises(Forbidden, match=key.id):
            who.require(action, model)  # type: ignore[arg-type]
    ended = Principal(key.model_copy(update={"expires": time.time() - 1}))
    with pytest.raises(Unauthorized, match="expired"):
        ended.require("infer", "digits")


def test_a_rate_is_exact_and_a_burst_is_not_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    file = KeyFile(tmp_path / "keys.json")
    _, text = file.add("a", rate=10, burst=3)
    ring = KeyRing(file.path)

    def taken(count: int) -> int:
        done = 0
        for _ in range(count):
            try:
                ring.find(bearer(text)).spend()
                done += 1
            except TooManyRequests as error:
                assert 0 < error.retry_after <= 0.1 + 1e-6
        return done

    assert taken(10) == 3
    clock[0] += 0.1
    assert taken(10) == 1
    file.add("b")
    ring.reload()
    assert taken(10) == 0, "a change of the file gives nobody a new burst"
    total = 0
    for _ in range(100):
        clock[0] += 0.05
        total += taken(2)
    assert total == 50, "ten a second for five seconds, however they come"


# -- the audit log ----------------------------------------------------------------------------------------------
def test_a_changed_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: AuditLog(path).write("me", f"w{i}", "done", version=str(i)), range(20)))
    log.write("me", "last", "refused", why='with "quotes" and \n')
    assert verify_audit(path)[0] == 21
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (
        [*lines[:3], lines[3].replace(b'"done"', b'"gone"'), *lines[4:]],
        [*lines[:3], *lines[4:]],
        [*lines[:3], lines[4], lines[3], *lines[5:]],
        [lines[1], *lines],
        [*lines, b"{}\n"],
        [*lines, b"\n"],
    ):
        path.write_bytes(b"".join(broken))
        with pytest.raises(AuditBroken, match="line"):
            verify_audit(path)
    path.write_bytes(b"".join(lines) + b'{"half')
    log.write("me", "again", "done")
    assert verify_audit(path)[0] == 22, "what a killed process left half written is cut off"


# -- commands ---------------------------------------------------------------------------------------------------
def test_keys_are_made_listed_and_ended_by_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    monkeypatch.delenv("WINNOW_KEYS", raising=False)

    def call(*arguments: str, command: Any = keys_command) -> Any:
        return CliRunner().invoke(command, list(arguments), standalone_mode=False)

    assert "everybody who reaches it may ask the endpoint" in call("list").output
    with monkeypatch.context() as patch:
        patch.setenv("WINNOW_JWT_KEYS", "jwks.json")
        assert "everybody" not in call("list").output
    made = call("add", "shop", "--model", "digits", "--action", "infer", "--rate", "5", "--days", "2")
    text = made.stdout.strip()
    assert text.startswith("wk_") and len(text) > 40
    (listed,) = json.loads(call("list", "--json").stdout)["keys"]
    assert (listed["name"], listed["models"], listed["actions"], listed["burst"]) == ("shop", ["digits"], ["infer"], 5)
    assert "digest" not in listed and text not in call("list").output
    assert "ended" in call("revoke", listed["id"]).output
    assert "there is no key" in str(call("revoke", listed["id"]).exception)
    assert "nobody may ask" in call("list").output
    AuditLog(tmp_path / "audit.jsonl").write("me", "load", "done")
    assert "1 lines follow" in call("verify", command=audit_command).output


# -- the endpoint -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def served(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Endpoint, KeyFile]]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://keys"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        with endpoint(home) as running:
            running.deploy("m", "1", numbered(store, home, 1).digest)
            running.deploy("other", "1", numbered(store, home, 2).digest)
            yield running, KeyFile(home / "keys.json")


def test_without_keys_everybody_asks_and_with_the_first_one_nobody_else_does(
    served: tuple[Endpoint, KeyFile],
) -> None:
    running, file = served

    def ask(text: str, model: str = "m") -> httpx.Response:
        headers = {"authorization": f"Bearer {text}"} if text else {}
        return running.client.post(f"{running.url}/v2/models/{model}/infer", json=ASK, headers=headers)

    assert ask("").status_code == 200
    key, text = file.add("a", models=("m",))
    wait_for(lambda: ask("").status_code == 401)
    assert ask("").headers["www-authenticate"] == "Bearer"
    assert [ask(text).status_code, ask(text, "other").status_code, ask(TOKEN).status_code] == [200, 403, 200]
    assert running.get("/v2/health/ready").status_code == 200
    for path in ("/v2", "/v2/models", "/v2/models/m", "/v2/models/nothing", "/v2/models/m/stats"):
        assert running.get(path).status_code == 401, path
    limited, slow = file.add("b", rate=1, burst=2)
    wait_for(lambda: ask(slow).status_code == 200)
    found = [ask(slow) for _ in range(4)]
    assert 429 in {answer.status_code for answer in found}
    refused = next(answer for answer in found if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1" and limited.id in refused.json()["error"]
    assert text not in "".join(running.log)
    file.revoke(key.id)
    wait_for(lambda: ask(text).status_code == 401)


def test_what_is_done_by_the_admin_listener_is_written_down(served: tuple[Endpoint, KeyFile]) -> None:
    running, _ = served
    running.admin("PUT", "/admin/models/m/versions/9", {"digest": "0" * 64})
    path = running.home / "audit.jsonl"
    assert verify_audit(path)[0] >= 5
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["what"] for line in lines[:2]] == ["load", "traffic"]
    assert (lines[-1]["decision"], lines[-1]["version"]) == ("refused", "9")
    assert TOKEN not in path.read_text()


def test_an_outside_address_wants_tls_and_keys(tmp_path: Path) -> None:
    outside = {"WINNOW_ENDPOINT_HOST": "0.0.0.0", "WINNOW_HOME": str(tmp_path)}
    certificate, key, _ = server_certificate(tmp_path, "server")
    tls = {"WINNOW_TLS_CERTIFICATE": str(certificate), "WINNOW_TLS_KEY": str(key)}
    for settings, message in (
        (outside, "WINNOW_ENDPOINT_UNPROTECTED=1"),
        ({**outside, **tls}, "winnow keys add"),
        ({"WINNOW_TLS_CERTIFICATE": str(certificate)}, "set both"),
        ({"WINNOW_TLS_CLIENTS": str(certificate)}, "needs WINNOW_TLS_CERTIFICATE"),
        ({**tls, "WINNOW_TLS_KEY": str(certificate)}, "cannot be used for TLS"),
        ({**tls, "WINNOW_TLS_KEY": str(tmp_path / "none")}, "cannot be used for TLS"),
    ):
        done = start(**settings)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_tls_with_clients_certificates_and_a_renewal_while_it_runs(store: Store, tmp_path: Path) -> None:
    one = numbered(store, tmp_path, 1)
    certificate, key, first = server_certificate(tmp_path / "tls", "server")
    client, client_key, _ = server_certificate(tmp_path / "tls", "client")
    settings: dict[str, Any] = {
        "WINNOW_TLS_CERTIFICATE": str(certificate),
        "WINNOW_TLS_KEY": str(key),
        "WINNOW_TLS_CLIENTS": str(client),
    }

    def trusting(*, shows: bool) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(certificate))
        if shows:
            context.load_cert_chain(client, client_key)
        return context

    def ask(context: ssl.SSLContext) -> tuple[int, int]:
        with httpx.Client(verify=context) as http:
            url = running.url.replace("127.0.0.1", "localhost")
            answer = http.post(f"{url}/v2/models/m/infer", json=ASK)
            stream = answer.extensions["network_stream"]
            shown = x509.load_der_x509_certificate(stream.get_extra_info("ssl_object").getpeercert(True))
            return answer.status_code, shown.serial_number

    with endpoint(tmp_path / "home", wait=False, **settings) as running:
        assert running.url.startswith("https://")
        running.deploy("m", "1", one.digest)
        known = trusting(shows=True)
        assert ask(known) == (200, first.serial_number)
        with pytest.raises(httpx.HTTPError):
            ask(trusting(shows=False))
        with httpx.Client(verify=known) as http:
            url = running.url.replace("127.0.0.1", "localhost")
            held = http.get(f"{url}/v2/health/live")
            fresh, fresh_key, second = server_certificate(tmp_path / "fresh", "server")
            key.write_bytes(b"broken")
            running.wait_log("the certificate stays as it was")
            fresh_key.replace(key)
            fresh.replace(certificate)
            running.wait_log("was taken over")
            assert ask(trusting(shows=True)) == (200, second.serial_number)
            assert held.status_code == http.get(f"{url}/v2/health/live").status_code == 200, "the old ones go on"
