"""A request whose answers come token by token: their engines, what was told of each, and the client's stream."""

from __future__ import annotations

import asyncio
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
from serving.key_ring import Principal
from serving.traffic.steering import Chosen

_EVENTS = b"text/event-stream; charset=utf-8"
_NO_STORE = b"cache-control: no-cache\r\n"


class ContinuationWriter(Protocol):
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
        writer: of its answers. ``refuse``: tells of what fails before anything was answered. ``who``: asks, and owes
            the tokens.
    """

    def __init__(
        self,
        connection: HttpConnection,
        request: ContinueRequest,
        chosen: Chosen,
        writer: ContinuationWriter,
        refuse: Refuser,
        who: Principal | None = None,
    ) -> None:
        self._who = who
        self.connection, self.request, self.chosen = connection, request, chosen
        self._writer, self._refuse = writer, refuse
        self._began = time.monotonic()
        self._choices = [ToldChoice() for _ in request.orders]
        self._open = len(request.orders)
        self._begun = self._ended = False
        self.attempt = 0
        self._declined: int | None = None
        """Status of a version on trial that could not answer, where the old one is asked."""

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
                self.chosen.version.stats.refused(error.status)
                if self._ask_old(error.status):
                    return
                self._ended = True  # those before are not wanted any more
                raise

    def wanted(self, attempt: int) -> bool:
        """Whether anybody waits for the answers of this attempt."""
        return attempt == self.attempt and not (self._ended or self.connection.gone)

    def take(self, number: int, part: GenerationPart, *, last: bool) -> None:
        """What an engine says of one answer."""
        choice, stats = self._choices[number], self.chosen.version.stats
        if part.completion_tokens and not choice.completion:
            stats.first_token_seconds.add(time.monotonic() - self._began)
        before = choice.prompt + choice.completion
        choice.add(part)
        if self._who is not None:  # as they are made: who hangs up has had them
            self._who.owe(choice.prompt + choice.completion - before)
        if last:
            stats.continued(part)
        self._open -= last
        if not self._open:
            self._tell_trial(200)
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
        if not self._begun and self._ask_old(status):
            return
        self._tell_trial(status)
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

    def _ask_old(self, status: int) -> bool:
        """Have the old version answer what the one on trial could not: no client is to notice a trial."""
        trial, old = self.chosen.trial, self.chosen.instead
        if trial is None or old is None:
            return False
        self._declined, self.attempt = status, self.attempt + 1
        self.chosen = Chosen(old, "", trial)
        self._choices = [ToldChoice() for _ in self.request.orders]
        self._open = len(self.request.orders)
        asyncio.get_running_loop().call_soon(self._start_again)
        return True

    def _start_again(self) -> None:
        try:
            self.start()
        except ServingError as error:
            self._tell_trial(error.status)
            self._refuse(self.connection, error)

    def _tell_trial(self, status: int) -> None:
        trial, seconds = self.chosen.trial, time.monotonic() - self._began
        if trial is None:
            return
        if self._declined is not None:
            trial.new_failed(self._declined, status)
        elif self.chosen.instead is not None:
            trial.new_answered(status, seconds)
        else:
            trial.old_answered(status, seconds)

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

    __slots__ = ("_again", "_attempt", "_number", "_of", "_said", "_skipped", "_told", "_tries")

    def __init__(self, of: Continuation, number: int, body: bytes) -> None:
        super().__init__(body, -1, GENERATE, began=time.monotonic())
        self._of, self._number, self._attempt = of, number, of.attempt
        self.notes = of.connection.notes
        self._tries = self._said = self._told = 0
        self._again = self._skipped = 0

    @property
    def wanted(self) -> bool:
        return self._of.wanted(self._attempt)

    def seconds_left(self) -> float:
        return float("inf")

    def deliver(self, answered: Answered) -> None:
        if not self.wanted:
            return
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
