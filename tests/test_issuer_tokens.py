"""Tokens of an issuer: whose are taken, for what, and how the issuer's keys change."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from patience import wait_in_loop

import serving.issuer_keys
import serving.issuer_tokens
from serving.endpoint import EndpointMisconfigured, EndpointSettings
from serving.exceptions import Forbidden, NotReady, TooManyRequests, Unauthorized
from serving.issuer_keys import IssuerKeysUnusable
from serving.issuer_tokens import IssuerTokens, read_issuer_keys
from serving.key_ring import KeyRing, Principal

ISSUER, AUDIENCE = "https://issuer.example", "winnow"
KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    for algorithm, kind in (
        (jwt.algorithms.RSAAlgorithm, rsa.RSAPrivateKey),
        (jwt.algorithms.ECAlgorithm, ec.EllipticCurvePrivateKey),
        (jwt.algorithms.OKPAlgorithm, ed25519.Ed25519PrivateKey),
    ):
        if isinstance(key, kind):
            found = {
                **algorithm.to_jwk(key.public_key(), as_dict=True),
                **({} if kid is None else {"kid": kid}),
                **more,
            }
            return {name: value for name, value in found.items() if name != "key_ops"}
    raise AssertionError(key)


def jwks(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": list(keys)})


ALL = [jwk(key, name) for name, key in KEYS.items()]


def token(algorithm: str = "EdDSA", *, key: Any = None, kid: str | None = "", without: str = "", **claims: Any) -> str:
    said = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "shop",
        "exp": time.time() + 600,
        "scope": "openid winnow:infer winnow:read",
        **claims,
    }
    said.pop(without, None)
    head = {} if kid is None else {"kid": kid or algorithm}
    return str(jwt.encode(said, key or KEYS[algorithm], algorithm=algorithm, headers=head))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    file.write_text(jwks(*ALL))
    file.chmod(0o644)
    return file


@pytest.fixture
def tokens(path: Path) -> IssuerTokens:
    return IssuerTokens(str(path), issuer=ISSUER, audience=AUDIENCE)


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_says_who_may_do_what(tokens: IssuerTokens, algorithm: str) -> None:
    sent = token(algorithm, scope="winnow:infer", winnow_models=["digits"]).encode()
    who = tokens.find(sent)
    assert (who.key.name, who.key.models, who.key.actions) == ("shop", ("digits",), ("infer",))
    who.require("infer", "digits")
    for action, model in (("infer", "other"), ("read", "digits")):
        with pytest.raises(Forbidden, match="shop"):
            who.require(action, model)  # type: ignore[arg-type]
    assert tokens.find(sent) is who, "it is verified once"


def test_without_a_scope_nothing_is_allowed_and_without_models_all_are(tokens: IssuerTokens) -> None:
    for scope in ("", "infer", "openid winnow:everything", ["winnow:infer"], None):
        with pytest.raises(Forbidden):
            tokens.find(token(scope=scope).encode()).require("infer", "digits")
    tokens.find(token().encode()).require("read", "whatever")
    with pytest.raises(Forbidden):
        tokens.find(token(winnow_models=[]).encode()).require("infer", "digits")


def unsigned(head: dict[str, Any], **claims: Any) -> str:
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "exp": int(time.time()) + 600, **claims}
    return f"{_part(json.dumps(head))}.{_part(json.dumps(said))}."


def _part(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed_with_the_public_key() -> str:
    """What a verifier takes that lets the token choose between a secret and a public key."""
    start = unsigned({"alg": "HS256", "kid": "RS256", "typ": "JWT"})[:-1]
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = KEYS["RS256"].public_key().public_bytes(serialization.Encoding.PEM, form)
    return f"{start}.{_part(hmac.new(public, start.encode(), hashlib.sha256).digest())}"


REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(exp=time.time() - 60), "expired"),
    "not yet valid": (lambda: token(nbf=time.time() + 60), "not valid yet"),
    "of another issuer": (lambda: token(iss="https://other.example"), "iss"),
    "for another audience": (lambda: token(aud=["a", "b"]), "aud"),
    "without an end": (lambda: token(without="exp"), "no exp"),
    "without an audience": (lambda: token(without="aud"), "aud"),
    "of nobody": (lambda: token(without="sub"), "no sub"),
    "of an empty name": (lambda: token(sub=""), "sub"),
    "signed with another key": (lambda: token(key=OTHER), "not signed"),
    "of an unknown key": (lambda: token(kid="gone"), "not signed"),
    "of which one of several": (lambda: token(kid=None), "not signed"),
    "alg none": (lambda: unsigned({"alg": "none", "kid": "RS256"}), "not signed"),
    "HS256 with the public key": (signed_with_the_public_key, "not signed"),
    "another algorithm than the key's": (lambda: token("EdDSA", kid="RS256"), "not signed"),
    "an extension": (lambda: unsigned({"alg": "EdDSA", "kid": "EdDSA", "crit": ["b64"], "b64": False}), "no JWT"),
    "models that are no list": (lambda: token(winnow_models="*"), "winnow_models"),
    "a rate that is none": (lambda: token(winnow_rate=0), "winnow_rate"),
    "nested without end": (lambda: f"{_part('[' * 9000)}.e30.", "no JWT"),
    "nothing": (lambda: "..", "no JWT"),
    "no text": (lambda: "\xff.\xfe.\xfd", "no JWT"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_others_are_refused_and_why(tokens: IssuerTokens, case: str) -> None:
    make, why = REFUSED[case]
    with pytest.raises(Unauthorized, match=why):
        tokens.find(make().encode("latin-1"))
    assert not tokens._verified


def test_a_changed_token_is_not_the_one_that_was_verified(tokens: IssuerTokens) -> None:
    sent = token(scope="winnow:read")
    tokens.find(sent.encode())
    head, _, signature = sent.split(".")
    claims = jwt.decode(sent, options={"verify_signature": False})
    forged = f"{head}.{_part(json.dumps({**claims, 'scope': 'winnow:infer'}))}.{signature}"
    with pytest.raises(Unauthorized):
        tokens.find(forged.encode())


def test_clocks_may_differ_a_little_and_a_verified_token_ends(
    tokens: IssuerTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = token(exp=time.time() - 5, nbf=time.time() - 60).encode()
    tokens.find(token(nbf=time.time() + 5).encode()).require("infer", "m")
    who = tokens.find(sent)
    who.require("infer", "m")
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Unauthorized, match=r"token of 'shop' has expired"):
        tokens.find(sent).require("infer", "m")


def test_a_rate_counts_over_all_tokens_of_a_name(tokens: IssuerTokens) -> None:
    first, second = (tokens.find(token(winnow_rate=2, jti=name).encode()) for name in "ab")
    first.spend()
    second.spend()
    for who in (first, second):
        with pytest.raises(TooManyRequests, match="shop"):
            who.spend()
    tokens.find(token(winnow_rate=2, sub="other").encode()).spend()


def test_verified_tokens_are_bounded(tokens: IssuerTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.issuer_tokens, "MOST_VERIFIED", 8)
    for number in range(50):
        tokens.find(token(sub=f"s{number}", winnow_rate=1).encode())
        assert len(tokens._verified) <= 8
    assert len(tokens._paces) <= 8


def test_with_tls_tokens_protect_an_endpoint_that_is_open_to_the_network(tmp_path: Path) -> None:
    pem = tmp_path / "a.pem"

    def opened(**more: str) -> EndpointSettings:
        return EndpointSettings(host="0.0.0.0", home=tmp_path, certificate=pem, certificate_key=pem, **more)  # type: ignore[arg-type]

    assert opened(token_keys="k", token_issuer="i", token_audience="a")
    with pytest.raises(EndpointMisconfigured, match="lacks TLS or keys"):
        opened()
    with pytest.raises(EndpointMisconfigured, match="WINNOW_JWT_AUDIENCE"):
        opened(token_keys="k", token_issuer="i")


# -- the issuer's keys ------------------------------------------------------------------------------------------
def test_a_file_of_keys_is_taken_over_and_tokens_of_keys_that_are_gone_with_it(
    tokens: IssuerTokens, path: Path
) -> None:
    ring = KeyRing(path.parent / "none.json", tokens=tokens)
    assert ring.wanted and not ring.reload()
    old, new = token().encode(), token(key=OTHER, kid="next").encode()
    assert isinstance(ring.find(b"Bearer " + old), Principal)
    with pytest.raises(Unauthorized):
        ring.find(b"Bearer " + new)
    path.write_text(jwks(jwk(OTHER, "next")))
    assert ring.reload() and not ring.reload()
    assert ring.find(b"Bearer " + new).key.name == "shop"
    with pytest.raises(Unauthorized):
        ring.find(b"Bearer " + old)
    path.write_text("{}")
    assert not ring.reload() and "no JWKS" in ring.faults["issuer"]
    assert ring.find(b"Bearer " + new), "the keys stay as they were"
    path.unlink()
    ring.reload()
    assert "cannot be read" in ring.faults["issuer"] and not ring.not_ready
    path.write_text(jwks(jwk(OTHER, "next")))
    ring.reload()
    assert ring.faults == {"keys": "", "issuer": ""}


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("[]", "no JWKS"),
        ('{"keys": [1]}', "no JWKS"),
        (jwks(), "no key"),
        (jwks({"kty": "oct", "kid": "a", "k": _part(b"secret" * 8)}), "no key"),
        (jwks({**jwk(OTHER, "a"), "use": "enc"}), "no key"),
        (jwks({**jwk(OTHER, "a"), "alg": "HS256"}), "no key"),
        (jwks(jwt.algorithms.OKPAlgorithm.to_jwk(OTHER, as_dict=True)), "private"),
        (jwks({"kty": "OKP", "crv": "Ed25519", "x": "!"}), "no key"),
        (jwks({"kty": ["EC"]}, {"kty": "EC", "crv": ["P-256"]}, {"kty": "RSA", "n": 5, "e": "AQAB"}), "no key"),
        (jwks({**jwk(OTHER, "a"), "key_ops": 5}), "no key"),
        (jwks(jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024), "weak")), "no key"),
    ],
)
def test_keys_that_cannot_be_used_are_named(keys: str, why: str) -> None:
    with pytest.raises(IssuerKeysUnusable, match=why):
        read_issuer_keys(keys.encode())


def test_a_key_that_cannot_be_used_leaves_the_others(tokens: IssuerTokens, path: Path) -> None:
    path.write_text(jwks({"kty": "oct", "kid": "a", "k": "c2VjcmV0"}, {"kty": "new"}, jwk(KEYS["EdDSA"], None)))
    tokens.reload()
    assert tokens.find(token(kid=None).encode()), "one key needs no name"


def test_a_file_that_others_may_write_opens_nothing(path: Path) -> None:
    path.chmod(0o666)
    with pytest.raises(IssuerKeysUnusable, match="chmod"):
        IssuerTokens(str(path), issuer=ISSUER, audience=AUDIENCE)


class Issuer:
    """A server of a key set.

    ``status``, ``lines``, ``text``: its answer; ``pause``: seconds between its characters; ``asked``: how often it was.
    """

    def __init__(self) -> None:
        self.status, self.text, self.asked, self.lines = 200, jwks(*ALL), 0, dict[str, str]()
        self.pause = 0.0

    @contextmanager
    def serve(self) -> Iterator[str]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                self.send_response(200 if self.path == "/moved" else issuer.status)
                for name, value in issuer.lines.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in issuer.text if issuer.pause else [issuer.text]:
                    time.sleep(issuer.pause)
                    self.wfile.write(piece.encode())

            def log_message(self, *_: object) -> None:
                """Nothing: the test's output is no log."""

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/jwks"
            finally:
                server.shutdown()
                thread.join()


def test_a_url_is_read_in_the_background_and_again_for_a_key_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving.issuer_keys, "_AGAIN_SECONDS", 0.3)
    issuer = Issuer()

    async def scene(url: str) -> None:
        tokens = IssuerTokens(url, issuer=ISSUER, audience=AUDIENCE)
        with pytest.raises(NotReady):
            tokens.find(token().encode())
        assert tokens.missing
        keeping = asyncio.create_task(tokens.keep())
        await wait_in_loop(lambda: not tokens.missing)
        tokens.reload()  # what is waited for below are the next keys
        assert tokens.find(token().encode()) and issuer.asked == 1
        rotated = token(key=OTHER, kid="next").encode()
        issuer.text = jwks(*ALL, jwk(OTHER, "next"))
        with pytest.raises(Unauthorized):
            tokens.find(rotated)  # the keys were read a moment ago
        await asyncio.sleep(0.3)
        with pytest.raises(NotReady, match="try again"):
            tokens.find(rotated)
        await wait_in_loop(lambda: issuer.asked == 2 and tokens.reload())
        assert tokens.find(rotated)
        for _ in range(50):  # a flood of unknown names is not passed on
            with pytest.raises(Unauthorized):
                tokens.find(token(kid="nobody").encode())
        await asyncio.sleep(0.05)
        assert issuer.asked == 2
        keeping.cancel()

    with issuer.serve() as url:
        asyncio.run(scene(url))


def test_what_reads_a_url_ends_when_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.issuer_keys, "_AGAIN_SECONDS", 0.0)

    async def scene(url: str) -> None:
        tokens = IssuerTokens(url, issuer=ISSUER, audience=AUDIENCE)
        keeping = asyncio.create_task(tokens.keep())
        await wait_in_loop(lambda: not tokens.missing)
        await asyncio.sleep(0.01)
        assert tokens.keys.ask_again()
        keeping.cancel()  # in the turn of the loop in which it is asked to go on
        done, _ = await asyncio.wait([keeping], timeout=2)
        keeping.cancel()
        assert done == {keeping}

    with Issuer().serve() as url:
        asyncio.run(scene(url))


def test_a_url_that_answers_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.issuer_keys, "_ANSWER_SECONDS", 0.1)
    issuer = Issuer()
    issuer.text, issuer.pause = " " * 60, 0.01

    async def scene(url: str) -> None:
        tokens = IssuerTokens(url, issuer=ISSUER, audience=AUDIENCE)
        keeping = asyncio.create_task(tokens.keep())
        await wait_in_loop(lambda: "did not come within" in tokens.fault)
        keeping.cancel()

    with issuer.serve() as url:
        asyncio.run(scene(url))


def test_a_url_that_cannot_be_read_leaves_the_keys_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.issuer_keys, "_REFRESH_SECONDS", 0.02)
    monkeypatch.setattr(serving.issuer_keys, "_FIRST_PAUSE", 0.02)
    issuer = Issuer()

    async def scene(url: str) -> None:
        tokens = IssuerTokens(url, issuer=ISSUER, audience=AUDIENCE)
        keeping = asyncio.create_task(tokens.keep())
        await wait_in_loop(lambda: not tokens.missing)
        for status, text, why in ((500, "", "status 500"), (200, "<html>", "no JWKS"), (302, jwks(*ALL), "status 302")):
            issuer.lines = {"location": f"{url.removesuffix('/jwks')}/moved"}
            issuer.status, issuer.text = status, text
            await wait_in_loop(lambda why=why: why in tokens.fault)
            assert tokens.find(token().encode())
        issuer.status, issuer.text = 200, jwks(*ALL)
        await wait_in_loop(lambda: not tokens.fault)
        keeping.cancel()

    with issuer.serve() as url:
        asyncio.run(scene(url))
