"""Every reader, from disk and from S3, on good files and on bad ones."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from model_registry.store import Store
from tasks.readers.folder_reader import read_image_folder
from tasks.readers.idx_reader import parse_idx, read_idx, read_idx_folder
from tasks.readers.npz_reader import read_npz
from tasks.readers.sources import local
from tasks.readers.tables import read_table
from tasks.running.errors import DataReadError
from tasks.workloads.images import Images

TABLE = pa.table(
    {
        "age": [31, 44, None],
        "name": ["ann", None, "émile"],
        "height": [1.7, 1.8, 1.65],
        "member": [True, False, True],
        "scores": [[1, 2], [3, 4], [5, 6]],
    }
)
FLAT = TABLE.drop_columns(["scores"])
IDX_CODES = {"u1": 8, "i1": 9, "i2": 0xB, "i4": 0xC, "f4": 0xD, "f8": 0xE}


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, IDX_CODES[array.dtype.str[1:]], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def csv_bytes(table: pa.Table = FLAT) -> bytes:
    buffer = io.BytesIO()
    pc.write_csv(table, buffer)
    return buffer.getvalue()


def parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(TABLE, buffer)
    return buffer.getvalue()


def jsonl_bytes() -> bytes:
    return "\n".join(json.dumps(row) for row in TABLE.to_pylist()).encode()


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        age=np.array([31, 44, np.nan]),
        name=np.array(["ann", "", "émile"]),
        height=np.array([1.7, 1.8, 1.65]),
        member=np.array([True, False, True]),
        scores=np.array([[1, 2], [3, 4], [5, 6]]),
    )
    return buffer.getvalue()


TABLES: dict[str, Callable[[], bytes]] = {
    "t.csv": csv_bytes,
    "t.csv.gz": lambda: gzip.compress(csv_bytes()),
    "t.tsv": lambda: csv_bytes().replace(b",", b"\t"),
    "t.parquet": parquet_bytes,
    "t.jsonl": jsonl_bytes,
    "t.jsonl.gz": lambda: gzip.compress(jsonl_bytes()),
    "t.npz": npz_bytes,
}


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, bytes], str]:
    """Puts bytes somewhere and says where."""
    if request.param == "disk":

        def put(name: str, data: bytes) -> str:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
            return str(tmp_path / name)
    else:
        store: Store = request.getfixturevalue("store")

        def put(name: str, data: bytes) -> str:
            store.put(f"user/{name}", data)
            return f"s3://{store.bucket}/user/{name}"

    return put


@pytest.mark.parametrize("name", TABLES)
def test_every_table_format_gives_the_same_columns(name: str, place: Callable[[str, bytes], str]) -> None:
    columns = read_table(place(name, TABLES[name]()))
    np.testing.assert_array_equal(columns["age"], [31, 44, np.nan])
    assert columns["name"].tolist() == ["ann", "", "émile"]
    np.testing.assert_array_equal(columns["height"], [1.7, 1.8, 1.65])
    assert columns["member"].dtype == np.bool_
    if "scores" in columns:
        np.testing.assert_array_equal(columns["scores"], [[1, 2], [3, 4], [5, 6]])
        assert columns["scores"].dtype == np.int64
    assert ("scores" in columns) != (".csv" in name or ".tsv" in name)


BAD_TABLES = {
    "unknown extension": ("t.xlsx", b"x", "no reader for the extension '.xlsx'"),
    "empty csv": ("t.csv", b"", "cannot be read as CSV: Empty CSV file"),
    "header only": ("t.csv", b"a,b\n", "holds no rows"),
    "ragged csv": ("t.csv", b"a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
    "column twice": ("t.csv", b"a,a\n1,2\n", r"the columns \['a'\] are there more than once"),
    "not text": ("t.csv", b"a,b\n\xff\xfe\x80,2\n", "not UTF-8 text"),
    "corrupt csv.gz": ("t.csv.gz", gzip.compress(b"a,b\n1,2\n")[:-12], "cannot be read as CSV"),
    "no gzip": ("t.csv.gz", b"a,b\n1,2\n", "cannot be read as CSV"),
    "not parquet": ("t.parquet", b"a,b\n1,2\n", "cannot be read as Parquet"),
    "empty parquet": ("t.parquet", b"", "cannot be read as Parquet"),
    "empty jsonl": ("t.jsonl", b"", "is empty"),
    "not json": ("t.jsonl", b'{"a": 1}\n{"a": \n', "cannot be read as JSON lines"),
    "type changes": ("t.jsonl", b'{"a": 1}\n{"a": "x"}\n', "cannot be read as JSON lines"),
    "nested object": ("t.jsonl", b'{"a": {"b": 1}}\n', "column 'a' is of type struct"),
    "ragged lists": ("t.jsonl", b'{"a": [1, 2]}\n{"a": [3]}\n', "a list of 1 in row 1 and a list of 2 in row 0"),
    "list missing": ("t.jsonl", b'{"a": [1, 2]}\n{"a": null}\n', "nothing in row 1"),
    "lists of text": ("t.jsonl", b'{"a": ["x"]}\n', "lists of string, which are not numbers"),
    "ragged inside": ("t.jsonl", b'{"a": [[1], [2]]}\n{"a": [[1], [2, 3]]}\n', "a list of 2 in row 1 and a list of 1"),
    "rounding": ("t.csv", b"a,b\n9007199254740993,1\n,2\n", "column 'a' lacks values, .* float64 would round"),
    "empty npz": ("t.npz", b"", "cannot be read as npz"),
    "not npz": ("t.npz", b"hello world", "no npz at all"),
    "cut npz": ("t.npz", npz_bytes()[:-30], "cannot be read as npz"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_a_named_error_that_names_the_file(case: str, tmp_path: Path) -> None:
    name, data, says = BAD_TABLES[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataReadError, match=says) as told:
        read_table(str(tmp_path / name))
    assert str(tmp_path / name) in str(told.value)


CSV_FORMS = {
    "semicolons": (b"a;b\n1.5;x\n2.5;y\n", [1.5, 2.5]),
    "decimal commas": (b"a;b\n1,5;x\n2;y\n", [1.5, 2]),
    "quoted decimal commas": (b'a,b\n"1,5",x\n"2,25",y\n', [1.5, 2.25]),
    "bars": (b"a|b\n1|x\n2|y\n", [1, 2]),
    "tabs in a .csv": (b"a\tb\n1\tx\n2\ty\n", [1, 2]),
    "commas in names and texts": (b'"a";"b, c"\n1;"x, y"\n2;z\n', [1, 2]),
    "question marks": (b"a,b\n1,x\n?,y\n", [1, np.nan]),
    "dashes among decimal commas": (b"a;b\n1,5;x\n-;y\n", [1.5, np.nan]),
}


@pytest.mark.parametrize("form", CSV_FORMS)
def test_how_a_csv_file_is_written_is_recognised(form: str, tmp_path: Path) -> None:
    data, wanted = CSV_FORMS[form]
    (tmp_path / "t.csv").write_bytes(data)
    np.testing.assert_array_equal(read_table(str(tmp_path / "t.csv"))["a"], wanted)


def test_what_was_recognised_is_reported(tmp_path: Path) -> None:
    lines = [f"{i},5;{'?' if i == 3 else i};{'old' if i == 4 else i};p" for i in range(40)]
    (tmp_path / "t.csv").write_text("a;b;c;d\n" + "\n".join(lines) + "\n")
    reading = read_table(str(tmp_path / "t.csv")).reading
    assert reading.facts == (
        "t.csv: 40 rows. Numbers: 'a'. Whole numbers: 'b'. Text: 'c', 'd'.",
        "t.csv: missing values: 'b' 1.",
        "t.csv: fields separated by ';', decimal mark ','.",
    )
    assert reading.findings == (
        "t.csv: column 'b': '?' was read as missing (1 of 40 values)",
        "t.csv: column 'c' was read as text because of 'old', though 39 of its 40 values are numbers; if they stand "
        "for missing values, name them by `missing`",
    )
    named = read_table(str(tmp_path / "t.csv"), missing=["old"])
    assert np.isnan(named["c"][4]) and named.types["c"] == "int64"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a;b\n1,5;2.5\n2,5;3.5\n", "the decimal mark is a comma in 'a' and a point in 'b'"),
        (b'a,b\n"1,234",x\n"12,345",y\n', "numbers such as 1,234, whose comma may be a decimal mark or separate"),
        (b"a,b;c\n1,2;3\n", "could be separated by ',' or by ';'"),
    ],
)
def test_a_csv_file_that_can_be_read_in_two_ways_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataReadError, match=says):
        read_table(str(tmp_path / "t.csv"))
    assert read_table(str(tmp_path / "t.csv"), delimiter=";", decimal=",")


def test_lists_keep_their_numbers_and_depth(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"big": [9007199254740993, 1], "deep": [[1, 2], [3, 4]], "gap": [0.5, null]}\n')
    columns = read_table(str(tmp_path / "t.jsonl"))
    assert columns["big"].tolist() == [[9007199254740993, 1]]  # not through float64
    assert columns["deep"].tolist() == [[[1, 2], [3, 4]]]
    np.testing.assert_array_equal(columns["gap"], [[0.5, np.nan]])
    kinds = {"f": pa.list_(pa.float32()), "u": pa.list_(pa.uint8(), 2)}
    table = pa.table({name: pa.array([[1, 0]] * 3, kind) for name, kind in kinds.items()} | {"b": [[True, False]] * 3})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read_table(str(tmp_path / "t.parquet"))
    assert {n: (a.dtype.name, a.shape) for n, a in found.items()} == {
        "f": ("float32", (3, 2)),
        "u": ("uint8", (3, 2)),
        "b": ("bool", (3, 2)),
    }


def test_dates_and_times_are_days(tmp_path: Path) -> None:
    noon = dt.datetime(2024, 5, 1, 12)
    east = dt.timezone(dt.timedelta(hours=6))
    table = pa.table(
        {
            "day": [noon.date(), None],
            "old": pa.array([noon.date(), None], pa.date64()),
            "moment": pa.array([noon, None], pa.timestamp("ns")),
            "zoned": pa.array([noon.replace(tzinfo=east), None], pa.timestamp("s", "Asia/Omsk")),
            "hour": pa.array([dt.time(6), None], pa.time32("s")),
            "took": pa.array([dt.timedelta(hours=36), None], pa.duration("us")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found = read_table(str(tmp_path / "t.parquet"))
    wanted = {"day": 19844, "old": 19844, "moment": 19844.5, "zoned": 19844.25, "hour": 0.25, "took": 1.5}
    assert {name: values[0] for name, values in found.items()} == wanted
    assert all(values.dtype == np.float64 and np.isnan(values[1]) for values in found.values())
    assert found.reading.facts[0] == (
        "t.parquet: 2 rows. Dates and times, as days since 1970-01-01: 'day', 'old', 'moment', 'zoned'. "
        "Times, in days: 'hour', 'took'."
    )
    (tmp_path / "t.csv").write_text("day,moment\n2024-05-01,2024-05-01 12:00:00\n,\n")
    assert [values[0] for values in read_table(str(tmp_path / "t.csv")).values()] == [19844, 19844.5]


def test_an_error_about_an_s3_object_names_the_object(store: Store) -> None:
    store.put("user/bad.csv", b"a,b\n1\n")
    with pytest.raises(DataReadError, match=f"^s3://{store.bucket}/user/bad.csv cannot be read as CSV"):
        read_table(f"s3://{store.bucket}/user/bad.csv")


def test_what_is_not_there_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataReadError, match="no file or folder 'gone"):
        read_table("gone.csv")
    with pytest.raises(DataReadError, match="names no object"):
        read_table(f"s3://{store.bucket}/user/gone.csv")
    with pytest.raises(DataReadError, match="there is no such bucket"):
        read_table("s3://no-such-bucket/gone.csv")
    with pytest.raises(DataReadError, match="no reader for a folder"):
        read_table(str(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": np.array([1, "x", None], dtype=object)}, "Python objects"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, "differ in their number of rows"),
        ({"a": np.array(1.0)}, "single values"),
        ({"a": np.zeros((0, 3))}, "no rows"),
        ({}, "no arrays"),
    ],
)
def test_npz_arrays_must_be_rows_of_plain_values(arrays: dict[str, np.ndarray], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataReadError, match=says):
        read_npz(tmp_path / "a.npz")


def test_relative_paths_start_at_the_last_folder_of_the_python_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.csv").write_bytes(b"a\n1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read_table("beside.csv")["a"].tolist() == [1]


# -- IDX ----------------------------------------------------------------------------------------------------------
@given(
    st.sampled_from(sorted(IDX_CODES)).flatmap(
        lambda code: hnp.arrays(
            code, hnp.array_shapes(max_dims=4, max_side=5), elements={"allow_nan": False} if code[0] == "f" else None
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_idx_round_trip(array: np.ndarray) -> None:
    found = parse_idx(idx_bytes(array), "x")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08" + tail))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_array_or_a_named_error(data: bytes) -> None:
    try:
        array = parse_idx(data, "x")
    except DataReadError as error:
        assert str(error).startswith("x")
    else:
        assert array.nbytes == len(data) - 4 - 4 * array.ndim


def test_idx_says_what_is_wrong(tmp_path: Path) -> None:
    good = idx_bytes(np.zeros((2, 3), dtype=np.uint8))
    cases = {
        b"": "starts with nothing",
        b"GIF8": "two zero bytes",
        b"\0\0\x07\x01\0\0\0\x01\0": "type 0x07 is unknown",
        good[:6]: "ends before them",
        good + b"x": r"shape \(2, 3\) = 6 bytes, 7 follow",
        good[:-1]: r"shape \(2, 3\) = 6 bytes, 5 follow",
        gzip.compress(good)[:-6]: "cannot be unpacked",
        b"\x1f\x8bgarbage": "cannot be unpacked",
    }
    for data, says in cases.items():
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(DataReadError, match=says):
            read_idx(tmp_path / "x")


def test_mnist_folder_from_disk_and_s3(place: Callable[[str, bytes], str]) -> None:
    random = np.random.default_rng(0)
    for part, rows in (("train", 40), ("t10k", 12)):
        images = random.integers(0, 256, (rows, 6, 5), dtype=np.uint8)
        place(f"mnist/{part}-images-idx3-ubyte.gz", gzip.compress(idx_bytes(images)))
        where = place(f"mnist/{part}-labels-idx1-ubyte", idx_bytes((np.arange(rows) % 4).astype(np.uint8)))
    workload = Images(where.rpartition("/")[0])
    splits = workload.splits()
    assert splits["test"]["image"].shape == (12, 1, 6, 5) and splits["test"]["image"].dtype == np.uint8
    assert sum(len(splits[name]["target"]) for name in ("train", "calibration", "validation")) == 40
    assert workload.labels() == ["0", "1", "2", "3"]


def test_idx_pairs_must_match(tmp_path: Path) -> None:
    with pytest.raises(DataReadError, match="no pair of IDX files"):
        read_idx_folder(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((3, 2, 2), dtype=np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(2, dtype=np.uint8)))
    with pytest.raises(DataReadError, match="as many in both"):
        read_idx_folder(tmp_path)


# -- image folders ------------------------------------------------------------------------------------------------
def png(colour: int, size: tuple[int, int] = (4, 3), mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour if mode in ("L", "I;16") else (colour, 0, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def test_image_folder_from_disk_and_s3(place: Callable[[str, bytes], str]) -> None:
    for i in range(12):
        where = place(f"pets/{'cat' if i % 2 else 'ant'}/{i}.png", png(20 * i, mode="RGB"))
    place("pets/ant/notes.txt", b"not an image, and not read")
    with local(where.removesuffix("/cat/11.png")) as folder:
        columns, labels = read_image_folder(folder)
    assert labels == ["ant", "cat"]
    assert columns["image"].shape == (12, 3, 3, 4) and columns["image"].dtype == np.uint8
    assert columns["target"].tolist() == [0] * 6 + [1] * 6
    assert columns["image"][:, 0, 0, 0].tolist() == [0, 200, 40, 80, 120, 160, 20, 220, 60, 100, 140, 180]
    assert set(columns["image"][:, 2].flat) == {7}


def fill(folder: Path, images: dict[str, bytes]) -> None:
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_image_folder_scales_and_converts(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": png(9), "b/2.png": png(50, (8, 6), "RGB")})
    with pytest.raises(DataReadError, match="set `size"):
        read_image_folder(tmp_path)
    columns, _ = read_image_folder(tmp_path, size=(2, 5), channels=1)
    assert columns["image"].shape == (2, 1, 2, 5)
    assert columns["image"][0].max() == 9


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({"readme.txt": b""}, "holds no images"),
        ({"a/readme.txt": b""}, "holds no images"),
        ({"a/1.png": b""}, "1.png cannot be read as an image"),
        ({"a/1.png": png(1)[:48]}, "1.png cannot be read as an image"),
        ({"a/1.jpg": b"\xff\xd8 nonsense"}, "1.jpg cannot be read as an image"),
        ({"a/1.png": png(300, mode="I;16")}, "convert it to 8 bits"),
        ({"a/1.png": png(1), "b/1.png": png(1), "c/1.png": png(1)}, r"the classes \['c'\] are not among"),
    ],
)
def test_bad_image_folders(images: dict[str, bytes], says: str, tmp_path: Path) -> None:
    fill(tmp_path, images)
    with pytest.raises(DataReadError, match=says):
        read_image_folder(tmp_path, labels=["a", "b"])
