"""Specs: what is accepted, what is refused, and that a refusal names key, value, rule and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.spec import SPECS, PipelineSpec, load_spec
from tasks.running.errors import SpecError

SMALL = "schema: 1\nmodel: m\nworkload: mine_workload:Mine\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(SMALL)
    return file


@pytest.mark.parametrize("name", sorted(p.stem for p in SPECS.glob("*.yaml")))
def test_shipped_specs_are_valid_and_say_how_to_run_them(name: str) -> None:
    spec = load_spec(name)
    first = (SPECS / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("#")
    assert "winnow run" in (SPECS / f"{name}.yaml").read_text()
    assert PipelineSpec.model_validate(spec.model_dump(mode="json", by_alias=True)) == spec


def test_absent_stages_are_skipped_and_empty_ones_take_defaults(path: Path) -> None:
    spec = load_spec(path)
    assert (spec.distill, spec.prune, spec.quantize) == (None, None, None)
    path.write_text(SMALL + "distill: {}\nprune: {}\nquantize: {}\n")
    spec = load_spec(path)
    assert spec.distill is not None
    assert spec.prune is not None
    assert spec.quantize is not None


def test_a_section_of_an_older_version_is_ignored(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(SMALL + "tune: {options: [arena]}\n")
    assert load_spec(path).model == "m"
    assert "'tune' of the spec does nothing any more" in caplog.text


def test_the_specs_own_folder_is_where_its_workload_is_looked_for(path: Path) -> None:
    assert load_spec(path).workload.folder == str(path.parent)


def test_overrides(path: Path) -> None:
    spec = load_spec(path, ["seed=7", "prune.ratio=0.2", "workload.arguments.rows=5", "deploy=false"])
    assert spec.seed == 7
    assert spec.prune is not None
    assert spec.prune.ratio == 0.2
    assert spec.workload.path == "mine_workload:Mine"
    assert spec.workload.arguments == {"rows": 5}
    assert spec.deploy is False


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", ".a=1"])
def test_a_malformed_override_shows_the_form(path: Path, override: str) -> None:
    with pytest.raises(SpecError, match=r"must look like prune\.ratio=0\.2"):
        load_spec(path, [override])


def test_all_errors_at_once_with_the_users_spelling(path: Path) -> None:
    path.write_text(SMALL + "sede: 1\nseed: minus one\nprune: {ratio: 3}\nlimits: {training: {seconds: 1}}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    text = str(caught.value)
    assert "sede: unknown key; did you mean 'seed'?" in text
    assert "seed: 'minus one' is refused" in text
    assert "prune.ratio: 3 is refused" in text
    assert "training" in text


def test_teacher_and_train_exclude_each_other(path: Path) -> None:
    path.write_text(SMALL + "teacher: {weights: w.safetensors}\ntrain: {}\n")
    with pytest.raises(SpecError, match="exclude each other"):
        load_spec(path)


def test_an_onnx_teacher_is_not_distilled_or_pruned(path: Path) -> None:
    path.write_text(SMALL + "teacher: {weights: model.onnx}\nprune: {}\ndistill: {}\n")
    with pytest.raises(SpecError, match="remove distill and prune"):
        load_spec(path)


def test_what_is_not_a_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no spec 'nowhere'.*digits"):
        load_spec("nowhere")
    for content, says in (("a: [", "is not YAML"), ("- 1\n- 2\n", "holds list"), ("", "holds NoneType")):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(SpecError, match=says):
            load_spec(tmp_path / "bad.yaml")


def test_an_unknown_key_is_named_whatever_it_looks_like() -> None:
    from flows.spec import parse_spec

    for key in ("literal[", "MySpec", "constrained-"):
        with pytest.raises(SpecError, match=re.escape(f"{key}: unknown key")):
            parse_spec({"schema": 1, "model": "m", "workload": "a:B", key: None}, "here")


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=5))
def test_any_document_is_a_spec_or_a_spec_error(document: dict[str, object]) -> None:
    from flows.spec import parse_spec

    try:
        parse_spec(dict(document), "here")
    except SpecError as error:
        assert str(error).startswith(("here is not a valid spec:\n", "here holds what a spec cannot:\n"))


def _many_anchors(count: int) -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, count)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("seed: 1\nseed: 2\n", r"the key 'seed' is given in line 4 and again"),
        ("train: {epochs: 3, epochs: 300}\n", r"the key 'epochs' is given"),
        ("train: {learning_rate: .nan}\n", r"train.learning_rate: nan is refused: numbers must be finite"),
        ("gates: {margin: .inf}\n", r"gates.margin: inf is refused"),
        ("train: {scale: {width: .nan}}\n", r"train.scale.width: nan is refused"),
        ("seed: 99999999999999999999999999\n", r"seed: 9+ is refused: whole numbers end at"),
        ("train: {learning_rate: 1.0e+300}\n", r"train.learning_rate: 1e\+300 is refused: numbers end at 1e\+18"),
        ("train: &x {scale: *x}\n", r"train.scale: contains itself"),
        ("train: {scale: {a: " + "[" * 60 + "]" * 60 + "}}\n", r"lies more than 50 levels deep"),
        ("train: {scale: {a: " + "[" * 5000 + "]" * 5000 + "}}\n", r"is not YAML that can be read"),
        (_many_anchors(8), r"more than 100000 values"),
        ("train: {scale: {when: 2024-01-01}}\n", r"train.scale.when: .*is a date, .*write it in quotes"),
        ("train: {scale: {1: 2}}\n", r"train.scale: the key 1 is no text"),
        ("train: {epochs: 2024-13-45}\n", r"is not YAML that can be read"),
        ("? [a, b]\n: 3\n", r"a list or a mapping is used as a key"),
        ("train: {learning_rate: 1e999}\n", r"train.learning_rate: inf is refused: numbers must be finite"),
        ("gates: {margin: nan}\n", r"gates.margin: 'nan' is refused|gates.margin: nan is refused"),
        ("train: {learning_rate: 1e300}\n", r"train.learning_rate: 1e\+300 is refused: numbers end at 1e\+18"),
        ("budget: {threads: 1000000}\n", r"budget.threads: 1000000 is refused: .*less than or equal to 1024"),
        ("measure: {batch: 1000000000}\n", r"measure.batch: 1000000000 is refused"),
        ("train: {epochs: 1:30}\n", r"1:30 would be read as 90"),
        ("train: {epochs: 010}\n", r"010 would be read as 8"),
        ("train: {learning_rate: 1:30.5}\n", r"1:30.5 would be read as 90.5"),
        ("train: {epochs: true}\n", r"epochs is a number, got true"),
        ("train: {learning_rate: no}\n", r"learning_rate is a number, got false"),
    ],
)
def test_what_yaml_allows_and_a_spec_cannot_mean(path: Path, more: str, says: str) -> None:
    path.write_text(SMALL + more)
    with pytest.raises(SpecError, match=says):
        load_spec(path)


def test_sections_that_share_an_anchor_are_changed_one_by_one(path: Path) -> None:
    path.write_text(SMALL + "train: &t {epochs: 3, scale: {width: 0.5}}\ndistill: *t\n")
    spec = load_spec(path, ["train.epochs=9", "train.scale.width=0.1"])
    assert spec.train is not None and spec.distill is not None
    assert (spec.train.epochs, spec.train.scale) == (9, {"width": 0.1})
    assert (spec.distill.epochs, spec.distill.scale) == (3, {"width": 0.5})


def test_a_merge_key_may_be_overridden(path: Path) -> None:
    path.write_text(SMALL + "train: &t {epochs: 3, batch_size: 32}\ndistill: {<<: *t, epochs: 4}\n")
    spec = load_spec(path)
    assert spec.distill is not None and (spec.distill.epochs, spec.distill.batch_size) == (4, 32)


def test_a_spec_may_begin_with_a_byte_order_mark(path: Path) -> None:
    path.write_text("\ufeff" + SMALL, encoding="utf-8")
    assert load_spec(path).schema_version == 1


def test_a_value_that_is_set_is_read_like_a_spec(path: Path) -> None:
    path.write_text(SMALL)
    for value in (".nan", "[1, .inf]", "{a: 1, a: 2}"):
        with pytest.raises(SpecError, match=r"--set 'train\.scale\.width="):
            load_spec(path, [f"train.scale.width={value}"])
