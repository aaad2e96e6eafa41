"""A request whose answers come token by token: their engines, what was told of each, and the client's stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from serving.decoding.generation_order import GenerationPart
from serving.engines.engine_frames import GENERATE, PART, Answered
from serving.engines.infer_job import InferJob
from serving.exceptions import ServingError
from serving.front.http_connection import HttpConnection
from serving.front.openai_answer import ToldChoice, error_event
from serving.front.openai_request import ContinueRequest
from serving.traffic.steering import Chosen

_EVENTS = b"text/event-stream; charset=utf-8"
_NO_STORE = b"cache-control: no-cache\r\n"


class AnswerWriter(Protocol):
    """Writes answers in the form that was asked for."""

    def whole(self, choices: Sequence[ToldChoice]) -> bytes: ...

    def first(self) -> bytes: ...

    def piece(self, number: int, part: GenerationPart) -> bytes: ...

    def last(self, choices: Sequence[ToldChoice]) -> bytes: ...


class Refuser(Protocol):
    """Tells a client that a request failed, and counts it."""

    def __call__(self, connection: HttpConnection, error: ServingError, /) -> None: ...


class Continuation:
    """One request of a client.

    Args:
        writer: of its answers. ``refuse``: tells of what fails before anything was answered.
    """

    def __init__(
        self,
        connection: HttpConnection,
        request: ContinueRequest,
        chosen: Chosen,
        writer: AnswerWriter,
        refuse: Refuser,
    ) -> None:
        self.connection, self.request, self.chosen = connection, request, chosen
        self._writer, self._refuse = writer, refuse
        self._choices = [ToldChoice() for _ in request.orders]
        self._open = len(request.orders)
        self._begun = self._ended = False

    def start(self) -> None:
        """Send the orders to the engines of the version.

        Raises:
            ServingError: the first of them is refused.
        """
        for number, order in enumerate(self.request.orders):
            body = orjson.dumps(order.model_dump(mode="json", exclude_defaults=True))
            try:
                self.chosen.version.submit(GenerateJob(self, number, body), at_once=True)
            except ServingError as error:
                self._ended = True  # those before are not wanted any more
                self.chosen.version.stats.refused(error.status)
                raise

    @property
    def wanted(self) -> bool:
        return not (self._ended or self.connection.gone)

    def take(self, number: int, part: GenerationPart, *, last: bool) -> None:
        """What an engine says of one answer."""
        self._choices[number].add(part)
        if not self.wanted:
            return
        self._open -= last
        if self.request.stream:
            self._tell(self._writer.piece(number, part))
            if not self._open:
                self._tell(self._writer.last(self._choices))
                self._end()
        elif not self._open:
            self._ended = True
            self.connection.answer(200, self._writer.whole(self._choices), self._lines())

    def fail(self, text: str, status: int, retry_after: float | None) -> None:
        """An answer cannot be given, or not to its end."""
        if not self.wanted:
            return
        if self._begun:
            self._tell(error_event(text, status))
            self._end()
            return
        self._ended = True
        error = ServingError(text)
        error.status = status
        if retry_after is not None:
            error.retry_after = retry_after  # type: ignore[attr-defined]
        self._refuse(self.connection, error)

    def _tell(self, said: bytes) -> None:
        if not said:
            return
        if not self._begun:
            self._begun = True
            self.connection.begin(_EVENTS, self._lines() + _NO_STORE)
            said = self._writer.first() + said
        self.connection.send(said)

    def _end(self) -> None:
        self._ended = True
        self.connection.finish()

    def _lines(self) -> bytes:
        chosen = self.chosen
        if not chosen.why:
            return b""
        return f"winnow-version: {chosen.version.version}\r\nwinnow-choice: {chosen.why}\r\n".encode()


class GenerateJob(InferJob):
    """One of the answers. If its engine dies another one makes the same text from the beginning, since every order has
    a seed; what the client has already is not told again."""

    __slots__ = ("_again", "_number", "_of", "_said", "_skipped", "_told", "_tries")

    def __init__(self, of: Continuation, number: int, body: bytes) -> None:
        super().__init__(body, -1, GENERATE, began=time.monotonic())
        self._of, self._number = of, number
        self.notes = of.connection.notes
        self._tries = self._said = self._told = 0
        self._again = self._skipped = 0

    @property
    def wanted(self) -> bool:
        return self._of.wanted

    def seconds_left(self) -> float:
        return float("inf")

    def deliver(self, answered: Answered) -> None:
        said: dict[str, Any] = orjson.loads(answered.body)
        if answered.status not in (PART, 200):
            self._of.fail(said["error"], answered.status, said.get("retry_after"))
            return
        if self.tries != self._tries:
            self._tries, self._again, self._skipped = self.tries, self._said, self._told
            self._said = self._told = 0
        part = self._new(GenerationPart.model_validate(said))
        self._of.take(self._number, part, last=answered.status == 200)

    def _new(self, part: GenerationPart) -> GenerationPart:
        """Without what was told before an engine died."""
        text, tokens = part.text, part.tokens
        self._said, self._told = self._said + len(text), self._told + len(tokens)
        if self._again or self._skipped:
            known, named = min(self._again, len(text)), min(self._skipped, len(tokens))
            self._again, self._skipped = self._again - known, self._skipped - named
            return part.model_copy(update={"text": text[known:], "tokens": tokens[named:]})
        return part
