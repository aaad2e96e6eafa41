"""YAML as a document of plain values: what a spec may hold, refused by name before anything looks at it.

YAML allows more than a spec can mean: a key given twice (the last one wins silently), anchors that make two sections
one and the same object, objects that contain themselves, dates, infinities.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

from tasks.running.errors import SpecError

_DEEPEST, _MOST_VALUES = 50, 100_000
_LARGEST_INTEGER = 2**63 - 1
_LARGEST = 1e18


def read_yaml(text: str, where: str) -> Any:
    """The one document in the text, in JSON's types; nothing in it is shared.

    Args:
        where: it comes from, for messages.

    Raises:
        SpecError: it is not YAML, or holds what a spec cannot mean; names the place, the value and the rule.
    """
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SpecError(f"{where} is not YAML: {error}") from error
    except (ValueError, RecursionError) as error:  # 2024-13-45 is no date; [[[[... thousands deep
        raise SpecError(f"{where} is not YAML that can be read: {error}") from error
    return plain_document(document, where)


def plain_document(document: Any, where: str) -> Any:
    """A copy of the values, of which nothing is shared; raises SpecError as :func:`read_yaml`."""
    wrong: list[str] = []
    plain = _Copier(wrong).plain(document, "", ())
    if wrong:
        raise SpecError(f"{where} holds what a spec cannot:\n" + "\n".join(f"  {line}" for line in wrong))
    return plain


_READ_OTHERWISE = re.compile(r".*:.*|[-+]?0[0-9]+")
"""Numbers of YAML 1.1 that mean something else in 1.2 and to people: 1:30 is 90, 010 is 8."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, and numbers that are not what they look like."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        return self._plain_number(node, super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        return self._plain_number(node, super().construct_yaml_float(node))

    @staticmethod
    def _plain_number(node: yaml.ScalarNode, number: Any) -> Any:
        if _READ_OTHERWISE.fullmatch(node.value):
            misread = f"{node.value} would be read as {number}; write that number, or put the text in quotes"
            raise yaml.constructor.ConstructorError(None, None, misread, node.start_mark)
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    no_text = "a list or a mapping is used as a key, and keys are texts"
                    raise yaml.constructor.ConstructorError(None, None, no_text, key.start_mark)
                if key.value in seen:
                    twice = f"the key {key.value!r} is given in line {seen[key.value]} and again"
                    raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
                seen[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


class _Copier:
    """Copies a document value by value, so that anchors share nothing; what is wrong is noted."""

    def __init__(self, wrong: list[str]) -> None:
        self._wrong, self._values = wrong, 0

    def plain(self, value: Any, path: str, inside: tuple[int, ...]) -> Any:
        self._values += 1
        place = path or "the document"
        if self._values > _MOST_VALUES:
            return self._refuse(f"more than {_MOST_VALUES} values; anchors within anchors multiply", once=True)
        if isinstance(value, dict | list | tuple):
            if id(value) in inside:
                return self._refuse(f"{place}: contains itself through an anchor; write it out")
            if len(inside) >= _DEEPEST:
                return self._refuse(f"{place}: lies more than {_DEEPEST} levels deep")
        if isinstance(value, dict):
            return self._mapping(value, path, (*inside, id(value)))
        if isinstance(value, list | tuple):
            return [self.plain(item, f"{path}[{n}]", (*inside, id(value))) for n, item in enumerate(value)]
        return self._scalar(value, place)

    def _mapping(self, value: dict[Any, Any], path: str, inside: tuple[int, ...]) -> dict[str, Any]:
        copied = {}
        for key, item in value.items():
            if not isinstance(key, str):
                self._refuse(f"{path or 'the document'}: the key {key!r} is no text; write it in quotes")
            copied[str(key)] = self.plain(item, f"{path}.{key}" if path else str(key), inside)
        return copied

    def _scalar(self, value: Any, place: str) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, float) and not math.isfinite(value):
            return self._refuse(f"{place}: {value} is refused: numbers must be finite; leave the key out for no limit")
        if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            return self._refuse(f"{place}: {value} is refused: whole numbers end at {_LARGEST_INTEGER}")
        if isinstance(value, float) and abs(value) > _LARGEST:
            return self._refuse(f"{place}: {value:g} is refused: numbers end at {_LARGEST:g}")
        if isinstance(value, int | float):
            return value
        return self._refuse(
            f"{place}: {value!r} is a {type(value).__name__}, which JSON has none of; write it in quotes"
        )

    def _refuse(self, line: str, *, once: bool = False) -> None:
        if not once or line not in self._wrong:
            self._wrong.append(line)
