"""Continues several texts at a time: prompts are read piece by piece between steps, and a step is one token of each.

Every answer leaves token by token, all of a step in one write. Who hangs up is left out from the next step on. How a
text goes on depends on nothing but its prompt and its seed: see :mod:`serving.decoding.token_session`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest

import orjson
from pydantic import ValidationError

from serving.decoding.continued_text import Continued
from serving.decoding.draft_width import PieceClock
from serving.decoding.generation_order import GenerationLimits, GenerationOrder
from serving.decoding.prefix_cache import PIECE, PrefixCache, piece_names
from serving.decoding.prompt_reader import PromptReader
from serving.decoding.text_slots import TextSlots
from serving.decoding.token_session import TokenSession
from serving.engines.engine_frames import PLAIN, Answered, Asked
from serving.exceptions import EngineRunError, InvalidRequest, ServingError, TooManyRequests
from serving.limits import GenerationBounds

_READ = 64
"""Tokens of a prompt that are read at a time: other texts wait as long for their next token."""
_LATER = 1.0
"""Seconds after which a text that is refused may be sent again."""
log = logging.getLogger("winnow.serving")


class TokenLoop:
    """The texts of one version. Whoever owns it calls :meth:`turn` as long as there is something to do.

    Args:
        session: the model. ``reader``: of prompts.
        bounds: how much may be asked for.
    """

    def __init__(self, session: TokenSession, reader: PromptReader, bounds: GenerationBounds) -> None:
        self._session, self._reader, self._bounds = session, reader, bounds
        self._waiting: deque[Continued] = deque()
        self._texts, self._clock = TextSlots(session), PieceClock()
        self._prefixes = PrefixCache(bounds.prefix_bytes)

    @property
    def limits(self) -> GenerationLimits:
        """What the front is told."""
        return GenerationLimits(context=self._session.context, chat=self._reader.chats)

    @property
    def idle(self) -> bool:
        return not (self._waiting or any(self._texts))

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
            self._waiting.append(Continued(asked.number, order, prompt, most, self._reader, self._clock))
        except ServingError as error:
            return refused_part(asked.number, error)
        except ValidationError as error:  # of a front of another version
            return refused_part(asked.number, InvalidRequest(f"the order cannot be read: {error.errors()[0]['msg']}"))
        return None

    def drop(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        for text in [*self._waiting, *self._texts]:
            if text.number == number:
                self._leave(text)
                return

    def turn(self) -> list[Answered]:
        """Read a piece of a prompt, and do a step of all texts whose prompts are read; what there is to say of it."""
        said, texts = list[Answered](), self._texts
        if texts.filling is None and self._waiting and self._has_room(self._waiting[0]):
            self._begin(self._waiting.popleft())
        if texts.filling is not None:
            said += self._guarded([texts.filling], partial(self._fill, texts.filling))
        if texts.together:
            said += self._guarded([*texts.together], self._step)
        for text in [*texts.apart]:
            said += self._guarded([text], partial(self._verify, text))
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
        others = list(self._texts)
        tokens = sum(each.reach for each in (*others, text))
        fits = tokens * self._session.form.token_bytes <= self._bounds.cache_bytes
        return not self._texts.full and (fits or not others)

    def _begin(self, text: Continued) -> None:
        self._texts.begin(text)
        if text.order.echo and text.order.logprobs is not None:
            return  # every logit of the prompt is wanted
        for piece in self._prefixes.find(text.prompt):
            self._session.copy_in(text.slot, text.seen, piece)
            text.seen += piece.shape[2]
        text.cached = text.seen

    def _fill(self, text: Continued) -> list[Answered]:
        """Read the next piece of the prompt; the first token after the last one."""
        prompt, start = text.prompt, text.seen
        end = min(start + _READ, len(prompt))
        every = text.order.echo and text.order.logprobs is not None
        again = start > 0 and (end - start) % 2  # an even number: see TokenSession
        tokens, wanted = prompt[start - again : end], end - start if every else 1
        logits = self._session.read(text.slot, tokens, at=start - again, wanted=wanted)
        if every:
            text.tell_prompt(prompt[start + 1 : end + 1], logits, first=start == 0)
        text.seen = end
        if end < len(prompt):
            return [text.part()]  # so that the front can say that nobody waits any more
        self._keep_prefix(text)
        self._texts.seat()
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
        texts = list(self._texts.together)
        logits = self._session.step([t.token for t in texts], [t.seen for t in texts], beside=self._texts.company)
        for text, row in zip(texts, logits, strict=True):
            text.seen += 1
            text.take(row, self._session.form.end)
        return self._say(texts)

    def _verify(self, text: Continued) -> list[Answered]:
        """Read the latest token and what is guessed to follow it, as a piece of a prompt: each guess is right that the
        text would have chosen there, and behind the last right one comes what it chose. So guesses save steps and
        change nothing, drawn texts included: a draw is of the same numbers."""
        assert text.drafts is not None
        guessed = text.drafts.draft(min(text.width.most, text.most - text.made - 1))
        before = [] if len(guessed) % 2 else [text.before]  # an even number: see TokenSession
        tokens, began = [*before, text.token, *guessed], time.perf_counter()
        logits = self._session.read(text.slot, tokens, at=text.seen - len(before), wanted=len(tokens))[len(before) :]
        self._clock.learn(len(tokens), time.perf_counter() - began)
        right = 0
        for row, guess in zip_longest(logits, guessed):
            text.seen += 1
            text.take(row, self._session.form.end)
            right += text.token == guess
            if text.finish or text.token != guess:
                break
        text.width.learn(len(guessed), right)
        return self._say([text])

    def _say(self, texts: Sequence[Continued]) -> list[Answered]:
        said = [text.part() for text in texts]
        for text in texts:
            if text.finish:
                self._leave(text)
        return said

    def _leave(self, text: Continued) -> None:
        if text in self._waiting:
            self._waiting.remove(text)
        else:
            self._texts.leave(text)


def refused_part(number: int, error: ServingError) -> Answered:
    """A refusal as the front gets it."""
    body = {"error": str(error), "retry_after": getattr(error, "retry_after", None)}
    return Answered(number, orjson.dumps(body), -1, error.status, PLAIN)
