"""Tokens of an issuer (JWT, RFC 7519) in place of keys: verified once, then looked up like a key."""

from __future__ import annotations

import hashlib
import time
from typing import Any, NamedTuple, get_args

import jwt
import orjson

from model_registry.api_keys import EVERY_MODEL, Action, ApiKey
from serving.exceptions import NotReady, Unauthorized
from serving.issuer_keys import IssuerKeys, IssuerKeysUnusable
from serving.key_ring import Pace, Principal

LEEWAY_SECONDS = 30.0
"""How far the issuer's clock may be from ours."""
MOST_VERIFIED = 4096
_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048
_SCOPE = "winnow:"
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


class IssuerKey(NamedTuple):
    """A public key, and the signatures that are taken of it; never those that a secret makes."""

    algorithms: tuple[str, ...]
    public: Any


class IssuerTokens:
    """Finds who sends a token.

    ``sub`` says who it is, ``scope`` what it may do (``winnow:infer``, ``winnow:read``), ``winnow_models`` with which
    models (a list; all where it is missing), ``winnow_rate`` how many requests a second and ``winnow_tokens`` how many
    tokens of continued texts a minute (any number where they are missing), counted over all of the same ``sub``.

    Args:
        source: of the issuer's keys, see :class:`IssuerKeys`.
        issuer, audience: what ``iss`` and ``aud`` must be.
    """

    def __init__(self, source: str, *, issuer: str, audience: str) -> None:
        self.keys: IssuerKeys[dict[str, list[IssuerKey]]] = IssuerKeys(source, read_issuer_keys)
        self._issuer, self._audience = issuer, audience
        self._verified: dict[bytes, Principal] = {}
        self._paces: dict[str, Pace] = {}

    @property
    def fault(self) -> str:
        return self.keys.fault

    @property
    def missing(self) -> bool:
        """Whether no keys are there yet, so that nobody can be let in."""
        return self.keys.keys is None

    async def keep(self) -> None:
        """Look after the issuer's keys for as long as that takes."""
        await self.keys.keep()

    def reload(self) -> bool:
        """Take over other keys; whether there are some: a token may have lost its own."""
        changed = self.keys.reload()
        if changed:
            self._verified.clear()
        return changed

    def find(self, token: bytes) -> Principal:
        """Who sends it.

        Raises:
            Unauthorized: it is not the issuer's, not for us, or not for now.
            NotReady: the keys are being read, and may hold the one that it needs.
        """
        found = self._verified.get(token)
        if found is None:
            found = self._principal(token, self._verify(token))
            if len(self._verified) >= MOST_VERIFIED:
                self._forget()
            self._verified[token] = found
        return found

    def _verify(self, token: bytes) -> dict[str, Any]:
        keys = self._keys_for(token)
        try:
            for key in keys:
                try:
                    claims: dict[str, Any] = jwt.decode(
                        token,
                        key.public,
                        algorithms=list(key.algorithms),
                        issuer=self._issuer,
                        audience=self._audience,
                        leeway=LEEWAY_SECONDS,
                        options={"require": ["exp", "iss", "aud", "sub"]},
                    )
                    return claims
                except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):  # another key of that name may fit
                    continue
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("the token has expired; get a new one") from error
        except jwt.ImmatureSignatureError as error:
            raise Unauthorized("the token is not valid yet; look at the clocks") from error
        except jwt.InvalidIssuerError as error:
            raise Unauthorized("the token's iss is not the issuer whose tokens are taken here") from error
        except jwt.InvalidAudienceError as error:
            raise Unauthorized("the token's aud is not this endpoint; ask for one that is for it") from error
        except jwt.MissingRequiredClaimError as error:
            raise Unauthorized(f"the token has no {error.claim}; a token needs exp, iss, aud and sub") from error
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise Unauthorized("the token is not valid") from error
        raise Unauthorized("the token is not signed with a key of the issuer")

    def _keys_for(self, token: bytes) -> list[IssuerKey]:
        """The keys of which one may have signed it."""
        known = self.keys.keys
        if known is None:
            raise NotReady("the issuer's keys could not be read yet; try again later")
        try:
            name = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise Unauthorized("the token is no JWT") from error
        if name is None and len(known) == 1:  # more would have to be tried one after the other
            (found,) = known.values()
        else:
            found = known.get(name or "", [])
        if not found and name is not None and self.keys.ask_again():
            raise NotReady("the token's key is not known yet, and the issuer's keys are being read; try again")
        return found

    def _principal(self, token: bytes, claims: dict[str, Any]) -> Principal:
        name = claims["sub"]
        if not isinstance(name, str) or not name:
            raise Unauthorized("the token's sub is empty")
        models, rate = claims.get("winnow_models", [EVERY_MODEL]), claims.get("winnow_rate")
        tokens = claims.get("winnow_tokens")
        if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
            raise Unauthorized("the token's winnow_models must be a list of names")
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1e9):
            raise Unauthorized("the token's winnow_rate must be a number of requests per second")
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int | float) or not tokens > 0):
            raise Unauthorized("the token's winnow_tokens must be a number of tokens a minute")
        key = ApiKey(
            id=hashlib.sha256(name.encode()).hexdigest()[:8],
            name=name[:100],
            digest=hashlib.sha256(token).hexdigest(),
            models=tuple(models),
            actions=_actions(claims.get("scope")),
            rate=rate,
            burst=1 if rate is None else max(1, round(rate)),
            tokens=tokens,
            expires=float(claims["exp"]) + LEEWAY_SECONDS,
        )
        # One pace for all of its tokens: a new one is no new burst.
        limited = rate is not None or tokens is not None
        return Principal(key, None if not limited else self._paces.setdefault(name, Pace()), kind="token of")

    def _forget(self) -> None:
        """Make room: what has expired, else the older half. Paces that hold nobody up are as good as new ones."""
        now = time.time()
        alive = {t: who for t, who in self._verified.items() if who.key.expires is not None and who.key.expires > now}
        if len(alive) >= MOST_VERIFIED:
            alive = dict(list(alive.items())[MOST_VERIFIED // 2 :])
        self._verified = alive
        used = {who.key.name for who in alive.values()}
        self._paces = {name: pace for name, pace in self._paces.items() if name[:100] in used or not pace.idle}


def read_issuer_keys(text: bytes) -> dict[str, list[IssuerKey]]:
    """The keys of a JWKS that sign, by their ``kid`` (empty where they have none).

    Raises:
        IssuerKeysUnusable: it is none, holds a private key, or none that can be used.
    """
    try:
        listed = orjson.loads(text)["keys"]
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise TypeError("keys is no list of objects")
    except (ValueError, KeyError, TypeError) as error:
        raise IssuerKeysUnusable('the key set is no JWKS, a JSON object {"keys": [...]}') from error
    found: dict[str, list[IssuerKey]] = {}
    for one in listed[:_MOST_KEYS]:
        if "d" in one:
            raise IssuerKeysUnusable("the key set holds a private key; give the endpoint the public ones alone")
        try:
            key = _key(one)
        except (jwt.PyJWTError, ValueError, TypeError):  # in a form that is not known here
            continue
        if key is not None:
            found.setdefault(str(one.get("kid", "")), []).append(key)
    if not found:
        raise IssuerKeysUnusable(
            "the key set has no key that can be used: public, for signatures, "
            f"RSA of {_LEAST_RSA_BITS} bits or more, EC (P-256, P-384, P-521) or Ed25519"
        )
    return found


def _key(said: dict[str, Any]) -> IssuerKey | None:
    """None for a key that is for something else; the others may still be used."""
    kind, curve = said.get("kty"), said.get("crv")
    if kind == "RSA":
        algorithms: tuple[str, ...] = _RSA
    elif kind == "EC" and curve in _CURVES:
        algorithms = (_CURVES[curve],)
    elif kind == "OKP" and curve == "Ed25519":
        algorithms = ("EdDSA",)
    else:
        return None
    if (named := said.get("alg")) is not None:
        algorithms = tuple(name for name in algorithms if name == named)
    if not algorithms or said.get("use", "sig") != "sig" or "verify" not in said.get("key_ops", ["verify"]):
        return None
    public = jwt.PyJWK(said, algorithm=algorithms[0]).key
    if kind == "RSA" and public.key_size < _LEAST_RSA_BITS:
        return None
    return IssuerKey(algorithms, public)


def _actions(scope: Any) -> tuple[Action, ...]:
    """None where the issuer gives none: being known is no permission."""
    given = scope.split() if isinstance(scope, str) else []
    known: tuple[Action, ...] = get_args(Action)
    return tuple(action for action in known if _SCOPE + action in given)
