"""The command line: help that shows examples, exit codes, errors that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from flows.commands.cli import COMMANDS, cli

WINNOW = [sys.executable, "-P", "-m", "flows.commands.cli"]


def winnow(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, in a folder of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WINNOW_", "PREFECT_", "MLFLOW_"))}
    return subprocess.run(
        [*WINNOW, *arguments], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_exists_and_shows_an_example(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    text = command.get_help(click.Context(command, info_name=f"winnow {name}"))
    assert f"winnow {name}" in text.split("Example")[1]
    assert COMMANDS[name][1].endswith(".")


@pytest.mark.parametrize("name", ["status", "doctor", "run", "runs", "show", "compare", "promote", "rollback"])
def test_reporting_commands_speak_json(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


def test_help_lists_every_command(tmp_path: Path) -> None:
    done = winnow("--help", cwd=tmp_path)
    assert done.returncode == 0
    told = " ".join(done.stdout.split())  # long summaries wrap
    for name, (_, summary) in COMMANDS.items():
        assert f"{name} {summary}" in told


def test_what_is_imported_stays_compiled(tmp_path: Path) -> None:
    code = (
        "import os, sys, flows.commands.cli as cli; cli.quiet_environment(); import flows.commands.scaffold; "
        "print(sys.dont_write_bytecode, repr(os.environ['PYTHONDONTWRITEBYTECODE']))"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "''"]


def test_an_unknown_command_is_bad_usage(tmp_path: Path) -> None:
    done = winnow("rnu", cwd=tmp_path)
    assert done.returncode == 2
    assert "rnu" in done.stderr


def test_a_run_without_a_stack_says_how_to_get_one(tmp_path: Path) -> None:
    done = winnow("run", "digits", cwd=tmp_path)
    assert done.returncode == 1
    assert "winnow up" in done.stderr
    assert "--up" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_spec_is_told_whole_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("schema: 1\nmodel: bad name\nprune: {ratoi: 0.5, ratio: 7}\nunknown: 1\n")
    done = winnow("run", "wrong.yaml", cwd=tmp_path)
    assert done.returncode == 2
    for part in ("model: 'bad name'", "prune.ratoi: unknown key; did you mean 'ratio'?", "prune.ratio: 7", "workload"):
        assert part in done.stderr, done.stderr
    assert "unknown: unknown key" in done.stderr
    assert not (tmp_path / ".winnow").exists()


def test_somebody_elses_tasks_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("")
    assert winnow("status", cwd=tmp_path).returncode == 1  # the working folder alone does no harm: no stack here
    done = winnow("status", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "WrongInstallation" in done.stderr
    assert str(tmp_path / "tasks") in done.stderr
