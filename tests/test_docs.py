"""What the documents say is true of the code: commands, options, targets, links, the file map, the examples."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import click
import pytest
import yaml
from pydantic import BaseModel

from flows.commands.cli import COMMANDS, cli
from flows.spec import SPECS, PipelineSpec, load_spec
from flows.spec_budget import is_older_name

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PACKAGES = ("winnow", "flows", "tasks", "model_registry", "serving", "infra")
SHELL = {"sh", "bash", "console", "shell"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    found, start, language, lines = [], 0, "", list[str]()
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.startswith("```"):
            if start:
                found.append(Block(page, start, language, "\n".join(lines) + "\n"))
                start = 0
            else:
                start, language, lines = number, line[3:].strip(), []
        elif start:
            lines.append(line)
    assert not start, f"{relative(page)}:{start}: block is not closed"
    return tuple(found)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Every ``winnow ...`` of the page: lines of shell blocks, and code spans."""
    found = []
    for block in blocks(page):
        if block.language in SHELL:
            for line in block.text.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ").strip().removeprefix(".venv/bin/")
                if line.startswith("winnow "):
                    found.append(line)
    found += [s for s in re.findall(r"`([^`\n]+)`", prose(page)) if s.startswith("winnow ")]
    return found


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, f"there is no command winnow {name}"
    return found


def test_commands_and_options_exist() -> None:
    for page in PAGES:
        for line in commands(page):
            words = shlex.split(line, comments=True)[1:]
            words = words[: words.index("|")] if "|" in words else words
            if words[0].startswith("-"):
                assert words[0] in {"--help", "-h", "--version"}, f"{relative(page)}: {line}"
                continue
            if words[0].isupper():  # a placeholder
                continue
            meant = command(words[0])
            if isinstance(meant, click.Group):
                assert words[1] in meant.commands, f"{relative(page)}: {line}"
                meant = meant.commands[words[1]]
            known = {opt for p in meant.params for opt in (*p.opts, *p.secondary_opts)} | {"--help"}
            own = words[1 : words.index("--")] if "--" in words else words[1:]  # behind it is another command
            used = {word.partition("=")[0] for word in own if word.startswith("-")}
            assert used <= known, f"{relative(page)}: {line}: no option {used - known}"


def test_every_command_and_option_is_documented() -> None:
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "commands.md").read_text()
    assert [name for name in COMMANDS if f"`winnow {name}" not in readme] == []
    for name in COMMANDS:
        section = page.split(f"\n## winnow {name}\n")[1].split("\n## ")[0]
        below = command(name)
        parts = below.commands if isinstance(below, click.Group) else {"": below}
        for parameter in (parameter for part in parts.values() for parameter in part.params):
            assert [opt for opt in parameter.opts if opt.startswith("-") and opt not in section] == [], name


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        lines = [line for block in blocks(page) if block.language in SHELL for line in block.text.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", prose(page))
        used = {
            word
            for line in lines
            if line.startswith("make ")
            for word in shlex.split(line, comments=True)[1:]
            if "=" not in word
        }
        assert used <= targets, f"{relative(page)}: no target {used - targets}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{relative(page)}: {target}"


def test_links_do_not_run_into_words() -> None:
    for page in PAGES:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
        assert not re.findall(r"\[[^\]\n]+\]\w+", prose), page


def test_files_named_in_code_spans_exist() -> None:
    for page in PAGES:
        for span in re.findall(r"`([^`\n]+)`", prose(page)):
            if re.fullmatch(rf"({'|'.join((*PACKAGES, 'docs', 'tests', 'benchmarks'))})/[\w./]*", span):
                assert (ROOT / span).exists(), f"{relative(page)}: {span}"


def test_python_blocks_compile_and_import() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                tree = ast.parse(block.text, filename=f"{relative(page)}:{block.line}")
                names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
                names += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
                for name in names:
                    assert importlib.util.find_spec(name) is not None, f"{relative(page)}:{block.line}: {name}"


_USERS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_INSIDE = re.compile(r"\b(?:flows|tasks|model_registry|serving|infra)\.\w+[.:]?")


def test_examples_import_winnow_and_nothing_inside_it() -> None:
    for page in _USERS:
        for block in blocks(page):
            if block.language in {"python", "yaml"}:
                assert not _INSIDE.search(block.text), f"{relative(page)}:{block.line}"
    for path in SPECS.glob("*.yaml"):
        assert not _INSIDE.search(path.read_text()), relative(path)
        assert yaml.safe_load(path.read_text())["workload"]["path"].startswith("winnow:"), relative(path)


def test_yaml_blocks_parse_and_whole_specs_are_valid(tmp_path: Path) -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "yaml":
                document = yaml.safe_load(block.text)
                if isinstance(document, dict) and "schema" in document:
                    (tmp_path / "spec.yaml").write_text(block.text)
                    assert load_spec(tmp_path / "spec.yaml").schema_version == 1
                elif isinstance(document, dict):  # a part of a spec: its keys exist
                    assert set(document) <= {f.alias or n for n, f in PipelineSpec.model_fields.items()}, block.text


def notebook() -> str:
    """The README's block that compresses a model in hand."""
    (text,) = [b.text for b in blocks(ROOT / "README.md") if "winnow.compress(" in b.text]
    return text


_TRY_WORKLOAD = """
import importlib, sys, torch
from tasks.data.materialise import storable
from tasks.running.stage import WorkloadRef
from tasks.workloads.workload import load_workload
for name in sys.argv[2:]:
    sys.path[:] = [p for p in sys.path if p != sys.argv[1]] + [sys.argv[1]]
    module = importlib.import_module(name)
    for kind in [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name]:
        if not hasattr(kind, "splits"):
            continue
        w = load_workload(WorkloadRef(path=f"{name}:{kind.__name__}", folder=sys.argv[1]))
        rows = {k: v[:8] for k, v in storable(w.splits())["train"].items()}
        inputs, targets = w.batch({k: torch.from_numpy(v) for k, v in rows.items()})
        inputs = w.augment(inputs, torch.Generator().manual_seed(0))
        for role in ("teacher", "student"):
            outputs = w.model(role).eval()(**w.preprocess(inputs)).detach()
            assert len(outputs) == 8 and torch.isfinite(w.loss(outputs, targets))
            scores = w.metric(rows["target"]).per_sample(outputs.numpy(), targets.numpy())
            assert scores.shape == (8,)
        print(name, *(m for m in ("loss", "metric", "augment") if hasattr(kind, m)))
"""


@pytest.mark.slow
def test_the_workloads_of_the_pages_load_and_answer(tmp_path: Path) -> None:
    written = {}
    for page in _USERS:
        for block in blocks(page):
            if block.language == "python" and block.text != notebook():
                name = f"{page.stem.replace('-', '_')}_{block.line}"
                (tmp_path / f"{name}.py").write_text(block.text)
                written[name] = page.stem
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TRY_WORKLOAD, str(tmp_path), *written],
        env=_python_path(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tried = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in tried} == set(written), "every block is a workload"
    optional = {m for name, *methods in tried if written[name] == "workload-methods" for m in methods}
    assert optional == {"loss", "metric", "augment"}


@pytest.mark.parametrize("name", ["spec", "commands", "python", "scaling"])
def test_generated_pages_are_current(name: str) -> None:
    script = ROOT / "docs" / f"{name}_page.py"
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=_python_path(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = (ROOT / "docs" / f"{name}.md").read_text()
    if name == "scaling":
        assert done.stdout in found, "the table of docs/scaling.md is what docs/scaling_page.py prints"
    else:
        assert found == done.stdout, f"run: python docs/{name}_page.py > docs/{name}.md"


def test_every_key_of_the_spec_is_documented() -> None:
    page = (ROOT / "docs" / "spec.md").read_text()
    for model, section in _spec_classes(PipelineSpec, ""):
        lines = page.split(f"## {section or 'Top level'}\n")[1].split("\n## ")[0]
        for name, field in model.model_fields.items():
            found = [row for row in lines.splitlines() if row.startswith(f"| `{field.alias or name}` |")]
            assert len(found) == (0 if is_older_name(field) else 1), f"{section}.{name}"
            for line in found:
                assert len(line.split(" | ")[-1]) > 12, line


def _spec_classes(model: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
    yield model, path
    for name, field in model.model_fields.items():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                below = f"{path}.{name}" if path else name
                yield from _spec_classes(inner, f"{below}.<stage>" if name == "limits" else below)


def _python_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


# -- the readme ----------------------------------------------------------------------------------------------------
def file_map() -> list[str]:
    """Paths of the README's file map: an entry a line, two blanks of indent for each level."""
    text = (ROOT / "README.md").read_text().split("## File map")[1]
    lines = re.findall(r"^```\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)[0].splitlines()
    found, parents = [], list[str]()
    for line in lines:
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert len(line.split()) > 1, f"{entry} is not explained"
        parents = [*parents[:depth], entry]
        found.append("".join(parents))
    return found


def test_the_file_map_is_true_and_complete() -> None:
    entries = file_map()
    assert [entry for entry in entries if not (ROOT / entry).exists()] == []
    assert [entry for entry in entries if (ROOT / entry).is_dir() != entry.endswith("/")] == []
    folders = {
        f"{relative(path)}/"
        for package in PACKAGES
        for path in [ROOT / package, *(ROOT / package).rglob("*")]
        if path.is_dir() and any(path.glob("*.py"))
    }
    assert folders - set(entries) == set()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:  # not so where the sources were unpacked without git
        tops = {line.partition("/")[0] + ("/" if "/" in line else "") for line in tracked.stdout.splitlines()}
        assert {t for t in tops if not t.startswith(".")} - set(entries) == set()


def test_the_readme_runs_first_and_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 250
    (first, *_) = [b for b in blocks(ROOT / "README.md") if b.language in SHELL]
    assert "make demo" in first.text
    assert first.line < 30


def test_the_readmes_request_is_one_that_the_endpoint_takes() -> None:
    from sklearn.datasets import load_digits

    from model_registry.variant import TensorSpec
    from serving.limits import RequestLimits
    from serving.protocol import parse_request

    (text,) = [b.text for b in blocks(ROOT / "README.md") if b.text.startswith("curl")]
    words = shlex.split(text)
    assert words[2] == "http://127.0.0.1:8080/v2/models/fast-digits/infer"
    image = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8))
    request = parse_request(words[-1].encode(), [image], [], RequestLimits())
    assert (request.inputs["image"][0, 0] == load_digits().images[0]).all()


def test_the_readme_names_what_the_tests_install() -> None:
    text, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for package in re.findall(r"need\+=\((\w+)\)", script):
        assert f"`{package}`" in text


# -- all pages -----------------------------------------------------------------------------------------------------
def test_pages_keep_to_themselves() -> None:
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), start=1):
            where = f"{relative(page)}:{number}: {line}"
            assert not re.search(r"(^|[\s`\"'(])/(work|home|root|tmp/w|Users)\b", line), where
            assert "TODO" not in line, where
            if re.search(r"index-url|TORCH_INDEX=", line):
                assert "download.pytorch.org" in line, where


def test_pages_use_the_words_of_a_native_engineer() -> None:
    for page in [*_USERS, *sorted(SPECS.glob("*.yaml"))]:
        found = re.findall(r"\b(?:mends?|anew|hangs? on|leave away|so many|errors are told)\b", page.read_text())
        assert not found, f"{relative(page)} says {found}; write fix, again, depends on, leave out, number of, reported"


def test_the_changelog_has_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "keepachangelog.com" in text
    titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", title) for title in titles[1:])
    kinds = set(re.findall(r"^### (.*)$", text, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_decisions_are_numbered_and_say_why() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(p.name[:4]) for p in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {int(page.name[:4])}. ")
        for part in ("**Context.**", "**Choice.**", "**Consequence.**"):
            assert part in text, f"{relative(page)} lacks {part}"


def test_the_benchmarks_log_is_dated() -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "benchmarks" / "LOG.md").read_text(), flags=re.MULTILINE)
    dates = [title[:10] for title in titles]
    assert dates and all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert dates == sorted(dates, reverse=True)
