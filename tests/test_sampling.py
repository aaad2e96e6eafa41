"""Requests that are kept for monitoring: what is written, for how long, and what becomes of them when S3 is away."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from endpoint_process import ASK, Endpoint, endpoint
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import answer, digits, identities, publish
from patience import PATIENCE, wait_for
from prometheus_client.parser import text_string_to_metric_families

from model_registry.api_keys import KeyFile
from model_registry.garbage import find_garbage
from model_registry.sample_files import sample_expired, sample_key
from model_registry.store import Store, StoreUnavailable
from serving.engines.engine_frames import GZIP, MAY_PACK
from serving.sampling.sample_frames import Sample, SampleCutter, SampledBody, pack_sample
from serving.sampling.sample_order import SampleOrder, sample_order
from serving.sampling.sample_table import read_sample, write_samples
from serving.sampling.sample_writer import SampleWriter
from serving.tensors import to_raw

DAY = 86_400.0
NOW = 1_795_900_000.0
X = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
Y = {"name": "y", "datatype": "FP32", "shape": [-1, 2]}


def in_json(value: Any) -> SampledBody:
    return SampledBody(json.dumps(value).encode(), -1, 0)


def sample(number: float = 1.0, *, at: float = NOW, version: str = "3", **more: Any) -> Sample:
    request = {"id": "a", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 2]}]}
    answered = {"outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [number, None]}]}
    made = Sample(at, "m", version, [X], [Y], in_json(request), in_json(answered))
    return made._replace(**more)


def read(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return found


def written(*samples: Sample) -> list[dict[str, Any]]:
    return read(write_samples(samples[0], [read_sample(one) for one in samples]))


# -- what is written --------------------------------------------------------------------------------------------
def test_a_row_has_the_time_the_version_the_id_and_all_tensors() -> None:
    without = sample(5, at=NOW + 0.25, request=in_json({**json.loads(sample(5).request.body), "id": None}))
    rows = written(sample(1.5), without)
    assert [row["time"].timestamp() for row in rows] == [NOW, NOW + 0.25]
    assert [(row["version"], row["id"]) for row in rows] == [("3", "a"), ("3", None)]
    assert (rows[0]["input/x"], rows[0]["input_shape/x"]) == ([1.5, 2.0], [1, 2])
    assert rows[0]["output/y"][0] == 1.5 and np.isnan(rows[0]["output/y"][1]) and rows[0]["output_shape/y"] == [1, 2]


def test_binary_and_packed_bodies_say_the_same() -> None:
    x = np.array([[1.5, 2.0]], dtype="<f4")
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [tensor]}).encode()
    reply = json.dumps({"outputs": [{**tensor, "name": "y"}]}).encode()
    binary = sample(
        request=SampledBody(head + to_raw(x), len(head), MAY_PACK),
        answer=SampledBody(gzip.compress(reply + to_raw(x + 1)), len(reply), GZIP),
    )
    raw = sample(request=SampledBody(to_raw(x), 0, 0))
    (row,), (other,) = written(binary), written(raw)
    assert (row["input/x"], row["output/y"], row["output_shape/y"]) == ([1.5, 2.0], [2.5, 3.0], [1, 2])
    assert (other["input/x"], other["input_shape/x"]) == ([1.5, 2.0], [1, 2])


def test_every_datatype_can_be_written() -> None:
    values = {"BOOL": [True, False], "UINT8": [1, 2], "INT64": [-1, 2**60], "FP64": [0.1, 2.0], "BYTES": ["a", "é"]}
    specs = [{"name": kind, "datatype": kind, "shape": [-1]} for kind in values]
    tensors = [{"name": k, "shape": [2], "datatype": k, "data": v} for k, v in values.items()]
    half = np.array([1.5, 2.0], dtype="<f2")
    out = {"name": "h", "shape": [2], "datatype": "FP16", "parameters": {"binary_data_size": 4}}
    head = json.dumps({"outputs": [*tensors, out]}).encode()
    outputs = [*specs, {"name": "h", "datatype": "FP16", "shape": [-1]}, {**Y, "name": "not asked for"}]
    one = sample(
        inputs=specs,
        outputs=outputs,
        request=in_json({"inputs": tensors, "parameters": {"binary_data_output": True}}),
        answer=SampledBody(head + to_raw(half), len(head), 0),
    )
    (row,) = written(one)
    expected = {**values, "BYTES": [b"a", "é".encode()]}
    for role in ("input", "output"):
        assert {kind: row[f"{role}/{kind}"] for kind in values} == expected
    assert row["output/h"] == [1.5, 2.0] and row["output/not asked for"] is None


@given(st.lists(st.binary(max_size=50), max_size=4), st.data())
def test_samples_arrive_whole_whatever_the_pieces(bodies: list[bytes], data: st.DataObject) -> None:
    sent = [sample(request=SampledBody(body, 0, GZIP), answer=SampledBody(body[::-1], -1, 0)) for body in bodies]
    stream = b"".join(part for one in sent for part in pack_sample(one))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    cutter, got = SampleCutter(), list[Sample]()
    for since, until in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += cutter.feed(stream[since:until])
    assert got == sent


# -- where and for how long -------------------------------------------------------------------------------------
def test_a_file_says_for_how_long_it_is_kept() -> None:
    key = sample_key("m.1", "3", first=NOW, days=30, token="0" * 8)
    assert key == "samples/m.1/2026-11-28/210640-v3-30d-00000000.parquet"
    assert not sample_expired(key, NOW + 30 * DAY - 1) and sample_expired(key, NOW + 30 * DAY)
    assert sample_expired(key, NOW + 7 * DAY, days=7) and not sample_expired(key, NOW + 7 * DAY, days=365)
    for other in ("samples/notes.txt", "blobs/00", key + "x", "a/" + key):
        assert not sample_expired(other, NOW + 1e9)


class Shelf:
    """An S3 that can be away."""

    def __init__(self) -> None:
        self.files = dict[str, bytes]()
        self.away = False

    def __call__(self) -> Any:
        if self.away:
            raise StoreUnavailable("S3 does not answer")
        return self

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        self.files[key] = data

    def list_objects(self, prefix: str) -> list[str]:
        return sorted(self.files)

    def delete(self, key: str) -> None:
        del self.files[key]


def test_a_file_for_each_version_and_what_cannot_be_read_is_counted() -> None:
    shelf = Shelf()
    writer = SampleWriter(shelf, 30)
    for one in (sample(1), sample(2), sample(3, version="4"), sample(request=SampledBody(b"{", -1, 0))):
        writer.add(one)
    writer.make_files()
    writer.upload()
    assert sorted((key.split("/")[3].split("-")[1], len(read(data))) for key, data in shelf.files.items()) == [
        ("v3", 2),
        ("v4", 1),
    ]
    assert (writer.written, writer.lost, writer.fault) == (3, 1, "")
    writer.make_files()
    writer.upload()
    assert len(shelf.files) == 2


def test_with_s3_away_files_wait_within_a_bound_and_the_oldest_are_lost() -> None:
    shelf = Shelf()
    shelf.away = True
    size = len(write_samples(sample(), [read_sample(sample())]))
    writer = SampleWriter(shelf, 30, most_waiting=2 * size + size // 2)
    for number in range(5):
        writer.add(sample(number))
        writer.make_files()
        writer.upload()
    assert (writer.written, writer.lost, writer.fault) == (0, 3, "S3 does not answer")
    shelf.away = False
    writer.upload()
    assert (writer.written, writer.lost, writer.fault) == (2, 3, "")
    assert sorted(read(data)[0]["input/x"][0] for data in shelf.files.values()) == [3.0, 4.0]


def test_old_files_go_also_those_of_a_longer_time() -> None:
    shelf, now = Shelf(), [NOW]
    writer = SampleWriter(shelf, 7, clock=lambda: now[0])
    old, long, young = (
        sample_key("m", "1", first=NOW - days * DAY, days=kept, token="0" * 8)
        for days, kept in ((8, 7), (8, 365), (6, 7))
    )
    shelf.files = {old: b"", long: b"", young: b"", "samples/mine": b""}
    writer.sweep()
    assert set(shelf.files) == {young, "samples/mine"}
    shelf.away, now[0] = True, NOW + DAY
    writer.sweep()
    assert writer.fault


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WINNOW_SAMPLE": "often"}, "WINNOW_SAMPLE is 'often'"),
        ({"WINNOW_SAMPLE": "nan"}, "WINNOW_SAMPLE is 'nan'"),
        ({"WINNOW_SAMPLE": "1.1"}, "WINNOW_SAMPLE is 1.1"),
        ({"WINNOW_SAMPLE": "-0.1"}, "WINNOW_SAMPLE is -0.1"),
        ({"WINNOW_SAMPLE": "0.1", "WINNOW_SAMPLE_DAYS": "0"}, "WINNOW_SAMPLE_DAYS is 0"),
        ({"WINNOW_SAMPLE": "0.1", "WINNOW_SAMPLE_DAYS": "1.5"}, "WINNOW_SAMPLE_DAYS is 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_order(variables)


def test_nothing_is_kept_unless_it_is_asked_for() -> None:
    assert sample_order({}) is sample_order({"WINNOW_SAMPLE": "0"}) is sample_order({"WINNOW_SAMPLE": ""}) is None
    assert sample_order({"WINNOW_SAMPLE": "0.01"}) == SampleOrder(0.01, 30)


# -- a running endpoint -----------------------------------------------------------------------------------------
def counted(running: Endpoint) -> dict[str, float]:
    text = running.admin("GET", "/metrics").text
    found = [s for f in text_string_to_metric_families(text) for s in f.samples if s.name == "winnow_samples_total"]
    return {s.labels["result"]: s.value for s in found}


def rows_of(store: Store, model: str) -> list[dict[str, Any]]:
    keys = store.list_objects(f"samples/{model}/")
    return [row for key in keys for row in read(store.get(key) or b"")]


def test_requests_and_answers_are_in_s3_afterwards(store: Store, tmp_path: Path) -> None:
    one, many = (publish(store, tmp_path / f.__name__, f(tmp_path / f.__name__)) for f in (digits, identities))
    home = tmp_path / "home"
    quiet, loud = (KeyFile(home / "keys.json").add(name, unsampled=name == "quiet")[1] for name in ("quiet", "loud"))
    old = sample_key("digits", "1", first=time.time() - 8 * DAY, days=365, token="0" * 8)
    store.put(old, b"")
    with endpoint(home, WINNOW_SAMPLE="1", WINNOW_SAMPLE_DAYS="7") as running:
        running.deploy("digits", "1", one.digest)
        running.deploy("many", "1", many.digest)
        image = {"name": "image", "shape": [2, 1, 8, 8], "datatype": "FP32", "data": list(range(128))}

        def ask(key: str, body: Any, status: int = 200) -> Any:
            headers = {"authorization": f"Bearer {key}"}
            found = running.client.post(f"{running.url}/v2/models/digits/infer", json=body, headers=headers)
            assert found.status_code == status
            return found.json()

        answered = [ask(loud, {"id": f"r{number}", "inputs": [image]}) for number in range(3)]
        ask(quiet, {"id": "secret", "inputs": [image]})
        ask(loud, {"id": "wrong", "inputs": []}, 400)
        wait_for(lambda: old not in store.list_objects("samples/"))
        state = running.admin("GET", "/admin/status").json()["samples"]
        assert (state["share"], state["days"], state["fault"]) == (1.0, 7, "")
        assert Path(f"/proc/{state['pid']}").exists()
        assert running.terminate() == 0
    rows = rows_of(store, "digits")
    assert sorted(row["id"] for row in rows) == ["r0", "r1", "r2"]
    for row in rows:
        logits, label, _ = (output["data"] for output in answered[int(row["id"][1])]["outputs"])
        assert row["input/image"] == list(range(128)) and row["input_shape/image"] == [2, 1, 8, 8]
        assert row["output/logits"] == pytest.approx(logits)
        assert row["output/label"] == [text.encode() for text in label]
        assert abs(row["time"].timestamp() - time.time()) < 120
    assert any("samples: 3 written, 0 lost" in line for line in running.log)
    assert not Path(f"/proc/{state['pid']}").exists()
    later = find_garbage(store, days=365, now=time.time() + 8 * DAY)
    assert {item.key for item in later if item.kind == "samples"} == set(store.list_objects("samples/"))


def test_a_killed_writer_costs_samples_a_killed_front_none(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "v", answer(tmp_path / "v", 1))
    with endpoint(tmp_path / "home", WINNOW_SAMPLE="1") as running:
        running.deploy("m", "1", variant.digest)

        def state() -> Any:
            return running.admin("GET", "/admin/status").json()["samples"]

        wait_for(lambda: state()["pid"])
        assert running.infer("m", ASK).status_code == 200
        pid = state()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: state()["pid"] != pid)
        assert running.infer("m", ASK).status_code == 200
        wait_for(lambda: state()["pid"])
        lost = counted(running)["lost"]
        assert lost >= 1
        assert running.infer("m", ASK).status_code == 200
        pid = state()["pid"]
        running.process.kill()
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert len(rows_of(store, "m")) == 3 - lost


def test_what_the_writer_does_not_take_is_lost_and_nobody_waits(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "v", answer(tmp_path / "v", 1))
    rows = 200_000
    tensor = {"name": "x", "shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8 * rows}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    with endpoint(tmp_path / "home", WINNOW_SAMPLE="1") as running:
        running.deploy("m", "1", variant.digest)
        wait_for(lambda: running.admin("GET", "/admin/status").json()["samples"]["pid"])
        pid = running.admin("GET", "/admin/status").json()["samples"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(16):  # of 3.2 MB each
                found = running.client.post(
                    f"{running.url}/v2/models/m/infer", content=head + bytes(8 * rows), headers=headers
                )
                assert found.status_code == 200
            assert counted(running)["lost"] >= 10
        finally:
            os.kill(pid, signal.SIGCONT)
        assert running.terminate() == 0


def test_parquet_is_asked_for_and_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\nfound = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'pyarrow' else found(name, *more)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "serving"],
        env={**os.environ, "PYTHONPATH": path, "WINNOW_HOME": str(tmp_path), "WINNOW_SAMPLE": "0.1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'winnow-mlops[samples]'" in done.stderr and "Traceback" not in done.stderr
