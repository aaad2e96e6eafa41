"""Questions with several answers of which one is right, as rows of tokens that a language model scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.sources import local
from tasks.running.errors import DataReadError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KEYS = ("question", "choices", "answer")


@dataclass(frozen=True)
class ChoiceQuestion:
    """``answer``: number of the right one among the choices, from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceRows:
    """A row for each choice of each question, those of a question one after the other.

    ``tokens`` INT64 [rows, length]: question and choice, filled up with 0. By row: ``question``, its number; ``begins``
    and ``ends``, where the choice's tokens are; ``bytes`` of the choice; ``right``, whether it is the answer.
    """

    tokens: NDArray[np.int64]
    question: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    bytes: NDArray[np.int64]
    right: NDArray[np.bool_]


def read_questions(source: str) -> list[ChoiceQuestion]:
    """Questions of a file of JSON lines: ``question``, ``choices`` (texts) and ``answer`` (its text, or number from 0).

    Raises:
        DataReadError: names the line, what is wrong with it, and what is expected.
    """
    with local(source) as path:
        if not path.is_file():
            raise DataReadError(f"questions {source!r} is a folder; name a file of JSON lines")
        lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    found = [_question(line, f"{source}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataReadError(f"questions {source!r} holds no line; each is a question with {', '.join(_KEYS)}")
    return found


def encode_questions(
    questions: list[ChoiceQuestion], tokenizer: Tokenizer, *, begin: int | None, context: int, source: str
) -> ChoiceRows:
    """Each choice as what follows its question, a space between them, as lm-eval does it.

    A choice's tokens are those of the whole text behind as many as the question alone has.

    Args:
        begin: the token that an empty question stands for.
        context: tokens that a row may have.
        source: for messages.

    Raises:
        DataReadError: a question with a choice is longer than the context, or a choice has no token of its own.
    """
    rows, facts = list[list[int]](), list[tuple[int, int, int, int, bool]]()
    for number, each in enumerate(questions):
        asked = each.question.rstrip()
        first = tokenizer.encode(asked).ids if asked else []
        for place, choice in enumerate(each.choices):
            said = (each.question[len(asked) :] or " ") + choice.lstrip() if asked else choice
            row, begins = tokenizer.encode(asked + said).ids, len(first)
            if begins == 0:
                row, begins = [0 if begin is None else begin, *row], 1
            if len(row) > context:
                raise DataReadError(
                    f"question {number + 1} of {source} has {len(row)} tokens with choice {choice[:40]!r}, and the "
                    f"model context for {context}; shorten it"
                )
            if len(row) <= begins:
                raise DataReadError(f"choice {choice!r} of question {number + 1} of {source} adds no token to it")
            rows.append(row)
            facts.append((number, begins, len(row), len(said.encode()), place == each.answer))
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for filled, row in zip(tokens, rows, strict=True):
        filled[: len(row)] = row
    question, begins_at, ends, sizes, right = (np.array(column) for column in zip(*facts, strict=True))
    return ChoiceRows(tokens, question, begins_at, ends, sizes, right)


def _question(line: str, where: str) -> ChoiceQuestion:
    try:
        said: Any = json.loads(line)
    except ValueError as error:
        raise DataReadError(f"{where} is not JSON: {error}") from error
    if not isinstance(said, dict) or not set(_KEYS) <= set(said):
        raise DataReadError(f"{where} must be an object with {', '.join(_KEYS)}" + _lacks(said))
    question, choices, answer = (said[key] for key in _KEYS)
    if not isinstance(question, str):
        raise DataReadError(f"{where}: question {question!r} must be a text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataReadError(f"{where}: choices {choices!r} must be two texts or more, none of them empty")
    if len(set(choices)) < len(choices):
        raise DataReadError(f"{where}: choices {choices!r} has the same text twice")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataReadError(
            f"{where}: answer {answer!r} must be one of the choices, or its number from 0 to {len(choices) - 1}"
        )
    return ChoiceQuestion(question, tuple(choices), answer)


def _lacks(said: Any) -> str:
    missing = [key for key in _KEYS if key not in said] if isinstance(said, dict) else []
    return f"; it lacks {', '.join(missing)}" if missing else ""
