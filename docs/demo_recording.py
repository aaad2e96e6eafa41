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
import threading

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
    """Exit code and lines. Standard output is a terminal; standard error is none, so no bar moves in it."""
    leader, follower = pty.openpty()
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )
    os.close(follower)
    assert process.stderr is not None
    readers = [threading.Thread(target=_collect, args=(fd, lines)) for fd in (process.stderr.fileno(), leader)]
    for reader in readers:
        reader.start()
    code = process.wait()
    for reader in readers:
        reader.join()
    return code, lines


def _collect(fd: int, lines: list[str]) -> None:
    """Append each line as soon as it is there, so that both streams are in the order of time."""
    rest = b""
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:  # the terminal's other end is closed
            data = b""
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        lines.extend(line.decode().rstrip("\r") for line in whole)
    if rest:
        lines.append(rest.decode())


if __name__ == "__main__":
    sys.exit(main())
