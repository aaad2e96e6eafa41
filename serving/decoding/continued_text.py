"""A text that is being continued: its tokens, what is said of them, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from serving.decoding.draft_finder import DraftFinder
from serving.decoding.draft_width import DraftWidth, PieceClock
from serving.decoding.generation_order import GenerationOrder, GenerationPart, ToldToken
from serving.decoding.grammar_mask import schema_mask
from serving.decoding.prompt_reader import PromptReader
from serving.decoding.spoken_text import SpokenText
from serving.decoding.token_choice import TokenChoice, likeliest
from serving.engines.engine_frames import PART, PLAIN, Answered
from serving.tensors import Array


class Continued:
    """A text that is being continued.

    Attributes:
        number: of its request.
        prompt: its tokens.
        slot: where its keys and values are.
        seen: tokens that are there.
        token: the latest one, which the next step reads.
        cached: tokens of the prompt that were not read again.
        before: the one before that.
        drafts: guesses how it goes on; None where nobody asked for that.
        width: of its guesses.

    Args:
        most: tokens to add.
        clock: of the model's pieces.
    """

    def __init__(
        self,
        number: int,
        order: GenerationOrder,
        prompt: list[int],
        most: int,
        reader: PromptReader,
        clock: PieceClock,
    ) -> None:
        self.number, self.order, self.prompt, self.most = number, order, prompt, most
        self.slot = self.seen = self.cached = self.made = 0
        self.token = self.before = prompt[-1]
        self.drafts = None if order.prediction is None else DraftFinder(reader.predicted(order), prompt)
        self.width = DraftWidth(clock)
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
        self.before, self.token = self.token, (token := self.choose(logits))
        self.made += 1
        if self.drafts is not None:
            self.drafts.add(token)
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
            accepted_tokens=self.width.accepted,
            rejected_tokens=self.width.rejected,
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
