"""What the endpoint served last, for a start at which nobody can say what it should serve."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from serving.pinned_models import BadPin, PinnedModels, PinnedVersion
from serving.rollout import Rollout

log = logging.getLogger("winnow.serving")


class RememberedChampions:
    """Keeps the version that has each model's traffic in a file, written as ``WINNOW_SERVE`` is.

    It is read once; what has changed since then is only written. A file that says nothing sensible is as good as none.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _read(file)
        self.last = PinnedModels(self._known)
        """As it was found, for whoever reads ledgers."""
        self._served = set[str]()
        self._failed = False

    def note(self, rollout: Rollout) -> None:
        """Write down what is served now, if it is something else than before; called about twice a second."""
        known = dict(self._known)
        for name, model in rollout.models.items():
            if model.serving is not None:
                known[name] = PinnedVersion(name, int(model.serving), model.versions[model.serving].digest)
                self._served.add(name)
            elif name in self._served:  # its traffic was taken away; before that it has not had any yet
                known.pop(name, None)
        if known == self._known:
            return
        partial = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            partial.write_text(",\n".join(map(str, known.values())))
            partial.replace(self._file)
        except OSError as error:  # tried again the next time
            if not self._failed:
                log.warning("what is served cannot be remembered for the next start: %s", error)
            self._failed = True
        else:
            self._known, self._failed = known, False


def _read(file: Path) -> Mapping[str, PinnedVersion]:
    try:
        text = file.read_text()
        found = PinnedModels.parse(text) if text else PinnedModels({})
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, BadPin) as error:
        log.warning("what was served before the start is not known: %s", error)
        return {}
    return {name: found.champion(name) for name in found.models()}
