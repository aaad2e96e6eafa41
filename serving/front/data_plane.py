"""The data plane: Open Inference Protocol V2 over HTTP. It takes no URLs and no paths, and changes nothing."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from serving.engines.engine_frames import CHOOSE, CHOSEN, DEFLATE, GZIP, MAY_PACK, PLAIN, Answered
from serving.engines.infer_job import InferJob
from serving.exceptions import InvalidRequest, NotReady, ServingError, UnsupportedEncoding
from serving.front.api_guide import ApiGuide
from serving.front.http_connection import HttpConnection, error_body
from serving.front.http_head import RequestHead
from serving.front.http_routes import Handler, Route, RouteTable
from serving.front.http_service import RoutedService, lines_of_status, refuse, reply
from serving.front.openai_plane import OpenAiPlane
from serving.front.request_counts import RequestCounts
from serving.key_ring import KeyRing
from serving.limits import RequestLimits
from serving.loaded_version import LoadedVersion
from serving.rollout import Rollout
from serving.sampling.sample_keeper import SampleKeeper
from serving.traffic.steering import Chosen
from serving.traffic.trial import MirroredPair, ShadowJob, Trial, is_refusal
from serving.wishes import Wishes, wishes_from_bytes, wishes_of_headers

PLATFORM = "onnx_onnxv1"
EXTENSIONS = ("binary_tensor_data", "statistics", "model_repository")
_JSON_BYTES = b"inference-header-content-length"
_PACKINGS = {b"identity": PLAIN, b"gzip": GZIP, b"deflate": DEFLATE}
_FEW = 2
"""Connections up to which a request goes to its engine at once: there is nothing to wait for."""


class DataPlane(RoutedService):
    """Health, metadata, statistics and inference; ``counts``: who asked for predictions, and what was shed;
    ``samples``: takes some requests with their answers, None where none are kept."""

    def __init__(
        self, rollout: Rollout, limits: RequestLimits, keys: KeyRing, samples: SampleKeeper | None = None
    ) -> None:
        self._rollout, self._keys, self.samples = rollout, keys, samples
        self.counts = RequestCounts(rollout.models)
        release = importlib.metadata.version("winnow-mlops")
        guide = ApiGuide(rollout, limits, keys, release)
        self._open: tuple[Handler, ...] = (self._live, self._ready, guide.as_json, guide.as_page)
        """Whoever watches the endpoint needs no key, nor who wants to know how to ask it."""
        self._server = {"name": "winnow", "version": release, "extensions": list(EXTENSIONS)}
        texts = OpenAiPlane(rollout, self.counts)
        self._asking = texts.generating
        """What asks an engine, besides inference requests."""
        plain: dict[str, dict[str, Handler]] = {
            "/v2/models": {"GET": self._models},
            "/v2/models/stats": {"GET": self._stats},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
            "/v2/repository/index": {"POST": self._index},
            "/v2": {"GET": lambda c, h, b: reply(c, self._server)},
            "/openapi.json": {"GET": guide.as_json},
            "/docs": {"GET": guide.as_page},
            **texts.plain,
        }
        for_model: dict[str, dict[str, Handler]] = {
            "": {"GET": self._model_metadata},
            "/ready": {"GET": self._model_ready},
            "/stats": {"GET": self._stats},
            "/variants": {"GET": self._variants},
            "/infer": {"POST": self.counts.counted(self._infer)},
            **texts.for_model,
        }
        routes = RouteTable(plain, for_model, root="v2", infer="/infer")
        guide.operations = tuple(routes.operations())
        super().__init__(routes, limits)

    def permit(self, head: RequestHead, route: Route) -> None:
        if self._keys.wanted and route.handler not in self._open:
            who = self._keys.find(head.headers.get(b"authorization", b""))
            asks = route.infers or route.handler in self._asking
            who.require("infer" if asks else "read", route.model)
            route = head.route = replace(route, principal=who)
            head.once = not asks and who.key.expires is not None  # looked at again when it is asked
        if route.infers:
            json_bytes, packing = _how_sent(head)
            wishes = wishes_of_headers(head.headers)
            head.route = replace(route, json_bytes=json_bytes, packing=packing, wishes=wishes)
        elif head.headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedEncoding("only inference requests may be packed; send the body uncompressed")
        elif route.handler in self._asking:
            head.route = replace(route, wishes=wishes_of_headers(head.headers))

    def tick(self) -> None:
        if self._keys.reload():
            self.heads.forget()
        super().tick()

    # -- inference --------------------------------------------------------------------------------------------------
    def _infer(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        # Chosen only now that the body is complete, and taken at once: a swap cannot come between.
        sent: Route = head.route
        if sent.principal is not None:
            sent.principal.require("infer", sent.model)
            sent.principal.spend()
        exact = sent.principal is not None and sent.principal.key.exact
        chosen = self._rollout.choose(sent.model, sent.version or None, sent.wishes, exact=exact)
        kept = self.samples is not None and self.samples.due(sent.principal)
        job = (SampledJob if kept else HttpJob)(self, connection, sent, body, chosen)
        try:
            chosen.version.submit(job, at_once=len(self.connections) <= _FEW)
        except ServingError as error:
            chosen.version.stats.refused(error.status)
            if chosen.trial is None or chosen.instead is None:
                raise
            job.declined = Answered(0, error_body(str(error)), -1, error.status, PLAIN)
            job.ask_old(chosen.instead)
        if chosen.mirrored and chosen.trial is not None:
            self._mirror(job, chosen.trial)

    def _mirror(self, job: HttpJob, trial: Trial) -> None:
        """Have the version on trial answer the request too, where it has nothing else to do."""
        candidate = self._rollout.version(job.sent_as.model, trial.new)
        if candidate.pace.wait_seconds > 0:
            return
        job.pair = pair = MirroredPair(trial)
        with suppress(ServingError):  # it is not ready: nobody waits for this answer
            candidate.submit(ShadowJob(job, trial, pair, began=job.began))

    def choose_again(self, job: HttpJob, wishes: Wishes) -> None:
        """Give a request to the variant that its body asks for."""
        sent = job.sent_as
        try:
            both = wishes if sent.wishes is None else sent.wishes.and_(wishes)
            chosen = self._rollout.choose(sent.model, sent.version or None, both)
            job.chosen, job.packing = chosen, job.packing | CHOSEN
            chosen.version.submit(job, at_once=True)
        except ServingError as error:
            job.chosen.version.stats.refused(error.status)
            job.refuse(error)

    # -- what there is ----------------------------------------------------------------------------------------------
    def _live(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        reply(connection, {"live": True})

    def _ready(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        if reasons := [*self._rollout.not_ready(), *filter(None, [self._keys.not_ready])]:
            raise NotReady(f"not ready: {'; '.join(reasons)}")
        reply(connection, {"ready": True, "live": True})

    def _models(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        reply(connection, {"models": sorted(self._rollout.models)})

    def _model_ready(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        version = self._version(head)
        if version.state != "ready":
            raise NotReady(f"version {version.version} of model {version.model!r} is {version.state}: {version.reason}")
        reply(connection, {"name": version.model, "ready": True})

    def _model_metadata(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        version = self._version(head)
        reply(
            connection,
            {
                "name": version.model,
                "versions": sorted(self._rollout.models[version.model].versions, key=int),
                "platform": PLATFORM,
                "inputs": [spec.model_dump(mode="json") for spec in version.inputs],
                "outputs": [spec.model_dump(mode="json") for spec in version.outputs],
            },
        )

    def _variants(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        version = self._version(head)
        members = self._rollout.models[version.model].steering.members
        found = [
            {
                "version": member.loaded.version,
                "name": member.name,
                "digest": member.loaded.digest,
                "state": member.loaded.state,
                "metric": member.metric,
                "better": "higher" if member.higher else "lower",
                "value": member.accuracy,
                "latency_ms": round(member.alone_ms, 4),
                "expected_ms": round(member.expected_ms, 4),
            }
            for member in members
            if not head.route.version or member.loaded is version
        ]
        reply(connection, {"name": version.model, "variants": found})

    def _stats(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        route: Route = head.route
        if not route.model:
            versions = self._rollout.versions()
        elif not route.version:
            self._version(head)
            versions = list(self._rollout.models[route.model].versions.values())
        else:
            versions = [self._version(head)]
        reply(connection, {"model_stats": [v.stats.as_v2(v.model, v.version) for v in versions]})

    def _index(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        found = [
            {
                "name": version.model,
                "version": version.version,
                "state": "READY" if version.state == "ready" else "UNAVAILABLE",
                "reason": version.reason,
            }
            for model in self._rollout.models.values()
            for version in model.versions.values()
        ]
        reply(connection, found)

    def _version(self, head: RequestHead) -> Any:
        route: Route = head.route
        return self._rollout.version(route.model, route.version or None)


class HttpJob(InferJob):
    """An inference request of an HTTP connection.

    Attributes:
        sent_as: its route.
        chosen: who answers it, and why.
        pair: its answer and that of a version on trial; None where nobody else answers it.
        declined: what a version on trial said that could not answer it, and the old one is asked; None elsewhere.
    """

    __slots__ = ("_connection", "_plane", "chosen", "declined", "pair", "sent_as")

    def __init__(self, plane: DataPlane, connection: HttpConnection, sent: Route, body: bytes, chosen: Chosen) -> None:
        super().__init__(body, sent.json_bytes, sent.packing, began=time.monotonic())
        self._plane, self._connection, self.sent_as, self.chosen = plane, connection, sent, chosen
        self.pair: MirroredPair | None = None
        self.declined: Answered | None = None
        self.notes = connection.notes

    @property
    def wanted(self) -> bool:
        return not self._connection.gone

    def refuse(self, error: ServingError) -> None:
        """Answer with the error."""
        self._plane.counts.refused(self.sent_as.model, error)
        refuse(self._connection, error)

    def deliver(self, answered: Answered) -> None:
        status, body, chosen = answered.status, answered.body, self.chosen
        assert isinstance(body, bytes)
        if status == CHOOSE:  # later: the engine's other answers come first
            wishes = wishes_from_bytes(body)
            asyncio.get_running_loop().call_soon(self._plane.choose_again, self, wishes)
            return
        if chosen.trial is not None:
            # Engines that died of it twice are no reason not to ask: with the old one's they would have been as many.
            if chosen.instead is not None and (is_refusal(status) or status == 503):
                self.declined = answered
                asyncio.get_running_loop().call_soon(self.ask_old, chosen.instead)
                return
            self._watch(answered, chosen.trial)
        self._send(answered)

    def ask_old(self, old: LoadedVersion) -> None:
        """Have the old version answer what the one on trial could not: no client is to notice a trial."""
        trial, declined = self.chosen.trial, self.declined
        assert trial is not None and declined is not None
        self.chosen = Chosen(old, "", trial)
        try:
            old.submit(self, at_once=True)
        except ServingError as error:  # it was taken away, or has too much to do
            trial.new_failed(declined.status, error.status)
            if is_refusal(declined.status):
                self._send(declined)
            else:
                self.refuse(error)

    def _send(self, answered: Answered) -> None:
        chosen, body = self.chosen, answered.body
        assert isinstance(body, bytes)
        if chosen.why:
            self._answer(
                answered, f"winnow-version: {chosen.version.version}\r\nwinnow-choice: {chosen.why}\r\n".encode()
            )
        elif answered.status == 200 and answered.json_bytes < 0 and answered.packing == PLAIN:
            self._connection.answer(200, body)
        else:
            self._answer(answered, b"")

    def _watch(self, answered: Answered, trial: Trial) -> None:
        seconds = time.monotonic() - self.began
        if self.chosen.instead is not None:
            trial.new_answered(answered.status, seconds)
        elif self.declined is None:
            trial.old_answered(answered.status, seconds)
        else:  # only now is it known whether it was right to
            trial.new_failed(self.declined.status, answered.status)
        if self.pair is not None:
            self.pair.take_old(answered)

    def _answer(self, answered: Answered, lines: bytes) -> None:
        status, body, kind = answered.status, answered.body, b"application/json"
        assert isinstance(body, bytes)
        if status != 200:
            lines += lines_of_status(status)
        if answered.json_bytes >= 0:
            lines += b"inference-header-content-length: %d\r\n" % answered.json_bytes
            kind = b"application/octet-stream"
        if answered.packing == GZIP:
            lines += b"content-encoding: gzip\r\n"
        self._connection.answer(status, body, lines, kind)


class SampledJob(HttpJob):
    """One that is kept with its answer, where it gets one."""

    __slots__ = ()

    def deliver(self, answered: Answered) -> None:
        super().deliver(answered)
        if answered.status == 200 and self._plane.samples is not None:
            self._plane.samples.take(self, answered, self.chosen.version)


def _how_sent(head: RequestHead) -> tuple[int, int]:
    """Bytes of the JSON part, and the packing, of an inference request.

    Raises:
        InvalidRequest, UnsupportedEncoding: its headers say something that cannot be.
    """
    encoding = head.headers.get(b"content-encoding", b"identity").lower()
    if encoding not in _PACKINGS:
        text = encoding[:40].decode("latin-1")
        raise UnsupportedEncoding(f"content-encoding {text!a} is not taken; send identity, gzip or deflate")
    packing = _PACKINGS[encoding]
    # Most libraries say that they take several packings, whatever they want; that is no reason to spend time on one.
    if head.headers.get(b"accept-encoding", b"").strip() == b"gzip":
        packing |= MAY_PACK
    announced = head.headers.get(_JSON_BYTES)
    if announced is None:
        return -1, packing
    if not announced.isdigit() or len(announced) > 9:
        text = announced[:40].decode("latin-1")
        raise InvalidRequest(f"{_JSON_BYTES.decode()} must be the length of the JSON part in bytes, got {text!a}")
    return int(announced), packing
