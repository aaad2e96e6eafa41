"""Asks a loop that continues texts, as an engine process does."""

from __future__ import annotations

from typing import Any

import orjson

from serving.decoding.token_loop import TokenLoop
from serving.engines.engine_frames import PART, Asked

Told = dict[str, Any]


class Asking:
    """Asks a loop, and puts together what it says."""

    def __init__(self, loop: TokenLoop) -> None:
        self.loop, self.told, self._next, self.turns = loop, dict[int, Told](), 0, 0

    def ask(self, **order: Any) -> int:
        self._next += 1
        refused = self.loop.ask(Asked(self._next, orjson.dumps(order), -1, 0, 0.0))
        self.told[self._next] = {"text": "", "tokens": [], "finish": None}
        if refused is not None:
            self.told[self._next] = {"status": refused.status, **orjson.loads(refused.body)}
        return self._next

    def turn(self) -> None:
        self.turns += 1
        for answered in self.loop.turn():
            told, said = self.told[answered.number], orjson.loads(answered.body)
            if answered.status not in (PART, 200):
                told |= {"status": answered.status, **said}
                continue
            said["text"], said["tokens"] = told["text"] + said["text"], told["tokens"] + said["tokens"]
            told |= said

    def finish(self) -> None:
        while not self.loop.idle:
            self.turn()

    def one(self, **order: Any) -> Told:
        number = self.ask(**order)
        self.finish()
        return self.told[number]
