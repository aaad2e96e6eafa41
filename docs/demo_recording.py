"""Record a command in a terminal as docs/demo.svg: what it really prints, colours included.

    winnow up && python docs/demo_recording.py > docs/demo.svg

docs/report.png is the report of the same run, as a browser shows it:

    chromium --headless --no-sandbox --hide-scrollbars --window-size=1200,1290 \\
        --screenshot=docs/report.png report/report.html
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

from rich.console import Console
from rich.text import Text

COLUMNS = 132
DEMO = ("winnow", "run", "digits_budget", "--report", "report")


def main() -> int:
    """Run the command, by default the demo's, and write the SVG to standard output."""
    command = sys.argv[1:] or list(DEMO)
    code, lines = record(command)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "dim"), (" ".join(command), "bold")))
    for line in lines:
        console.print(Text.from_ansi(line), overflow="fold")
    svg = console.export_svg(title=" ".join(command))
    print(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), end="")  # they load fonts from elsewhere
    return code


def record(command: list[str]) -> tuple[int, list[str]]:
    """Exit code, and the lines of standard output, which is a terminal; how it went is not recorded."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command,
        stdout=follower,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )
    os.close(follower)
    written = b""
    while data := _read(leader):
        written += data
    return process.wait(), written.decode().splitlines()


def _read(terminal: int) -> bytes:
    """What was written; nothing once the other end is closed, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(main())
