"""What the endpoint says of itself: true, complete, and harmless in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import jsonschema
import pytest
from conftest import Server
from endpoint_process import Endpoint, endpoint
from onnx_models import digits, filled, identities, publish

from model_registry.api_keys import KeyFile
from model_registry.store import Store
from model_registry.variant import TensorSpec
from serving.front.api_document import describe_api
from serving.front.api_page import PAGE_LINES, api_page
from serving.front.data_plane import DataPlane
from serving.front.http_head import RequestHead
from serving.key_ring import KeyRing
from serving.limits import RequestLimits

X = TensorSpec(name="<script>x", datatype="FP32", shape=(-1, 2))


@pytest.fixture
def routes(tmp_path: Path) -> list[tuple[str, str]]:
    """Of the data plane, which asks nothing of its models before it is asked."""
    plane = DataPlane(cast(Any, SimpleNamespace(models={})), RequestLimits(), KeyRing(tmp_path / "keys.json"))
    return list(plane.routes.operations())


def described(routes: list[tuple[str, str]], *, keyed: bool = False, limits: RequestLimits | None = None) -> Any:
    return describe_api(routes, limits or RequestLimits(), "1.2", {"m": (X,)}, keyed=keyed)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_every_route_is_described(routes: list[tuple[str, str]]) -> None:
    document = described(routes)
    found = {(method.upper(), path) for path, on in document["paths"].items() for method in on}
    assert found == set(routes) and len(found) == 18
    for path, on in document["paths"].items():
        for operation in on.values():
            names = {name.rpartition("/")[2] for name in references(operation.get("parameters", []))}
            assert names >= set(re.findall(r"{(\w+)}", path))
    identities_ = [operation["operationId"] for on in document["paths"].values() for operation in on.values()]
    assert len(set(identities_)) == len(identities_)


def test_references_lead_somewhere_and_everything_is_referred_to(routes: list[tuple[str, str]]) -> None:
    document = described(routes, keyed=True)
    found = set(references(document))
    there = {f"#/components/{kind}/{name}" for kind, on in document["components"].items() for name in on}
    assert found == there - {"#/components/securitySchemes/key"}
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_limits_are_those_of_the_endpoint(routes: list[tuple[str, str]]) -> None:
    document = described(routes, limits=RequestLimits(body_bytes=12345, rank=3, id_characters=77))
    request = document["components"]["schemas"]["InferenceRequest"]["properties"]
    assert request["inputs"]["items"]["properties"]["shape"]["maxItems"] == 3
    assert request["id"]["maxLength"] == 77
    assert "12345 bytes" in document["info"]["description"]


def test_keys_are_asked_for_where_they_are(routes: list[tuple[str, str]]) -> None:
    free, keyed = described(routes), described(routes, keyed=True)
    infer = keyed["paths"]["/v2/models/{model}/infer"]["post"]
    assert infer["security"] == [{"key": []}] and {"401", "403", "429", "504"} <= set(infer["responses"])
    assert "401" not in keyed["paths"]["/v2/health/live"]["get"]["responses"]
    assert free["paths"]["/v2/models/{model}/infer"]["post"]["security"] == []


def test_large_rows_are_named_and_not_written_out(routes: list[tuple[str, str]]) -> None:
    image = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 224, 224))
    document = describe_api(routes, RequestLimits(), "1", {"m": (X,), "large": (image,)}, keyed=False)
    body = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]
    assert list(body["content"]["application/json"]["examples"]) == ["m"]
    assert "`large`: image FP32 [-1, 3, 224, 224]" in body["description"]
    assert len(json.dumps(document)) < 40_000


@pytest.mark.parametrize("keyed", [False, True])
def test_a_stranger_learns_how_to_ask_and_not_what_there_is(tmp_path: Path, keyed: bool) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    if keyed:
        keys.add("someone", models=("*",), actions=("infer",), rate=None, burst=None, days=None)
    model = SimpleNamespace(serving="1", versions={"1": SimpleNamespace(inputs=(X,))})
    plane = DataPlane(cast(Any, SimpleNamespace(models={"secret": model})), RequestLimits(), KeyRing(keys.path))
    answers: list[tuple[Any, ...]] = []
    connection = cast(Any, SimpleNamespace(answer=lambda *answer: answers.append(answer)))
    for path in (b"/openapi.json", b"/docs"):
        head = RequestHead(b"GET", path, {}, keep=True)
        plane.admit(head)
        assert head.refusal is None
        plane.handle(connection, head, b"")
    assert [answer[0] for answer in answers] == [200, 200]
    assert [b"secret" in answer[1] for answer in answers] == [not keyed, not keyed]


class Tags(HTMLParser):
    """Which tags and attributes a page has, and that each is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= set(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_all_of_it_and_runs_nothing(routes: list[tuple[str, str]]) -> None:
    document = described(routes)
    page = api_page(document).decode()
    tags = Tags(page)
    assert "script" not in tags.seen and not any(name.startswith("on") or name == "src" for name, _ in tags.attributes)
    assert {value for name, value in tags.attributes if name == "href"} <= {
        "/openapi.json",
        *(f"#{name}" for name in document["components"]["schemas"]),
    }
    for path, on in document["paths"].items():
        assert path in tags.text and all(operation["summary"] in tags.text for operation in on.values())
    assert "<script>x" in tags.text  # the name of a tensor, as text
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{allowed}';".encode() in PAGE_LINES


# -- a running endpoint -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def running(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("described")
    variants = {
        "digits": digits(folder / "digits"),
        "gaps": filled(folder / "gaps", missing=["x"]),
        "kinds": identities(folder / "kinds"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://described"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        with endpoint(folder / "home") as found:
            for name, variant in variants.items():
                publish(store, folder / name, variant)
                found.deploy(name, "3", variant.digest)
            yield found


def conforms(document: Any, method: str, path: str, response: httpx.Response) -> None:
    said = document["paths"][path][method]["responses"][str(response.status_code)]
    if "$ref" in said:
        said = document["components"]["responses"][said["$ref"].rpartition("/")[2]]
    schema = said["content"][response.headers["content-type"].partition(";")[0]]["schema"]
    jsonschema.validate(response.json(), {**schema, "components": document["components"]})


def test_answers_are_as_described(running: Endpoint) -> None:
    document = running.get("/openapi.json").json()
    for path, on in document["paths"].items():
        for method in on:
            if path == "/docs":
                continue
            for model in ("gaps", "digits", "nobody"):
                url = running.url + path.replace("{model}", model).replace("{version}", "3")
                conforms(document, method, path, running.client.request(method, url, json={"inputs": []}))


def test_the_examples_are_answered(running: Endpoint) -> None:
    document = running.get("/openapi.json").json()
    body = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]
    examples = body["content"]["application/json"]["examples"]
    assert set(examples) == {"digits", "gaps"} and "`kinds`: in_BOOL BOOL [-1]" in body["description"]
    schema = {"$ref": "#/components/schemas/InferenceRequest", "components": document["components"]}
    for model, example in examples.items():
        jsonschema.validate(example["value"], schema)
        response = running.infer(model, example["value"])
        assert response.status_code == 200, response.text
        conforms(document, "post", "/v2/models/{model}/infer", response)


def test_the_page_comes_with_a_strict_policy(running: Endpoint) -> None:
    response = running.get("/docs")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "image" in response.text
