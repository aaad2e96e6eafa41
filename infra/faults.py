"""What can go wrong with the embedded stack. Each text names the value, the rule and the remedy."""

from __future__ import annotations


class StackError(Exception):
    """Base of what infra raises; the command line prints its text and exits 1."""


class StackDown(StackError):
    """There is no running stack. Start one with ``winnow up``."""


class PortTaken(StackError):
    """A port that a component needs belongs to another process."""


class ComponentFailed(StackError):
    """A component did not come up; the text holds its last log lines and the path of the log."""


class StackBusy(StackError):
    """Another ``winnow up`` or ``winnow down`` holds the lock and does not finish."""


class StackMisconfigured(StackError):
    """A setting of the stack cannot work."""
