"""What the endpoint says of itself: true, complete, and harmless in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import jsonschema
import pytest
from conftest import Server
from endpoint_process import Endpoint, endpoint
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx_models import digits, filled, identities, publish
from schema_values import nearly, values_of

from model_registry.api_keys import KeyFile
from model_registry.store import Store
from model_registry.variant import TensorSpec
from serving.front.api_document import describe_api
from serving.front.api_page import PAGE_LINES, api_page
from serving.front.data_plane import DataPlane
from serving.front.http_head import RequestHead
from serving.key_ring import KeyRing
from serving.limits import RequestLimits

pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies"  # of a thread of another test's server, not of ours
)
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
    assert found == set(routes) and len(found) == 26
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
    assert len(json.dumps(document)) < 60_000


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
    kind = response.headers["content-type"].partition(";")[0]
    schema, body = said["content"][kind]["schema"], response.content
    if kind == "application/octet-stream":  # tensors behind an answer
        schema = said["content"]["application/json"]["schema"]
        body = body[: int(response.headers["inference-header-content-length"])]
    found = body.decode() if kind == "text/html" else json.loads(body)
    jsonschema.validate(found, {**schema, "components": document["components"]})


def test_answers_are_as_described(running: Endpoint) -> None:
    document = running.get("/openapi.json").json()
    for path, on in document["paths"].items():
        for method in on:
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


# -- requests that nobody thought of ----------------------------------------------------------------------------------
INFER = "/v2/models/{model}/infer"
LEAKS = ("Traceback", "site-packages", "s3://", ".py", "onnxruntime", "127.0.0.1")


def sent(running: Endpoint, document: Any, method: str, path: str, **how: Any) -> httpx.Response:
    """The answer, which is no fault of the endpoint's, is as described, and tells nothing of the machine."""
    model, version = how.pop("model", "digits"), how.pop("version", "3")
    url = running.url + path.replace("{model}", model).replace("{version}", version)
    response = running.client.request(method, url, **how)
    assert response.status_code != 500, response.text
    conforms(document, method, path, response)
    if response.status_code != 200:
        assert list(response.json()) == ["error"]
        assert not [leak for leak in (*LEAKS, str(running.home.parent)) if leak in response.text], response.text
    return response


def arguments_of(document: Any, operation: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Parameters and a body as the document allows them, by where they go."""
    parameters = [document["components"]["parameters"][p["$ref"].rpartition("/")[2]] for p in operation["parameters"]]
    values = {p["name"]: values_of(p["schema"], document) for p in parameters if p["in"] == "path"}
    headers = {
        p["name"]: values_of(p["schema"], document).map(str).filter(lambda text: text.isascii() and text.isprintable())
        for p in parameters
        if p["in"] == "header"
    }
    found: dict[str, Any] = {name: one | st.sampled_from(KNOWN[name]) for name, one in values.items()}
    if "requestBody" in operation:
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        found["content"] = values_of(body, document).map(lambda value: json.dumps(value).encode()) | st.binary()
    return st.fixed_dictionaries({**found, "headers": st.fixed_dictionaries({}, optional=headers)})


KNOWN = {"model": ["digits", "gaps", "kinds"], "version": ["3"]}


def requests_for(inputs: list[dict[str, Any]]) -> st.SearchStrategy[Any]:
    """Requests that a model with these inputs answers."""
    element: dict[str, st.SearchStrategy[Any]] = {
        "BOOL": st.booleans(),
        "UINT8": st.integers(0, 255),
        "INT32": st.integers(-(2**31), 2**31 - 1),
        "INT64": st.integers(-(2**63), 2**63 - 1),
        "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
        "FP64": st.floats(allow_nan=False, allow_infinity=False),
        "BYTES": st.text(max_size=9),
    }

    def tensor(spec: dict[str, Any], rows: int) -> st.SearchStrategy[Any]:
        shape = [rows, *spec["shape"][1:]]
        datatype = element[spec["datatype"]] | st.none() if spec.get("missing") else element[spec["datatype"]]
        row = math.prod(shape[1:])
        data = st.lists(datatype, min_size=row * rows, max_size=row * rows)
        known = {"name": spec["name"], "datatype": spec["datatype"], "shape": shape}
        return data.map(lambda values: {**known, "data": values})

    def request(rows: int) -> st.SearchStrategy[Any]:
        optional: dict[str, Any] = {
            "id": st.text(max_size=20),
            "parameters": st.fixed_dictionaries(
                {}, optional={"timeout": st.just(30_000_000), "binary_data_output": st.booleans()}
            ),
        }
        tensors = st.tuples(*(tensor(spec, rows) for spec in inputs)).map(list)
        return st.fixed_dictionaries({"inputs": tensors}, optional=optional)

    return st.integers(1, 3).flatmap(request)


@pytest.fixture(scope="module")
def known(running: Endpoint) -> tuple[Any, dict[str, st.SearchStrategy[Any]]]:
    """The document, and what each model answers; one of them takes FP16, which JSON has no form for."""
    models = {name: running.get(f"/v2/models/{name}").json()["inputs"] for name in ("digits", "gaps")}
    return running.get("/openapi.json").json(), {name: requests_for(inputs) for name, inputs in models.items()}


def for_each(most: int, values: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check that many values. One that fails is shown as it is: making it smaller takes too many requests."""
    some = settings(
        max_examples=most, phases=[Phase.reuse, Phase.generate], suppress_health_check=[HealthCheck.too_slow]
    )

    @some
    @given(values)
    def each(value: Any) -> None:
        check(value)

    each()


def test_what_the_document_allows_is_answered_as_it_says(running: Endpoint, known: Any) -> None:
    document = known[0]
    calls = [
        st.tuples(st.just(method), st.just(path), arguments_of(document, operation))
        for path, on in document["paths"].items()
        for method, operation in on.items()
        if "parameters" in operation
    ]

    def check(call: tuple[str, str, dict[str, Any]]) -> None:
        method, path, how = call
        sent(running, document, method, path, **how)

    for_each(300, st.one_of(calls), check)


@pytest.mark.parametrize("model", ["digits", "gaps"])
def test_what_a_model_takes_is_answered(running: Endpoint, known: Any, model: str) -> None:
    document, requests = known

    def check(request: Any) -> None:
        response = sent(running, document, "post", INFER, model=model, content=json.dumps(request).encode())
        assert response.status_code == 200, response.text
        length = int(response.headers.get("inference-header-content-length", len(response.content)))
        answer = json.loads(response.content[:length])
        assert answer.get("id") == request.get("id")
        assert {output["shape"][0] for output in answer["outputs"]} == {request["inputs"][0]["shape"][0]}

    for_each(100, requests[model], check)


@pytest.mark.parametrize("model", ["digits", "gaps"])
def test_what_a_model_nearly_takes_is_answered_or_refused(running: Endpoint, known: Any, model: str) -> None:
    document, requests = known

    def check(request: Any) -> None:
        response = sent(running, document, "post", INFER, model=model, content=json.dumps(request).encode())
        assert response.status_code in (200, 400, 501, 504), response.text

    for_each(120, nearly(requests[model]), check)


def test_the_endpoint_is_as_it_was(running: Endpoint) -> None:
    assert running.get("/v2/health/ready").status_code == 200
    assert all(running.version(name, "3")["restarts"] == 0 for name in KNOWN["model"])
