"""Prompts and conversations to tokens, by the tokenizer and the template that travel with a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from model_registry.decoder_form import DecoderForm
from model_registry.text_input import CHAT_TEMPLATE, TOKENIZER
from model_registry.variant import Variant
from serving.decoding.generation_order import GenerationOrder
from serving.exceptions import EngineLoadError, InvalidRequest
from serving.verified_file import read_verified

_INSTALL = "pip install 'winnow-mlops[llm]'"


class PromptReader:
    """Reads what is to be continued.

    Args:
        folder: holds the variant's files.

    Attributes:
        tokenizer, form: of the model.
        chats: whether it has a template for conversations.

    Raises:
        ManifestMismatch: a file is not the one of the manifest.
        EngineLoadError: a library or the tokenizer is missing, or the tokenizer is another model's.
    """

    def __init__(self, folder: Path, variant: Variant, form: DecoderForm) -> None:
        files = {file.path: file for file in variant.files}
        if TOKENIZER not in files:
            raise EngineLoadError(f"variant {variant.name!r} continues text and has no {TOKENIZER}")
        try:
            from tokenizers import Tokenizer

            self.tokenizer: Any = Tokenizer.from_buffer(read_verified(folder, files[TOKENIZER]))
        except ImportError as error:
            raise EngineLoadError(
                f"variant {variant.name!r} continues text, for which the library tokenizers is needed: {_INSTALL}"
            ) from error
        except Exception as error:  # the library has no class of its own
            raise EngineLoadError(f"{TOKENIZER} of variant {variant.name!r} is no tokenizer: {error}") from error
        most = max(self.tokenizer.get_vocab().values(), default=0)
        if most >= form.vocabulary:
            raise EngineLoadError(
                f"{TOKENIZER} of variant {variant.name!r} gives ids up to {most}, and the model knows "
                f"{form.vocabulary} tokens: it is another model's"
            )
        self.form = form
        template = files.get(CHAT_TEMPLATE)
        self._template = _template(read_verified(folder, template).decode()) if template is not None else None

    @property
    def chats(self) -> bool:
        return self._template is not None

    def read(self, order: GenerationOrder) -> list[int]:
        """The tokens.

        Raises:
            InvalidRequest: a token that the model does not know, a conversation that its template refuses, or none.
        """
        if order.messages is not None:
            text = self._conversation(order.messages)
            found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        elif isinstance(order.prompt, str):
            found = self.tokenizer.encode(order.prompt).ids
        else:
            found = list(order.prompt or ())
            wrong = [token for token in found if not 0 <= token < self.form.vocabulary]
            if wrong:
                raise InvalidRequest(
                    f"token {wrong[0]} is none of the model's, which are 0 to {self.form.vocabulary - 1}"
                )
        if not found:  # nothing to go on from but the beginning
            first = self.form.begin if self.form.begin is not None else next(iter(self.form.end), None)
            if first is None:
                raise InvalidRequest("the prompt is empty, and the model has no token that texts begin with")
            found = [first]
        return found

    def predicted(self, order: GenerationOrder) -> list[int]:
        """Tokens of the order's prediction, no more than an answer can have."""
        if not order.prediction:
            return []
        found: list[int] = self.tokenizer.encode(order.prediction, add_special_tokens=False).ids
        return found[: self.form.context]

    def piece(self, token: int) -> tuple[str, bytes]:
        """What a token stands for by itself, as text and as bytes (half a character has no text of its own)."""
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        if "\N{REPLACEMENT CHARACTER}" in text and (spelt := self.tokenizer.id_to_token(token)) is not None:
            raw = _bytes_of(spelt)
            if raw is not None:
                return text, raw
        return text, text.encode()

    def _conversation(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if self._template is None:
            raise InvalidRequest("this model has no template for conversations; send a prompt to /v1/completions")
        try:
            text: str = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                bos_token=self._named(self.form.begin),
                eos_token=self._named(next(iter(self.form.end), None)),
            )
        except Exception as error:  # whatever the template does
            raise InvalidRequest(f"the model's template does not take this conversation: {error}") from error
        return text

    def _named(self, token: int | None) -> str:
        return "" if token is None else str(self.tokenizer.id_to_token(token) or "")


def _template(source: str) -> Any:
    """As transformers compiles it: without access to anything but what it is given."""
    try:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise EngineLoadError(f"conversations need the library jinja2: {_INSTALL}") from error

    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
    made.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return made.from_string(source)
    except jinja2.TemplateError as error:
        raise EngineLoadError(f"the model's template for conversations cannot be read: {error}") from error


def _bytes_of(spelt: str) -> bytes | None:
    """The bytes of a token that byte-level BPE spells, a letter for each."""
    try:
        return bytes(_BYTES[letter] for letter in spelt)
    except KeyError:
        return None


def _byte_letters() -> dict[str, int]:
    """Letters that stand for bytes (Radford et al. 2019, GPT-2's encoder.py)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTES = _byte_letters()
