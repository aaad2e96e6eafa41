"""The admin listener: which versions are loaded, which has the traffic; metrics, and a page that shows them live.

A port of its own, behind a token. Browsers sign in with it as a password (``Basic``), which they then send with
whatever any page asks of this port: so it lets them look and do nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field, ValidationError

from model_registry.audit_log import AuditLog
from model_registry.rollout_plan import RolloutAction, RolloutPlan
from model_registry.variant import Frozen
from model_registry.variant_set import MOST_MEMBERS, SetMember
from serving.endpoint_watch import EndpointWatch
from serving.exceptions import AdminDisabled, InvalidRequest, ServingError, Unauthorized
from serving.front.http_connection import HttpConnection
from serving.front.http_head import RequestHead
from serving.front.http_routes import Handler, Route, RouteTable
from serving.front.http_service import RoutedService, lines_of, reply
from serving.front.status_page import StatusPage
from serving.grpc_front.grpc_keeper import GrpcKeeper
from serving.json_body import read_object
from serving.limits import RequestLimits
from serving.loaded_version import LoadedVersion
from serving.rollout import Rollout

_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]{1,18}")
F = TypeVar("F", bound=Frozen)
_LOOKING = (b"GET", b"HEAD")
_SIGN_IN = b'www-authenticate: Basic realm="winnow", charset="UTF-8"\r\n'
_LIMITS = RequestLimits(body_bytes=1 << 16, body_seconds=10.0, connections=256)


class AdminPlane(RoutedService):
    """Loads versions, gives them the traffic, takes them away. Without a token it refuses everything."""

    def __init__(
        self, rollout: Rollout, token: str, audit: AuditLog, watch: EndpointWatch, grpc: GrpcKeeper | None = None
    ) -> None:
        self._rollout, self._audit, self._watch, self._grpc = rollout, audit, watch, grpc
        self._expected = f"Bearer {token}".encode() if token else b""
        page = StatusPage(lambda: watch.as_status(self._described()))
        plain: dict[str, dict[str, Handler]] = {
            "/admin": {"GET": page.as_page},
            "/admin/status": {"GET": page.as_json},
            "/admin/models": {"GET": lambda c, h, b: reply(c, self._described())},
            "/metrics": {"GET": self._metrics},
        }
        rollout_calls: dict[str, Handler] = {"GET": self._rollout_state, "PUT": self._begin, "POST": self._act}
        for_model: dict[str, dict[str, Handler]] = {
            "/traffic": {"POST": self._traffic},
            "/set": {"PUT": self._set},
            "/rollout": rollout_calls,
        }
        versioned = {"": {"PUT": self._load, "DELETE": self._unload}}
        super().__init__(RouteTable(plain, for_model, root="admin", versioned=versioned), _LIMITS)

    def admit(self, head: RequestHead) -> None:
        error = self._refusal(head)
        if error is not None:  # whatever the path: who may do nothing learns nothing
            asked_by_browser = error.status == 401 and head.path == b"/admin" and head.method in _LOOKING
            head.refusal = (error.status, str(error), _SIGN_IN if asked_by_browser else lines_of(error))
            return
        super().admit(head)

    def text_of(self, error: ServingError) -> str:
        return error.detail

    def _refusal(self, head: RequestHead) -> ServingError | None:
        if not self._expected:
            return AdminDisabled("the endpoint was started without WINNOW_ADMIN_TOKEN; set it and start it again")
        given = head.headers.get(b"authorization", b"")
        if not hmac.compare_digest(_as_bearer(given) if head.method in _LOOKING else given, self._expected):
            return Unauthorized("send the header 'Authorization: Bearer TOKEN' with the endpoint's WINNOW_ADMIN_TOKEN")
        return None

    # -- handlers ---------------------------------------------------------------------------------------------------
    def _described(self) -> dict[str, Any]:
        models = [
            {
                "model": name,
                "serving": model.serving,
                "reason": (model.detail or model.reason) if model.serving is None else "",
                "versions": [_describe(model.versions[number]) for number in sorted(model.versions, key=int)],
                **model.steering.describe(),
            }
            for name, model in sorted(self._rollout.models.items())
        ]
        grpc = None if self._grpc is None else self._grpc.describe()
        keys = self._watch.keys
        waiting_for = self._rollout.waiting_detail or self._rollout.waiting_for or keys.not_ready
        return {"models": models, "waiting_for": waiting_for, "faults": keys.faults, "grpc": grpc}

    def _metrics(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        connection.answer(200, self._watch.as_prometheus(), content_type=CONTENT_TYPE_PLAIN_0_0_4.encode())

    async def _load(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        route: Route = head.route
        asked = read_object(body)
        digest, spare = asked.get("digest"), asked.get("spare", False)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise InvalidRequest(f'the body must be {{"digest": 64 hexadecimal digits}}, got digest {_short(digest)}')
        if not isinstance(spare, bool):
            raise InvalidRequest(f"spare must be true or false, got {_short(spare)}")
        with self._noted("load", route.model, version=route.version, digest=digest):
            loaded = await self._rollout.load(route.model, route.version, digest, spare=spare)
        reply(connection, _describe(loaded))

    def _traffic(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        route: Route = head.route
        asked = read_object(body)
        version = asked.get("version")
        known = version is None or (isinstance(version, str) and _VERSION.fullmatch(version))
        if "version" not in asked or not known:
            raise InvalidRequest(
                f'the body must be {{"version": "number"}}, or null for no traffic, got version {_short(version)}'
            )
        with self._noted("traffic", route.model, version=version):
            previous = self._rollout.set_traffic(route.model, version)
        reply(connection, {"previous": previous})

    def _set(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        route: Route = head.route
        members = _parsed(_Members, body).members
        with self._noted("set", route.model, versions=[member.version for member in members]):
            self._rollout.set_members(route.model, members)
        reply(connection, {"versions": [member.version for member in members]})

    def _rollout_state(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        reply(connection, self._rollout.trial(head.route.model).describe())

    def _begin(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        route: Route = head.route
        asked = _parsed(_NewTrial, body)
        with self._noted("rollout", route.model, version=str(asked.version)):
            trial = self._rollout.begin_trial(route.model, str(asked.version), asked.plan)
        reply(connection, trial.describe())

    def _act(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        route: Route = head.route
        action = _parsed(_TrialAction, body).action
        trial = self._rollout.trial(route.model)
        if action == "renew":  # every second, by whoever rolls out
            trial.act(action)
        else:
            with self._noted(f"rollout {action}", route.model, version=trial.new):
                trial.act(action)
        reply(connection, trial.describe())

    async def _unload(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        route: Route = head.route
        with self._noted("unload", route.model, version=route.version):
            await self._rollout.unload(route.model, route.version)
        reply(connection, {"model": route.model, "version": route.version, "state": "stopped"})

    @contextmanager
    def _noted(self, what: str, model: str, **facts: Any) -> Iterator[None]:
        """Write what was done, or why it was not, into the audit log."""
        decision, why = "done", ""
        try:
            yield
        except ServingError as error:
            decision, why = "refused", str(error)
            raise
        except BaseException as error:
            decision, why = "failed", type(error).__name__
            raise
        finally:
            facts |= {"why": why} if why else {}
            self._audit.write("admin listener", what, decision, model=model, **facts)


def _as_bearer(given: bytes) -> bytes:
    """A browser's header in the form of the others; the user's name says nothing."""
    kind, _, coded = given.partition(b" ")
    if kind.lower() != b"basic":
        return given
    try:
        password = base64.b64decode(coded.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
    return b"Bearer " + password


class _Members(Frozen):
    members: tuple[SetMember, ...] = Field(max_length=MOST_MEMBERS)


class _NewTrial(Frozen):
    version: int = Field(ge=1)
    plan: RolloutPlan


class _TrialAction(Frozen):
    action: RolloutAction


def _parsed(form: type[F], body: bytes) -> F:
    """The body as that; raises InvalidRequest, which names what is wrong with it."""
    try:
        return form.model_validate(read_object(body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidRequest(f"{where}: {first['msg']}, got {_short(first['input'])}") from error


def _describe(version: LoadedVersion) -> dict[str, Any]:
    pids = [engine.pid for engine in version.engines]
    return {
        "model": version.model,
        "version": version.version,
        "digest": version.digest,
        "state": version.state,
        "reason": version.reason,
        "pid": pids[0] if pids else None,
        "pids": pids,
        "batching": version.batching,
        "load_seconds": round(version.load_seconds, 3),
        "restarts": version.restarts,
    }


def _short(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, str | int | float | None) else type(value).__name__
