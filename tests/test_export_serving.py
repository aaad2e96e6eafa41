"""A version for Kubernetes, KServe and Triton: what is written fits their schemas, says the truth, and runs."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from endpoint_process import endpoint
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from jsonschema import Draft202012Validator, ValidationError
from measurements import measured
from memory_store import Memory
from onnx_models import answer, digits, filled, identities, publish, slow
from patience import PATIENCE
from server_certificate import server_certificate
from winnow_command import WINNOW, environment

from flows.exporting.exported_version import ExportedVersion, Needs, NotExportable
from flows.exporting.kserve_manifest import kserve_manifest
from flows.exporting.kubernetes_manifests import kubernetes_manifests
from flows.exporting.triton_repository import triton_config, write_triton_repository
from model_registry.api_keys import KeyFile
from model_registry.ledger import Ledger
from model_registry.manifest import FileEntry
from model_registry.store import Store
from model_registry.text_input import DECODER
from model_registry.variant import RuntimeSpec, Variant
from model_registry.versions import VersionMissing, Versions
from serving.engines.batch_certificate import BatchCertificate

SCHEMAS = Path(__file__).parent / "schemas"
IMAGE = "registry.example/winnow@sha256:" + "a" * 64
NEEDS = Needs(cores=2, mebibytes=600)
EXACT = BatchCertificate("exact", "rows alone and in a batch are answered alike to the bit")
NONE = BatchCertificate("none", "its dynamic quantization takes the scale from the whole batch")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedVersion:
    runtime = RuntimeSpec(cpu_class="x86-64/avx-vnni")
    return ExportedVersion("fast-digits", 3, digits(tmp_path_factory.mktemp("v"), runtime=runtime), "s3://winnow")


def check_kubernetes(value: dict[str, Any]) -> None:
    """Raise ValidationError unless Kubernetes takes the object; keys it does not know are refused too."""
    schema = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())
    kind = schema["kinds"][value["kind"]]
    Draft202012Validator({**kind, "$defs": schema["$defs"]}).validate(value)


def check_kserve(value: dict[str, Any]) -> None:
    Draft202012Validator(json.loads((SCHEMAS / "kserve-inferenceservice-v1beta1.json").read_text())).validate(value)


def read_config(text: str) -> Any:
    """A ``config.pbtxt`` as Triton's own message; raises ParseError for what it is not."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((SCHEMAS / "triton_model_config.binpb").read_bytes()).file:
        pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()
    return text_format.Parse(text, message, descriptor_pool=pool)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every mapping in it that a schema describes key by key."""
    if isinstance(value, dict):
        if not {"labels", "annotations", "matchLabels", "requests", "limits", "nodeSelector"} & {*path[-1:]}:
            yield path
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*path, number))


def assert_no_slip_passes(value: Any, check: Callable[[Any], None], *spared: tuple[Any, ...]) -> None:
    """A key that is none is refused at every place but in metadata and where ``spared`` says."""
    for path in places(value):
        if path[:1] == ("metadata",) or path in spared:
            continue
        wrong = copy.deepcopy(value)
        inner = wrong
        for step in path:
            inner = inner[step]
        inner["winnow"] = 1
        with pytest.raises(ValidationError):
            check(wrong)


# -- Kubernetes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tls", [True, False])
def test_kubernetes_takes_every_object_and_would_refuse_a_slip(exported: ExportedVersion, tls: bool) -> None:
    objects = kubernetes_manifests(exported, IMAGE, NEEDS, tls=tls)
    assert [value["kind"] for value in objects.values()] == [
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
    ]
    for value in objects.values():
        assert_no_slip_passes(value, check_kubernetes)


def test_the_objects_mean_the_same_pods(exported: ExportedVersion) -> None:
    objects = {value["kind"]: value for value in kubernetes_manifests(exported, IMAGE, NEEDS).values()}
    deployment = objects["Deployment"]["spec"]
    pod = deployment["template"]
    chosen = deployment["selector"]["matchLabels"]
    assert chosen.items() <= pod["metadata"]["labels"].items()
    assert "app.kubernetes.io/version" not in chosen, "a selector never changes, and a version does"
    assert objects["Service"]["spec"]["selector"] == chosen
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert objects[kind]["spec"][key] == {"matchLabels": chosen}
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] in ports
    policy = objects["NetworkPolicy"]["spec"]["ingress"]
    assert {rule["ports"][0]["port"] for rule in policy} == set(ports.values())
    assert "from" in next(rule for rule in policy if rule["ports"][0]["port"] == ports["admin"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]} == {"home", "access", "tls"}
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "600Mi"} == container["resources"]["requests"]


def test_nothing_secret_is_written(exported: ExportedVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WINNOW_ADMIN_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "hush-hush")
    made = [kubernetes_manifests(exported, IMAGE, NEEDS), kserve_manifest(exported, IMAGE, NEEDS)]
    assert "hush" not in json.dumps(made)


@pytest.mark.parametrize(
    ("cpu_class", "nodes", "present", "absent"),
    [
        (None, None, [], []),
        ("x86-64/avx512-vnni", "amd64", ["AVX512VNNI"], []),
        ("x86-64/avx2", "amd64", ["AVX2"], ["AVX512VNNI", "AVXVNNI", "AVX512BW"]),
        ("aarch64/dotprod", "arm64", [], []),
        ("riscv64/generic", None, [], []),
    ],
)
def test_int8_goes_to_nodes_of_its_class(
    tmp_path: Path, cpu_class: str | None, nodes: str | None, present: list[str], absent: list[str]
) -> None:
    variant = digits(tmp_path, runtime=RuntimeSpec(cpu_class=cpu_class))
    value = kubernetes_manifests(ExportedVersion("m", 1, variant, "s3://winnow"), IMAGE, NEEDS)["deployment.yaml"]
    check_kubernetes(value)
    pod = value["spec"]["template"]["spec"]
    assert pod.get("nodeSelector") == (None if nodes is None else {"kubernetes.io/arch": nodes})
    wishes = pod.get("affinity", {}).get("nodeAffinity", {}).get("preferredDuringSchedulingIgnoredDuringExecution", [])
    found = {
        wish["key"].rpartition(".")[2]: wish["operator"]
        for one in wishes
        for wish in one["preference"]["matchExpressions"]
    }
    assert found == {**dict.fromkeys(present, "Exists"), **dict.fromkeys(absent, "DoesNotExist")}


def test_names_are_labels_and_differ(exported: ExportedVersion) -> None:
    models = [
        "a",
        "fast-digits",
        "Fast-Digits",
        "fast_digits",
        "fast.digits",
        "9",
        "x" * 64,
        "x" * 63 + "y",
        "a-",
        "a_",
    ]
    names = [ExportedVersion(model, 1, exported.variant, "s3://winnow").label for model in models]
    assert len(set(names)) == len(models)
    assert names[:2] == ["winnow-a", "winnow-fast-digits"]
    for name in names:
        assert len(name) <= 52 and name.strip("-") == name
        assert all(letter.isdigit() or letter == "-" or "a" <= letter <= "z" for letter in name)


# -- KServe --------------------------------------------------------------------------------------------------------
def test_kserve_takes_the_service_and_would_refuse_a_slip(exported: ExportedVersion) -> None:
    (value,) = kserve_manifest(exported, IMAGE, NEEDS).values()
    assert_no_slip_passes(value, check_kserve, ())  # its schema takes anything at the top
    canary = copy.deepcopy(value)
    canary["spec"]["predictor"]["canaryTrafficPercent"] = 10
    check_kserve(canary)


def test_knative_allows_all_that_the_predictor_asks_for(exported: ExportedVersion) -> None:
    """Its webhook refuses other fields (knative/serving, pkg/apis/serving/fieldmask.go)."""
    (value,) = kserve_manifest(exported, IMAGE, NEEDS).values()
    predictor = value["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert {"lifecycle", "terminationGracePeriodSeconds"}.isdisjoint(container)
    assert {"securityContext", "affinity", "nodeSelector", "topologySpreadConstraints"}.isdisjoint(predictor)
    assert [port["name"] for port in container["ports"]] == ["http1"], "one port, by a name that Knative knows"


# -- Triton --------------------------------------------------------------------------------------------------------
def test_triton_reads_the_configuration_of_a_batched_model(exported: ExportedVersion) -> None:
    config = read_config(triton_config(exported, EXACT, labelled=True))
    assert (config.name, config.backend, config.max_batch_size) == ("fast-digits", "onnxruntime", 64)
    (given,), (made,) = config.input, config.output
    kind = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name["TYPE_FP32"].number
    assert (given.name, given.data_type, list(given.dims)) == ("image", kind, [1, 8, 8])
    assert (made.name, list(made.dims), made.label_filename) == ("logits", [10], "labels.txt")
    assert config.HasField("dynamic_batching")
    (group,) = config.instance_group
    assert group.Kind.Name(group.kind) == "KIND_CPU"
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_triton_does_not_mix_rows_where_answers_depend_on_their_batch(exported: ExportedVersion) -> None:
    config = read_config(triton_config(exported, NONE, labelled=False))
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [-1, 1, 8, 8] and list(config.output[0].dims) == [-1, 10]
    assert config.output[0].label_filename == ""


def test_triton_is_told_of_every_datatype_shape_and_setting(tmp_path: Path) -> None:
    many = ExportedVersion("many", 1, identities(tmp_path / "many"), "s3://winnow")
    config = read_config(triton_config(many, EXACT, labelled=False))
    types = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    assert {given.name: types[given.data_type].name for given in config.input} == {
        f"in_{kind}": f"TYPE_{'STRING' if kind == 'BYTES' else kind}"
        for kind in ("BOOL", "UINT8", "INT32", "INT64", "FP16", "FP64", "BYTES")
    }
    for tensor in (*config.input, *config.output):  # a row is one number
        assert list(tensor.dims) == [1] and tensor.HasField("reshape") and not tensor.reshape.shape
    for level, number in (("disabled", 2), ("basic", -1), ("extended", 1), ("all", 0)):
        runtime = RuntimeSpec.model_validate({"graph_optimization": level, "intra_op_threads": 4, "arena": False})
        variant = digits(tmp_path / level, runtime=runtime)
        config = read_config(triton_config(ExportedVersion("m", 1, variant, "s3://winnow"), EXACT, labelled=False))
        assert config.optimization.graph.level == number
        assert config.parameters["intra_op_thread_count"].string_value == "4"
        assert config.parameters["enable_mem_arena"].string_value == "0"


def test_a_model_that_continues_text_is_not_for_triton(exported: ExportedVersion, tmp_path: Path) -> None:
    decoder = exported.variant.model_copy(
        update={"files": (*exported.variant.files, FileEntry(path=DECODER, sha256="0" * 64, size=1))}
    )
    with pytest.raises(NotExportable, match="continues text step by step, which Triton's backend"):
        write_triton_repository(replace(exported, variant=decoder), cast(Store, None), tmp_path)


def test_a_name_with_signs_of_the_text_form_is_written_so_that_triton_reads_it(tmp_path: Path) -> None:
    variant = filled(tmp_path)
    (spec,) = variant.inputs
    odd = spec.model_copy(update={"name": 'a "b"\\ é\n'})
    changed = variant.model_copy(update={"inputs": (odd,)})
    config = read_config(triton_config(ExportedVersion("m", 1, changed, "s3://winnow"), EXACT, labelled=False))
    assert config.input[0].name == odd.name


def test_a_slip_in_the_configuration_would_be_seen(exported: ExportedVersion) -> None:
    text = triton_config(exported, EXACT, labelled=True)
    for wrong in ("max_batch", "KIND_CPU count", "TYPE_FP32"):
        with pytest.raises(text_format.ParseError):
            read_config(text.replace(wrong, f"{wrong[:5]}X{wrong[5:]}"))


# -- what is exported ----------------------------------------------------------------------------------------------
def kept(store: Store, variant: Variant) -> Variant:
    """With its manifest in a store of records alone."""
    store.write_record(f"variants/{variant.digest}.json", variant.to_json())
    return variant


def test_memory_is_what_was_measured_for_every_engine_and_the_front(tmp_path: Path) -> None:
    store = Memory()
    for threads, engines in ((1, 3), (4, 2)):
        variant = digits(tmp_path, runtime=RuntimeSpec(intra_op_threads=threads))
        exported = ExportedVersion("m", 1, variant, "s3://winnow")
        with pytest.raises(NotExportable, match="--memory"):
            exported.needs(store)
        for machine, mebibytes in (("a", 80), ("b", 100)):
            record = measured("m", digest=variant.digest, baseline=None, peak_rss_bytes=(mebibytes << 20) - 5)
            store.write_record(f"measurements/{variant.digest}/{machine}/x.json", record.to_json())
        assert exported.needs(store) == Needs(threads + 1, 128 + 256 + engines * 100)


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    store = Memory()
    store.uri = "s3://memory"
    with pytest.raises(NotExportable, match="no version of 'm' was released"):
        ExportedVersion.find(store, "m", None)
    variant = kept(store, answer(tmp_path, 1))
    assert Versions(store).add("m", variant.digest) == 1
    assert ExportedVersion.find(store, "m", 1).pin == f"m/1@{variant.digest}"
    with pytest.raises(VersionMissing, match="it has: 1"):
        ExportedVersion.find(store, "m", 2)
    torch = Variant.model_validate({**variant.model_dump(by_alias=True), "digest": "", "format": "torch"})
    kept(store, torch)
    assert Versions(store).add("m", torch.digest) == 2
    with pytest.raises(NotExportable, match="not onnx"):
        ExportedVersion.find(store, "m", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "kubernetes"], "needs --image"),
        (["--to", "kserve"], "needs --image"),
        (["--to", "triton", "--image", "x"], "neither --image"),
        (["--to", "kserve", "--image", "x", "--plain-http"], "kubernetes alone"),
        (["--to", "triton", "-o", "."], "not empty"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "there").touch()
    done = subprocess.run(
        [*WINNOW, "export-serving", "m", "-o", "new", *arguments],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr


# -- the whole way -------------------------------------------------------------------------------------------------
def export(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``winnow export-serving`` against the store of the environment; everything it wrote lies in ``folder/new``."""
    done = subprocess.run(
        [*WINNOW, "export-serving", *arguments, "-o", "new"],
        cwd=folder,
        env={**os.environ, "WINNOW_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_what_the_deployment_starts_serves_its_version_alone(store: Store, tmp_path: Path) -> None:
    """With its very settings, and without a ledger, MLflow and Prefect."""
    variant = publish(store, tmp_path / "v", digits(tmp_path / "v"))
    assert Versions(store).add("fast-digits", variant.digest) == 1
    export(tmp_path, "fast-digits", "--version", "1", "--to", "kubernetes", "--image", IMAGE, "--memory", "600")
    objects = [yaml.safe_load(path.read_text()) for path in sorted((tmp_path / "new").iterdir())]
    for value in objects:
        check_kubernetes(value)
    (deployment,) = (value for value in objects if value["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == IMAGE and container["command"] == ["winnow", "serve"]

    inside = tmp_path / "inside"
    settings = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    settings = {name: value.replace("/etc/", f"{inside}/etc/") for name, value in settings.items()}
    certificate, key, _ = server_certificate(inside, "server")
    for made, name in ((certificate, "WINNOW_TLS_CERTIFICATE"), (key, "WINNOW_TLS_KEY")):
        Path(settings[name]).parent.mkdir(parents=True, exist_ok=True)
        made.replace(settings[name])
    _, text = KeyFile(Path(settings["WINNOW_KEYS"])).add("a client")
    hidden = "import sys\nfor name in ('mlflow', 'prefect', 'torch', 'yaml'): sys.modules[name] = None\n"
    (inside / "sitecustomize.py").write_text(hidden)
    ours = {
        "WINNOW_HOME": str(tmp_path / "served"),
        "WINNOW_ENDPOINT_PORT": "0",
        "WINNOW_ADMIN_PORT": "0",
        "WINNOW_ADMIN_TOKEN": "secret",
        "PYTHONPATH": os.pathsep.join([str(inside), str(Path(__file__).parent.parent)]),
    }
    launcher = [sys.executable, "-m", "flows.commands.cli", *container["command"][1:]]
    with endpoint(tmp_path / "served", launcher=launcher, wait=False, **settings | ours) as running:
        probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
        assert all(running.url.startswith(f"{probe['scheme'].lower()}://0.0.0.0:") for probe in probes)
        running.wait_ready()
        assert [running.get(probe["path"]).status_code for probe in probes] == [200, 200, 200]
        image = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [8] * 64}
        assert running.infer("fast-digits", {"inputs": [image]}).status_code == 401
        running.client.headers["authorization"] = f"Bearer {text}"
        answered = running.infer("fast-digits", {"inputs": [image]})
        assert answered.status_code == 200 and answered.json()["model_version"] == "1"
        running.client.headers.pop("authorization")
        assert running.admin("GET", "/metrics", token="secret").status_code == 200
        assert running.terminate(seconds=10) == 0, "a client that keeps its connection open holds nothing up"


@pytest.mark.slow
def test_a_champion_becomes_a_model_repository(store: Store, tmp_path: Path) -> None:
    good = publish(store, tmp_path / "good", digits(tmp_path / "good"))
    single = publish(store, tmp_path / "single", slow(tmp_path / "single"))
    ledger = Ledger(store)
    for model, variant in (("good", good), ("single", single)):
        ledger.commit(ledger.begin(model, 7, variant.digest, expected_champion_seq=0))
        folder = tmp_path / f"of-{model}"
        folder.mkdir()
        done = export(folder, model, "--to", "triton")
        made = folder / "new" / model
        config = read_config((made / "config.pbtxt").read_text())
        assert config.name == model
        assert (made / "7" / "model.onnx").read_bytes() == (tmp_path / model / "model.onnx").read_bytes()
        if model == "good":
            assert config.max_batch_size == 64
            assert (made / "labels.txt").read_text().split() == [str(i) for i in range(10)]
        else:
            assert config.max_batch_size == 0 and not (made / "labels.txt").exists()
            assert "one by one: 'steps' has no batch dimension" in done.stderr
