"""Write docs/commands.md from each command's help: ``python docs/commands_page.py > docs/commands.md``.

A test keeps it current.
"""

from __future__ import annotations

import click

from flows.commands.cli import COMMANDS, cli

INTRODUCTION = """\
# Commands

What `winnow COMMAND --help` says. Exit codes: 0 done; 1 failed (a gate refused, the endpoint is unhealthy, the stack is
down); 2 wrong usage or spec; 130 interrupted.

This page is made by `python docs/commands_page.py > docs/commands.md`.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    root = click.Context(cli, info_name="winnow", terminal_width=100, max_content_width=100)
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        parts.append(f"## winnow {name}\n\n{_help(command, name, root)}")
        if isinstance(command, click.Group):
            above = click.Context(command, info_name=name, parent=root)
            for part, below in command.commands.items():
                parts.append(f"### winnow {name} {part}\n\n{_help(below, part, above)}")
    return "\n".join(parts)


def _help(command: click.Command, name: str, above: click.Context) -> str:
    context = click.Context(
        command, info_name=name, parent=above, terminal_width=100, help_option_names=["-h", "--help"]
    )
    return f"```\n{context.get_help().strip()}\n```\n"


if __name__ == "__main__":
    print(page(), end="")
