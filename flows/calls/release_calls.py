"""``winnow.promote`` and ``winnow.rollback``: which version serves, decided in Python."""

from __future__ import annotations

from flows.reaching import quiet_environment, reach_for_a_release
from tasks.release.deployment import Deployment


def promote_version(model: str, version: int) -> Deployment:
    """Put a registered version into service; the champion keeps serving until the version has answered as recorded.

    Args:
        model: its name.
        version: any registered version, older or newer than the champion.

    Returns:
        The version in service: ``version``, ``previous_version``, ``url`` and ``changed``. ``served`` is False, and
        ``warnings`` say why, if the endpoint was lost meanwhile and does not serve it yet.

    Raises:
        StoreError: ``VersionMissing``: there is no such version.
        WinnowError: ``EndpointUnhealthy``: it does not load or answer.
        StackDown: the stack does not run.
    """
    _reach()
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
    _reach()
    from flows import release

    return release.rollback(model)


def _reach() -> None:
    quiet_environment()
    reach_for_a_release(remedy="winnow.up() in Python")
