"""The command line ``winnow``: a table of commands, each imported only when it is used."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import NoReturn

import click

from flows.reaching import quiet_environment

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("flows.commands.command_stack", "Start the embedded stack: S3, MLflow, Prefect, worker, endpoint."),
    "down": ("flows.commands.command_stack", "Stop the embedded stack."),
    "status": ("flows.commands.command_stack", "Show components, disk use, champions and pending roll-outs."),
    "logs": ("flows.commands.command_stack", "Show the logs of the stack."),
    "doctor": ("flows.commands.command_stack", "Check this machine and the stack, and say how to fix what is wrong."),
    "run": ("flows.commands.command_run", "Run the pipeline of a spec."),
    "runs": ("flows.commands.command_compare", "List recent runs."),
    "show": ("flows.commands.command_compare", "Show one run."),
    "compare": ("flows.commands.command_compare", "Compare the variants of a model or a run."),
    "pull": ("flows.commands.command_compare", "Write a released model to a file."),
    "export-serving": (
        "flows.commands.command_export_serving",
        "Write a version for Kubernetes, KServe or Triton.",
    ),
    "promote": ("flows.commands.command_release", "Put a registered version into service."),
    "rollout": ("flows.commands.command_rollout", "Look at a roll-out, or pause, resume, promote or abort it."),
    "rollback": ("flows.commands.command_release", "Put the previous champion back into service."),
    "predict": ("flows.commands.command_predict", "Ask a served model about the rows of a file."),
    "gc": ("flows.commands.command_gc", "Count, or remove, what takes space and nobody needs."),
    "keys": ("flows.commands.command_keys", "Make, list and end keys of the endpoint's clients."),
    "audit": ("flows.commands.command_keys", "Check the log of what was done to the endpoint."),
    "serve": ("flows.commands.command_serve", "Run the endpoint in the foreground."),
    "cluster": ("flows.commands.command_cluster", "Run a command beside a local Ray cluster."),
    "schema": ("flows.commands.command_init", "Print the JSON Schema of the spec."),
    "init": ("flows.commands.command_init", "Scaffold a workload and a spec of your own."),
}


_BASE = ("serve", "keys", "audit")
"""What needs the base dependencies only."""


class LazyGroup(click.Group):
    """Lists its commands from the table; imports a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name not in _BASE and importlib.util.find_spec("prefect") is None:
            raise click.ClickException(
                f"winnow {name} needs more than the endpoint's dependencies: pip install 'winnow-mlops[pipeline]'"
            )
        command = getattr(importlib.import_module(COMMANDS[name][0]), f"{name.replace('-', '_')}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="winnow-mlops", prog_name="winnow")
def cli() -> None:
    """Make a large model cheap to serve, and prove that the small one is as good.

    \b
    Example:
      winnow up
      winnow run digits
      winnow status
    """


def main() -> NoReturn:
    """Entry of the ``winnow`` command. Exit codes: 0 done, 1 failed, 2 bad usage or spec, 130 interrupted."""
    quiet_environment()
    try:
        _assert_ours()
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except Exception as error:  # noqa: BLE001 - the last resort; a named error is printed, any other keeps its traceback
        code = _tell(error)
    gc.freeze()  # looking for garbage in all that Prefect and MLflow loaded would take a second before we are gone
    sys.exit(code if isinstance(code, int) else 0)


def _assert_ours() -> None:
    import tasks
    from tasks.running.errors import WrongInstallation

    ours = Path(__file__).parents[2]
    if Path(str(tasks.__file__)).parent.parent != ours:
        raise WrongInstallation(
            f"Python finds the package tasks in {tasks.__file__}, not Winnow's in {ours}: "
            "unset PYTHONPATH, or start from another folder"
        )


def _tell(error: Exception) -> int:
    from infra.faults import StackError
    from model_registry.endpoint_client import EndpointError
    from model_registry.mlflow_rest import RegistryError
    from model_registry.store import StoreError
    from tasks.running.errors import WinnowError

    named = isinstance(error, WinnowError | StoreError | StackError | RegistryError | EndpointError)
    if named or (isinstance(error, OSError) and error.filename):  # the latter names the file that it is about
        click.secho(f"{type(error).__name__}: ", fg="red", bold=True, err=True, nl=False)
        click.echo(str(error), err=True)
        return int(getattr(error, "exit_code", 1))
    raise error


if __name__ == "__main__":
    main()
