"""The model behind BentoML: ``bentoml serve peer_bentoml:Peer``. Its batching takes arrays, and no JSON like this."""

# mypy: disable-error-code="import-not-found,misc,no-any-return,untyped-decorator"
from __future__ import annotations

from typing import Any

import bentoml
from peer_session import INPUT, answer_of, load, rows_of


@bentoml.service(workers=1, traffic={"timeout": 30})
class Peer:
    """One worker."""

    def __init__(self) -> None:
        self.session = load()

    @bentoml.api
    def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        (found,) = self.session.run(None, {INPUT: rows_of({"inputs": inputs})})
        return answer_of(found, found.ravel().tolist())
