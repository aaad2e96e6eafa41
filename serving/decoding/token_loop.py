"""Continues several texts at a time: prompts are read piece by piece between steps, and a step is one token of each.

Every answer leaves token by token, all of a step in one write. Who hangs up is left out from the next step on. How a
text goes on depends on nothing but its prompt and its seed: see :mod:`serving.decoding.token_session`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

import orjson
from pydantic import ValidationError

from serving.decoding.generation_order import GenerationLimits, GenerationOrder, GenerationPart, ToldToken
from serving.decoding.grammar_mask import schema_mask
from serving.decoding.prefix_cache import PIECE, PrefixCache, piece_names
from serving.decoding.prompt_reader import PromptReader
from serving.decoding.spoken_text import SpokenText
from serving.decoding.token_choice import TokenChoice, likeliest
from serving.decoding.token_session import TokenSession
from serving.engines.engine_frames import PART, PLAIN, Answered, Asked
from serving.exceptions import EngineRunError, InvalidRequest, ServingError, TooManyRequests
from serving.limits import GenerationBounds
from serving.tensors import Array

_READ = 64
"""Tokens of a prompt that are read at a time: other texts wait as long for their next token."""
_LATER = 1.0
"""Seconds after which a text that is refused may be sent again."""
log = logging.getLogger("winnow.serving")


class Continued:
    """A text that is being continued.

    Attributes:
        number: of its request.
        prompt: its tokens.
        slot: where its keys and values are.
        seen: tokens that are there.
        token: the latest one, which the next step reads.
        cached: tokens of the prompt that were not read again.
        told: what was not sent yet.
    """

    def __init__(self, number: int, order: GenerationOrder, prompt: list[int], most: int, reader: PromptReader) -> None:
        self.number, self.order, self.prompt, self.most = number, order, prompt, most
        self.slot = self.seen = self.token = self.cached = self.made = 0
        schema = order.json_schema
        self.grammar = None if schema is None else schema_mask(schema, reader.tokenizer, reader.form)
        self.choose = TokenChoice(order, self.grammar)
        self.text = SpokenText(reader.tokenizer, order.stop)
        self.finish = ""
        self._reader = reader
        self._said, self._told = list[str](), list[ToldToken]()
        if order.echo:
            self._said.append(reader.tokenizer.decode(prompt, skip_special_tokens=False))

    @property
    def reach(self) -> int:
        """Tokens that it may come to."""
        return len(self.prompt) + self.most

    def take(self, logits: Array, ends: Sequence[int]) -> None:
        """The next token by its logits [vocabulary]."""
        self.token = token = self.choose(logits)
        self.made += 1
        if token in ends and not self.order.ignore_end:
            self.finish = "stop"
        else:
            self._said.append(self.text.add(token))
            self._tell(token, logits)
            if self.text.stopped:
                self.finish = "stop"
            elif self.made >= self.most:
                self.finish = "length"
        if self.grammar is not None and not self.finish and not self.grammar.accept(token):
            self.finish = "stop"
        if self.finish:
            self._said.append(self.text.rest())

    def tell_prompt(self, tokens: Sequence[int], logits: Array, *, first: bool) -> None:
        """Log-probabilities of the prompt's own tokens: of those behind each of the logits [tokens, vocabulary]."""
        if first:
            self._told.append(self._token(self.prompt[0], None))
        for token, row in zip(tokens, logits, strict=False):
            self._tell(token, row)

    def part(self) -> Answered:
        """What came since the part before."""
        said, self._said = "".join(self._said), []
        told, self._told = self._told, []
        part = GenerationPart(
            text=said,
            tokens=tuple(told),
            finish=self.finish or None,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            completion_tokens=self.made,
        )
        body = orjson.dumps(part.model_dump(mode="json"))
        return Answered(self.number, body, -1, 200 if self.finish else PART, PLAIN)

    def _tell(self, token: int, logits: Array) -> None:
        if self.order.logprobs is not None:
            scores, top = likeliest(logits, self.order.logprobs)
            named = tuple((self._reader.piece(other)[0], float(scores[other])) for other in top)
            self._told.append(self._token(token, float(scores[token]), named))

    def _token(self, token: int, score: float | None, top: tuple[tuple[str, float], ...] = ()) -> ToldToken:
        text, raw = self._reader.piece(token)
        return ToldToken(text=text, bytes=tuple(raw), logprob=score, top=top)


class TokenLoop:
    """The texts of one version. Whoever owns it calls :meth:`turn` as long as there is something to do.

    Args:
        session: the model. ``reader``: of prompts.
        bounds: how much may be asked for.
    """

    def __init__(self, session: TokenSession, reader: PromptReader, bounds: GenerationBounds) -> None:
        self._session, self._reader, self._bounds = session, reader, bounds
        self._waiting: deque[Continued] = deque()
        self._filling: Continued | None = None
        """Whose prompt is being read, in the slot behind all others."""
        self._live: list[Continued] = []
        """Texts by their slots."""
        self._prefixes = PrefixCache(bounds.prefix_bytes)

    @property
    def limits(self) -> GenerationLimits:
        """What the front is told."""
        return GenerationLimits(context=self._session.context, chat=self._reader.chats)

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._filling or self._live)

    def ask(self, asked: Asked) -> Answered | None:
        """Take a request; its refusal, if it cannot be taken."""
        try:
            order = GenerationOrder.model_validate_json(bytes(asked.body))
            prompt = self._reader.read(order)
            room = self._session.context - len(prompt)
            most = min(room, self._bounds.tokens) if order.max_tokens is None else order.max_tokens
            if most > room or (order.max_tokens is None and most < 1):
                raise InvalidRequest(
                    f"the prompt has {len(prompt)} tokens and {max(most, 1)} more are asked for; this model has "
                    f"context for {self._session.context}: shorten the prompt, or lower max_tokens"
                )
            if wrong := [token for token in order.logit_bias if not 0 <= token < self._session.form.vocabulary]:
                raise InvalidRequest(f"logit_bias names token {wrong[0]}, which is none of the model's")
            if len(self._waiting) >= self._bounds.waiting:
                raise TooManyRequests(f"{len(self._waiting)} texts wait for this model; try again later", _LATER)
            self._waiting.append(Continued(asked.number, order, prompt, most, self._reader))
        except ServingError as error:
            return refused_part(asked.number, error)
        except ValidationError as error:  # of a front of another version
            return refused_part(asked.number, InvalidRequest(f"the order cannot be read: {error.errors()[0]['msg']}"))
        return None

    def drop(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        for text in [*self._waiting, *self._live, *([self._filling] if self._filling else [])]:
            if text.number == number:
                self._leave(text)
                return

    def turn(self) -> list[Answered]:
        """Read a piece of a prompt, and do a step of all texts whose prompts are read; what there is to say of it."""
        said = list[Answered]()
        if self._filling is None and self._waiting and self._has_room(self._waiting[0]):
            self._begin(self._waiting.popleft())
        if self._filling is not None:
            said += self._guarded([self._filling], self._fill)
        if self._live:
            said += self._guarded([*self._live], self._step)
        return said

    # -- parts of a turn --------------------------------------------------------------------------------------------
    def _guarded(self, texts: Sequence[Continued], work: Callable[[], list[Answered]]) -> list[Answered]:
        """What the work says, or that all these texts failed."""
        try:
            return work()
        except EngineRunError as error:
            log.error("continuing %d texts failed: %s", len(texts), error)
            for text in texts:
                self._leave(text)
            told = ServingError("the model failed on this text; the endpoint's log says why")
            return [refused_part(text.number, told) for text in texts]

    def _has_room(self, text: Continued) -> bool:
        """Whether there is a slot, and memory for all that the texts may come to. One alone always has room."""
        tokens = sum(each.reach for each in (*self._live, text))
        fits = tokens * self._session.form.token_bytes <= self._bounds.cache_bytes
        return len(self._live) < self._session.slots and (fits or not self._live)

    def _begin(self, text: Continued) -> None:
        text.slot = len(self._live)
        self._filling = text
        if text.order.echo and text.order.logprobs is not None:
            return  # every logit of the prompt is wanted
        for piece in self._prefixes.find(text.prompt):
            self._session.copy_in(text.slot, text.seen, piece)
            text.seen += piece.shape[2]
        text.cached = text.seen

    def _fill(self) -> list[Answered]:
        """Read the next piece of the prompt; the first token after the last one."""
        text = self._filling
        assert text is not None
        prompt, start = text.prompt, text.seen
        end = min(start + _READ, len(prompt))
        if len(prompt) - end == 1:  # never one token alone: see TokenSession
            end -= 1
        if end - start == 1 and start:
            start -= 1
        every = text.order.echo and text.order.logprobs is not None
        logits = self._session.read(text.slot, prompt[start:end], at=start, wanted=end - start if every else 1)
        if every:
            text.tell_prompt(prompt[start + 1 : end + 1], logits, first=start == 0)
        text.seen = end
        if end < len(prompt):
            return [text.part()]  # so that the front can say that nobody waits any more
        self._filling = None
        self._live.append(text)
        self._keep_prefix(text)
        if text.most == 0:
            text.finish = "length"  # nothing was to be added
        else:
            text.take(logits[-1], self._session.form.end)
        return self._say([text])

    def _keep_prefix(self, text: Continued) -> None:
        """Keep the prompt's pieces for others that begin with the same."""
        for number, name in enumerate(piece_names(text.prompt)):
            if name not in self._prefixes:
                start = number * PIECE
                self._prefixes.keep(name, self._session.copy_out(text.slot, start, start + PIECE))

    def _step(self) -> list[Answered]:
        texts = list(self._live)
        company = self._filling.seen if self._filling is not None else 0
        logits = self._session.step([t.token for t in texts], [t.seen for t in texts], beside=company)
        for text, row in zip(texts, logits, strict=True):
            text.seen += 1
            text.take(row, self._session.form.end)
        return self._say(texts)

    def _say(self, texts: Sequence[Continued]) -> list[Answered]:
        said = [text.part() for text in texts]
        for text in texts:
            if text.finish:
                self._leave(text)
        return said

    def _leave(self, text: Continued) -> None:
        """Take a text away; the last one moves into its slot."""
        if text in self._waiting:
            self._waiting.remove(text)
            return
        if text is self._filling:
            self._filling = None
            self._session.release(text.slot, text.seen)
            return
        last = self._live.pop()
        if last is not text:
            self._session.move(last.slot, text.slot, last.seen)
            self._live[text.slot] = last
            last.slot, text.slot = text.slot, last.slot
        if self._filling is not None:
            self._session.move(self._filling.slot, text.slot, self._filling.seen)
            self._filling.slot, text.slot = text.slot, self._filling.slot
        self._session.release(text.slot, text.seen)


def refused_part(number: int, error: ServingError) -> Answered:
    """A refusal as the front gets it."""
    body = {"error": str(error), "retry_after": getattr(error, "retry_after", None)}
    return Answered(number, orjson.dumps(body), -1, error.status, PLAIN)
