"""Paths of a listener: which handler answers which, and what a path says of model and version."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from serving.exceptions import InvalidRequest
from serving.front.http_connection import HttpConnection
from serving.front.http_head import RequestHead
from serving.key_ring import Principal
from serving.wishes import Wishes

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
VERSION_NUMBER = r"[0-9]{1,18}"
_MODEL = re.compile(MODEL_NAME)
_VERSION = re.compile(VERSION_NUMBER)
_FOR_MODEL = re.compile(r"/(?P<root>v2|admin)/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>/.*)?")

Handler = Callable[[HttpConnection, RequestHead, bytes], Any]


@dataclass(frozen=True)
class Route:
    """Where a request goes. ``model`` and ``version``: as the path says, checked; empty where it says none."""

    handler: Handler
    model: str = ""
    version: str = ""
    infers: bool = False
    """Whether it is an inference request: its body may be large, packed or binary."""
    json_bytes: int = -1
    packing: int = 0
    """How the body is sent: see :class:`serving.engines.engine_frames.Asked`."""
    principal: Principal | None = None
    """Who asks, where that is asked."""
    wishes: Wishes | None = None
    """What its headers say of the variant that is to answer."""


class RouteTable:
    """Finds routes.

    Args:
        plain: handlers by path and method.
        for_model: the same for what follows ``/v2/models/MODEL`` (with or without a version), ``""`` for nothing.
        infer: the path among those whose requests are inferences.
    """

    def __init__(
        self,
        plain: Mapping[str, Mapping[str, Handler]],
        for_model: Mapping[str, Mapping[str, Handler]],
        *,
        root: str,
        versioned: Mapping[str, Mapping[str, Handler]] | None = None,
        infer: str = "",
    ) -> None:
        self._plain, self._for_model, self._root, self._infer = plain, for_model, root, infer
        self._versioned = for_model if versioned is None else versioned

    def operations(self) -> Iterator[tuple[str, str]]:
        """Method and path of all there is, with ``{model}`` and ``{version}`` where names stand."""
        one = f"/{self._root}/models/{{model}}"
        named = [(one, self._for_model), (f"{one}/versions/{{version}}", self._versioned)]
        found = [*self._plain.items(), *((start + rest, on) for start, by in named for rest, on in by.items())]
        for path, methods in found:
            for method in methods:
                yield method, path

    def find(self, head: RequestHead) -> Route | tuple[int, str, bytes]:
        """The route, or the refusal: status, text, header lines.

        Raises:
            InvalidRequest: a name that could be no model's.
        """
        try:
            path = unquote_to_bytes(head.path).decode("ascii")
        except UnicodeDecodeError:
            raise InvalidRequest("the path must be ASCII, names of models too") from None
        found, model, version = self._plain.get(path), "", ""
        infers = False
        if found is None and (parts := _FOR_MODEL.fullmatch(path)) is not None and parts["root"] == self._root:
            rest = parts["rest"] or ""
            model, version = parts["model"], parts["version"] or ""
            found = (self._versioned if parts["version"] is not None else self._for_model).get(rest)
            infers = bool(rest) and rest == self._infer
            if found is not None:
                check_names(model, parts["version"])
        if found is None:
            return 404, "there is nothing at this path", b""
        method = head.method.decode("latin-1")
        handler = found.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join(sorted({*found, *(["HEAD"] if "GET" in found else [])}))
            return 405, f"method {method} is not allowed here", f"allow: {allowed}\r\n".encode()
        return Route(handler, model, version, infers)


def check_names(model: str, version: str | None) -> None:
    """Raise InvalidRequest for what could be no model's name, or no version."""
    if not _MODEL.fullmatch(model):
        raise InvalidRequest(f"model name {model[:80]!a} must match {_MODEL.pattern}")
    if version is not None and not _VERSION.fullmatch(version):
        raise InvalidRequest(f"version {version[:80]!a} must be a whole number")
