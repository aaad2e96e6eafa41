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
        text = click.Context(
            command, info_name=name, parent=root, terminal_width=100, help_option_names=["-h", "--help"]
        ).get_help()
        parts.append(f"## winnow {name}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
