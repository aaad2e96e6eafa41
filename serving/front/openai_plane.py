"""Routes for models that continue text: OpenAI's, and V2's generate extension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.exceptions import InvalidRequest, NotReady, ServingError
from serving.front.continuation import Continuation
from serving.front.embeddings import EmbeddingJob, gives_vectors, read_embeddings
from serving.front.http_connection import HttpConnection
from serving.front.http_head import RequestHead
from serving.front.http_routes import Handler, Route
from serving.front.http_service import lines_of, reply
from serving.front.http_service import refuse as refuse_plainly
from serving.front.openai_answer import GenerateWriter, OpenAiWriter, openai_error
from serving.front.openai_request import ContinueRequest, read_chat, read_completion, read_generate
from serving.front.request_counts import RequestCounts
from serving.limits import GenerationBounds
from serving.rollout import Rollout

if TYPE_CHECKING:
    from serving.traffic.steering import Chosen

_CHARACTERS = 64
"""Of a token, at most: a prompt that cannot have room is not sent to an engine."""
_BEGAN = 1_700_000_000
"""When models were made, for clients that want a number there: it is not known here."""


class OpenAiPlane:
    """Handlers; the data plane has their routes.

    Attributes:
        plain: handlers by path and method; ``for_model``: the same of a model's own paths.
        generating: those that ask an engine for something.
    """

    def __init__(self, rollout: Rollout, counts: RequestCounts, bounds: GenerationBounds | None = None) -> None:
        self._rollout, self._counts, self._bounds = rollout, counts, bounds or GenerationBounds()
        completion, chat, vectors = map(self._openai, (self._completion, self._chat, self._embeddings))
        generate, stream = counts.counted(self._generate), counts.counted(self._generate_stream)
        self.generating: tuple[Handler, ...] = (completion, chat, vectors, generate, stream)
        self.plain: dict[str, dict[str, Handler]] = {
            "/v1/models": {"GET": self._models},
            "/v1/completions": {"POST": completion},
            "/v1/chat/completions": {"POST": chat},
            "/v1/embeddings": {"POST": vectors},
        }
        self.for_model: dict[str, dict[str, Handler]] = {
            "/generate": {"POST": generate},
            "/generate_stream": {"POST": stream},
        }

    # -- handlers ---------------------------------------------------------------------------------------------------
    def _openai(self, handler: Handler) -> Handler:
        """With refusals as OpenAI's clients read them."""
        counted = self._counts.counted(handler)

        def handle(connection: HttpConnection, head: RequestHead, body: bytes) -> None:
            try:
                counted(connection, head, body)
            except ServingError as error:
                _refuse_openai(connection, error)

        return handle

    def _completion(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        self._begin(connection, head, read_completion(body, self._bounds))

    def _chat(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        self._begin(connection, head, read_chat(body, self._bounds))

    def _begin(self, connection: HttpConnection, head: RequestHead, request: ContinueRequest) -> None:
        chosen = self._choose(head.route, request)
        refuse, who = self._failed(request.model), head.route.principal
        Continuation(connection, request, chosen, OpenAiWriter(request), refuse, who).start()

    def _embeddings(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        request = read_embeddings(body)
        version = self._routed(head.route, request.model).version
        if not gives_vectors(version):
            raise InvalidRequest(
                f"model {request.model!r} does not make vectors of texts; GET /v1/models lists who does"
            )
        who = head.route.principal
        if who is not None:
            who.require_tokens()
        version.submit(EmbeddingJob(connection, request, version, self._failed(request.model), who), at_once=True)

    def _generate(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        self._begin_v2(connection, head, body, stream=False)

    def _generate_stream(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        self._begin_v2(connection, head, body, stream=True)

    def _begin_v2(self, connection: HttpConnection, head: RequestHead, body: bytes, *, stream: bool) -> None:
        request = read_generate(body, head.route.model, stream=stream)
        chosen = self._choose(head.route, request)
        writer = GenerateWriter(request.model, chosen.version.version)
        refuse, who = self._failed(request.model, openai=False), head.route.principal
        Continuation(connection, request, chosen, writer, refuse, who).start()

    def _models(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        names = [name for name, model in self._rollout.models.items() if self._speaks(model)]
        told = [{"id": name, "object": "model", "created": _BEGAN, "owned_by": "winnow"} for name in sorted(names)]
        reply(connection, {"object": "list", "data": told})

    # -- choosing ---------------------------------------------------------------------------------------------------
    def _routed(self, route: Route, model: str) -> Chosen:
        """The version that answers, which is there."""
        who = route.principal
        if who is not None:
            who.require("infer", model)
            who.spend()
        exact = who is not None and who.key.exact
        chosen = self._rollout.choose(model, route.version or None, route.wishes, exact=exact)
        version = chosen.version
        if not version.outputs:
            raise NotReady(f"version {version.version} of model {version.model!r} is {version.state}: {version.reason}")
        return chosen

    def _choose(self, route: Route, request: ContinueRequest) -> Chosen:
        chosen = self._routed(route, request.model)
        version = chosen.version
        if route.principal is not None:
            route.principal.require_tokens()
        if version.generation is None:
            raise InvalidRequest(
                f"model {request.model!r} does not continue text; ask it at /v2/models/{request.model}/infer"
            )
        if any(len(order.prompt or "") > _CHARACTERS * version.generation.context for order in request.orders):
            raise InvalidRequest(f"the prompt is longer than the context of {version.generation.context} tokens")
        if request.chat and not version.generation.chat:
            raise InvalidRequest(
                f"model {request.model!r} has no template for conversations; send a prompt to /v1/completions"
            )
        return chosen

    def _speaks(self, model: Any) -> bool:
        """Whether a model has an answer for OpenAI's clients."""
        version = model.versions.get(model.serving)
        return version is not None and (version.generation is not None or gives_vectors(version))

    def _failed(self, model: str, *, openai: bool = True) -> Any:
        def refuse(connection: HttpConnection, error: ServingError) -> None:
            self._counts.refused(model, error)
            (_refuse_openai if openai else refuse_plainly)(connection, error)

        return refuse


def _refuse_openai(connection: HttpConnection, error: ServingError) -> None:
    connection.answer(error.status, openai_error(error), lines_of(error))
