"""``/docs``: the description of the data plane as a page that needs no script and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
code, pre { font: 14px/1.4 ui-monospace, monospace; background: #f4f4f2 }
pre { padding: .75rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-top: 1px solid #ddd; padding-top: 1rem; overflow-wrap: anywhere }
h2 b { color: #0a5c36 }
table { border-collapse: collapse; width: 100% }
td { padding: .2rem 1rem .2rem 0; vertical-align: top }
td:first-child { white-space: nowrap }
summary { cursor: pointer }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b }
  a { color: #8ab4f8 }
  code, pre { background: #2a2a2a }
  h2 { border-color: #444 }
  h2 b { color: #7fd3a6 }
}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PAGE_LINES = (
    f"content-security-policy: default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
).encode()
"""Header lines of the page: nothing runs in it, is loaded by it, or shows it inside something else."""


def api_page(document: dict[str, Any]) -> bytes:
    """The OpenAPI document as HTML."""
    title = escape(document["info"]["title"])
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title>",
        f'<meta name=viewport content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{title} {escape(document['info']['version'])}</h1><p>{_prose(document['info']['description'])}</p>",
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>',
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(document, method, path, operation)
    parts.append("<h2>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<details id={escape(name)}><summary>{escape(name)}</summary>{_pre(schema)}</details>")
    return "\n".join([*parts, "</body></html>"]).encode()


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    key = " A key is needed." if operation["security"] else ""
    yield f"<h2><b>{method.upper()}</b> <code>{escape(path)}</code></h2><p>{escape(operation['summary'])}.{key}</p>"
    rows = [_found(document, parameter) for parameter in operation.get("parameters", ())]
    if rows:
        yield "<table>"
        for row in rows:
            yield f"<tr><td><code>{escape(row['name'])}</code> ({row['in']})<td>{_prose(row['description'])}"
        yield "</table>"
    body = operation.get("requestBody")
    if body is not None:
        yield f"<p>The body: {_prose(body['description'])}</p>"
        content = body["content"]["application/json"]
        yield _link(content["schema"])
        for example in content.get("examples", {}).values():
            summary = escape(example["summary"])
            yield f"<details><summary>{summary}</summary>{_pre(example['value'], indent=None)}</details>"
    yield "<details><summary>Answers</summary><table>"
    for status, answer in operation["responses"].items():
        found = _found(document, answer)
        named = found.get("headers", {}).items()
        headers = "".join(f"<br>{escape(name)}: {_prose(header['description'])}" for name, header in named)
        schema = next((c["schema"] for c in found["content"].values() if "$ref" in c["schema"]), None)
        yield f"<tr><td>{status}<td>{_prose(found['description'])} {_link(schema) if schema else ''}{headers}"
    yield "</table></details>"


def _found(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """What a reference within the document stands for."""
    for part in value.get("$ref", "#").split("/")[1:]:
        document = document[part]
    return document if "$ref" in value else value


def _link(schema: dict[str, Any]) -> str:
    name = escape(schema["$ref"].rpartition("/")[2])
    return f'<a href="#{name}">{name}</a>'


def _prose(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def _pre(value: Any, indent: int | None = 1) -> str:
    return f"<pre>{escape(json.dumps(value, indent=indent))}</pre>"
