"""Images in tar files and Parquet: the same splits however they are filed, and what is wrong is named."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model_registry.store import Store
from tasks.readers import source_parts, tar_samples
from tasks.readers.content import row_hashes
from tasks.readers.splitting import FRACTIONS, Divided
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET
from tasks.workloads import gathered_images
from tasks.workloads.images import Images

CLASSES = ("cat", "dog", "eel")
Picture = tuple[bytes, str]
"""An image's file and its class."""


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pictures(count: int = 200, *, colour: bool = True, seed: int = 0) -> list[Picture]:
    """Noise of 6 x 5 pixels, all different."""
    random = np.random.default_rng(seed)
    shape = (6, 5, 3) if colour else (6, 5)
    return [
        (encoded(random.integers(0, 256, shape, dtype=np.uint8)), CLASSES[number % len(CLASSES)])
        for number in range(count)
    ]


def tar_bytes(members: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def samples(found: Sequence[Picture], label: str = "cls", name: str = "./set.1/{:04}") -> list[tuple[str, bytes]]:
    members = []
    for number, (image, kind) in enumerate(found):
        content = kind.encode() if label == "cls" else json.dumps({label: kind}).encode()
        ending = "cls" if label == "cls" else "json"
        members += [(f"{name.format(number)}.png", image), (f"{name.format(number)}.{ending}", content)]
    return members


def parquet_bytes(found: Sequence[Picture], names: Sequence[str] = ("image", "label"), *, structs: bool) -> bytes:
    images = pa.array([{"bytes": image, "path": None} if structs else image for image, _ in found])
    table, buffer = pa.table([images, pa.array([kind for _, kind in found])], names=list(names)), io.BytesIO()
    pq.write_table(table, buffer, row_group_size=40)
    return buffer.getvalue()


def filed(folder: Path, found: Sequence[Picture], files: int, kind: str = "tar", **arguments: Any) -> Images:
    """The images in so many files of about one size."""
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(found)), files)):
        part = [found[row] for row in rows]
        content = tar_bytes(samples(part)) if kind == "tar" else parquet_bytes(part, structs=number % 2 == 0)
        (folder / f"part-{number:02}.{kind}").write_bytes(content)
    return Images(f"{folder}/*.{kind}", **arguments)


def held(workload: Images) -> dict[str, bytes]:
    return {f"{s}.{n}": v.tobytes() for s, columns in workload.splits().items() for n, v in columns.items()}


def one_tar(folder: Path, members: Sequence[tuple[str, bytes]], **arguments: Any) -> Images:
    (folder / "one.tar").write_bytes(tar_bytes(members))
    return Images(f"{folder}/one.tar", **arguments)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and partitions of some rows, so that there are many of each."""
    monkeypatch.setattr(source_parts, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(gathered_images, "_BLOCK_BYTES", 1 << 11)
    monkeypatch.setattr(gathered_images, "_PART_BYTES", 1 << 12)


@pytest.mark.usefixtures("small_steps")
def test_one_file_or_five_of_either_kind_give_the_same(tmp_path: Path) -> None:
    found = pictures()
    mixed = [found[row] for row in np.random.default_rng(3).permutation(len(found))]
    one = filed(tmp_path / "one", found, 1)
    same = held(one)
    assert held(filed(tmp_path / "five", mixed, 5)) == same
    assert held(filed(tmp_path / "parquet", mixed, 5, "parquet")) == same
    assert one.known() == {"shape": [3, 6, 5], "classes": list(CLASSES)}
    parts = list(one.partitions(tmp_path / "rows") or ())
    assert len(parts) > 3
    for part in parts:
        for split, columns in part.items():
            for row, pixels, number in zip(part.source_rows[split], columns["image"], columns[TARGET], strict=True):
                image, kind = found[row]
                np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(image))).transpose(2, 0, 1))
                assert CLASSES[number] == kind


def test_an_image_stays_in_its_split_whatever_others_there_are(tmp_path: Path) -> None:
    found = pictures(400)
    whole, some = filed(tmp_path / "all", found, 3).splits(), filed(tmp_path / "some", found[:150], 1).splits()
    homes = {split: set(row_hashes(columns).tolist()) for split, columns in whole.items()}
    assert sum(map(len, homes.values())) == len(set.union(*homes.values())) == 400
    for split, share in FRACTIONS.items():
        assert set(row_hashes(some[split]).tolist()) <= homes[split]
        assert len(homes[split]) == pytest.approx(400 * share, rel=0.35)
    other = filed(tmp_path / "other", found, 1, seed=1).splits()
    assert set(row_hashes(other["train"]).tolist()) != homes["train"]


def test_files_per_split_and_the_missing_ones_out_of_train(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        filed(tmp_path / split, pictures(120, seed=seed), 2)
    workload = Images({split: f"{tmp_path}/{split}/*.tar" for split in ("test", "train")})
    splits = workload.splits()
    assert isinstance(splits, Divided)
    assert len(splits["test"][TARGET]) == 120
    assert sorted(splits.source_rows["test"]) == list(range(120, 240)), "train is read first"
    assert sum(len(splits[name][TARGET]) for name in SPLITS if name != "test") == 120
    told = Images(f"{tmp_path}/gone/*.tar")  # whoever trains reads no files
    told.recall(json.loads(json.dumps(workload.known())))
    assert told.labels() == list(CLASSES)
    assert sum(p.numel() for p in told.model("student").parameters()) > 0


def test_grey_stays_grey_until_there_is_colour_and_sizes_are_made_equal(tmp_path: Path) -> None:
    grey, colour = pictures(60, colour=False), pictures(60, seed=1)
    assert filed(tmp_path / "grey", grey, 2).splits()["train"]["image"].shape[1:] == (1, 6, 5)
    mixed = filed(tmp_path / "mixed", [*grey, *colour], 2)
    assert mixed.splits()["train"]["image"].shape[1:] == (3, 6, 5)
    first = next(iter(mixed.partitions(tmp_path / "rows") or ()))
    assert any("60 of 120 images are grey" in finding for finding in first.reading.findings)
    assert filed(tmp_path / "asked", colour, 1, channels=1, size=(3, 4)).known()["shape"] == [1, 3, 4]  # type: ignore[index]
    large = (encoded(np.zeros((9, 9), np.uint8)), "cat")
    with pytest.raises(DataReadError, match=r"'set.1/0029' is 9 x 9 and .*'set.1/0000' 6 x 5 pixels"):
        filed(tmp_path / "sizes", [*grey, large], 2).splits()


@pytest.mark.parametrize(
    ("labels", "expected"), [(["10", "9", "2"], ["2", "9", "10"]), (["b", "10", "a"], ["10", "a", "b"])]
)
def test_classes_are_numbers_or_names(labels: list[str], expected: list[str], tmp_path: Path) -> None:
    found = [(image, labels[row % 3]) for row, (image, _) in enumerate(pictures(90))]
    cls = one_tar(tmp_path, samples(found))
    assert cls.labels() == expected
    (tmp_path / "json.tar").write_bytes(tar_bytes(samples(found, "kind")))
    assert held(Images(f"{tmp_path}/json.tar", target="kind")) == held(cls)
    (tmp_path / "named.parquet").write_bytes(parquet_bytes(found, ("picture", "kind"), structs=False))
    assert held(Images(f"{tmp_path}/named.parquet", image="picture", target="kind")) == held(cls)


def test_the_names_of_classes_that_hugging_face_writes_are_used(tmp_path: Path) -> None:
    found = pictures(60)
    numbers = pa.array([CLASSES.index(kind) for _, kind in found])
    table = pa.table({"image": pa.array([{"bytes": image, "path": "x.png"} for image, _ in found]), "label": numbers})
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "hf.parquet")
    assert held(Images(f"{tmp_path}/hf.parquet")) == held(filed(tmp_path / "tar", found, 2))


def test_what_is_no_sample_is_counted(tmp_path: Path) -> None:
    members = samples(pictures(60))
    (tmp_path / "link").symlink_to("/etc/hostname")
    members[10:10] = [
        ("README.md", b"what this is"),
        ("LICENSE", b"which"),
        ("./set.1/._0004.png", b"of a Mac"),
        ("only.cls", b"cat"),
        ("none.png", pictures(1, seed=9)[0][0]),
        ("0003.mask.png", b"of something else"),
    ]
    content = io.BytesIO(tar_bytes(members))
    with tarfile.open(fileobj=content, mode="a") as archive:
        archive.add(tmp_path / "link", "0007.png")
    (tmp_path / "odd.tar").write_bytes(content.getvalue())
    workload = Images(f"{tmp_path}/odd.tar", unlabelled="drop")
    assert sum(len(columns[TARGET]) for columns in workload.splits().values()) == 60
    first = next(iter(workload.partitions(tmp_path / "rows") or ()))
    assert first.reading.findings == (
        f"{tmp_path}/odd.tar: left out were: '.mask.png' 1, '.md' 1, 'hidden or without an ending' 2, "
        "'links and devices' 1, 'samples without a label' 1, 'samples without an image' 1",
    )
    with pytest.raises(DataReadError, match=r"odd.tar: the sample 'none' has no label; .*`unlabelled: drop`"):
        Images(f"{tmp_path}/odd.tar").splits()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([("/etc/1.png", b"")], r"one.tar: the name '/etc/1.png' leads out of the archive"),
        ([("a/../../1.png", b"")], r"the name 'a/../../1.png' leads out"),
        ([("x.png", b"nonsense"), ("x.cls", b"cat")], r"one.tar: the sample 'x' cannot be read as an image"),
        ([("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n"), ("x.cls", b"cat")], "'x' cannot be read as an image"),
        ([("x.png", b""), ("x.jpg", b"")], "'x' has two images"),
        ([("x.cls", b""), ("x.CLS", b"")], "'x' has two files .cls"),
        ([("x.png", b""), ("y.cls", b"cat")], "'x' has no label"),
        ([("x.png", b""), ("x.cls", b"\xff")], "its .cls is not UTF-8"),
        ([("x.png", b""), ("x.json", b"{")], "its .json cannot be read"),
        ([("x.png", b""), ("x.json", b'{"label": [1]}')], r"'x' has the label '\[1\]'; a class is a text or a whole"),
        ([("x.png", b""), ("x.json", b'"cat"')], "'x' has no label"),
        ([("x.png", b"0" * 5000), ("x.cls", b"cat")], "'x.png' has 5000 bytes, a file of a sample may have 4096"),
    ],
)
def test_members_that_are_no_good_are_named(
    more: list[tuple[str, bytes]], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_samples, "MOST_BYTES", 4096)
    with pytest.raises(DataReadError, match=says):
        one_tar(tmp_path, [*samples(pictures(40)), *more]).splits()


def damaged(whole: bytes, how: str) -> bytes:
    if how == "cut in a member":
        return whole[: len(whole) // 2 + 100]
    if how == "cut between members":
        return whole[: 2 * 1024]  # a header and an image, a header and a label
    if how == "a broken header":
        return whole[:1024] + b"\xff" * 512 + whole[1536:]
    if how == "two in one":
        return whole + whole
    return {"nothing": b"", "no tar": b"x" * 2000, "no member": tar_bytes([])}[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut in a member", "two.tar (cannot be read as a tar file|does not end where)"),
        ("cut between members", "two.tar does not end where its members do"),
        ("a broken header", "two.tar does not end where its members do"),
        ("two in one", "two.tar does not end where its members do"),
        ("nothing", "two.tar cannot be read as a tar file"),
        ("no tar", "two.tar cannot be read as a tar file"),
        ("no member", "two.tar holds no sample"),
    ],
)
def test_a_damaged_tar_file_is_named(how: str, says: str, tmp_path: Path) -> None:
    whole = tar_bytes(samples(pictures(40)))
    (tmp_path / "one.tar").write_bytes(whole)
    (tmp_path / "two.tar").write_bytes(damaged(whole, how))
    with pytest.raises(DataReadError, match=says):
        Images(f"{tmp_path}/*.tar").splits()


@given(place=st.integers(0, 10_000), content=st.binary(min_size=1, max_size=600))
def test_whatever_overwrites_a_tar_file_it_is_read_or_refused(
    place: int, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.tar"
    whole = tar_bytes(samples(pictures(4)))
    file.write_bytes(whole[:place] + content + whole[place + len(content) :])
    try:
        for _ in tar_samples.read_tar(file, None, Counter(), where="any.tar"):
            pass
    except DataReadError as error:
        assert error.message.startswith("any.tar")


def broken(what: str, folder: Path) -> Images:
    found = pictures(40)
    table = pq.read_table(io.BytesIO(parquet_bytes(found, structs=False)))
    if what == "no column":
        table = table.rename_columns(["picture", "label"])
    elif what == "a path":
        table = table.set_column(0, "image", pa.array([{"bytes": None, "path": "a/1.png"}] * 40))
    elif what == "numbers":
        table = table.set_column(0, "image", pa.array(range(40)))
    elif what == "fractions":
        table = table.set_column(1, "label", pa.array([0.5] * 40))
    elif what == "no image":
        table = table.set_column(0, "image", pa.array([None] * 40, pa.binary()))
    elif what == "one class":
        table = table.set_column(1, "label", pa.array(["cat"] * 40))
    elif what == "few":
        table = table[:2]
    pq.write_table(table, folder / "x.parquet")
    if what == "cut":
        (folder / "x.parquet").write_bytes((folder / "x.parquet").read_bytes()[:900])
    if what == "another kind":
        (folder / "x.zip").write_bytes(b"")
    return Images(f"{folder}/x.*")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no column", r"x.parquet has no column 'image'; it has 'picture', 'label'"),
        ("a path", r"x.parquet: row 0 names the image 'a/1.png' in 'image' and does not hold it"),
        ("numbers", r"x.parquet: row 0 has int in 'image'; a column of images holds the bytes"),
        ("fractions", r"x.parquet: row 0 has the label '0.5'; a class is a text or a whole number"),
        ("no image", r"no sample has an image and a label; .*left out were: 'samples without an image' 40"),
        ("one class", r"all images of train are of one class, 'cat'"),
        ("few", r"2 images are too few to divide: .* would be empty"),
        ("cut", r"x.parquet cannot be read as Parquet"),
        ("another kind", r"x.zip: images in many files are read from .tar .* and .parquet"),
    ],
)
def test_parquet_that_is_no_good_is_named(what: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataReadError, match=says):
        broken(what, tmp_path).splits()


def test_arguments_that_do_not_go_together_are_refused() -> None:
    for source, arguments, says in (
        ({"train": "a/*.tar", "test": "a/test"}, {}, "for every split, or for none"),
        ({"test": "a/*.tar"}, {}, "and no train"),
        ({"dev": "a/*.tar"}, {}, r"names the splits \['dev'\]"),
        ("folder", {"target": "kind"}, "'folder' names none"),
        ("a/*.tar", {"unlabelled": "keep"}, "must be one of refuse, drop"),
    ):
        with pytest.raises(DataReadError, match=says):
            Images(source, **arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_shards_in_s3_are_read_one_after_another(store: Store, tmp_path: Path) -> None:
    found = pictures(90)
    for number in range(3):
        store.put(f"user/part-{number}.tar", tar_bytes(samples(found[number::3])))
    store.put("user/notes.txt", b"no shard")
    pattern = f"s3://{store.bucket}/user/*.tar"
    assert held(Images(pattern)) == held(filed(tmp_path / "local", found, 2))
    store.put("user/part-3.tar", tar_bytes(samples(found))[:3000])
    with pytest.raises(DataReadError, match=rf"s3://{store.bucket}/user/part-3.tar (cannot|does not)"):
        Images(pattern).splits()
