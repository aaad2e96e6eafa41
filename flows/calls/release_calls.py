"""``winnow.promote`` and ``winnow.rollback``: which version serves, decided in Python."""

from __future__ import annotations

from flows.calls.stack_calls import reach_servers
from tasks.release.deploy import Deployment


def promote_version(model: str, version: int) -> Deployment:
    """Put a registered version into service; the champion keeps serving until the version has answered as recorded.

    Args:
        model: its name.
        version: any registered version, older or newer than the champion.

    Returns:
        The version in service: ``version``, ``previous_version``, ``url`` and ``changed``.

    Raises:
        WinnowError: ``VersionMissing``: there is no such version. ``EndpointUnhealthy``: it does not load or answer.
        StackDown: the stack does not run.
    """
    reach_servers()
    from flows import release

    return release.promote(model, version)


def roll_back(model: str) -> Deployment:
    """Put the champion before the present one back into service; calling it again goes one further back.

    Args:
        model: its name.

    Returns:
        The version in service, as :func:`winnow.promote`.

    Raises:
        LedgerError: ``NothingToRollBack``: the champion is the first one, or there is none.
        StackDown: the stack does not run.
    """
    reach_servers()
    from flows import release

    return release.rollback(model)
