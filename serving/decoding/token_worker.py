"""An engine process of a model that continues text: it reads frames between steps, so nobody waits for an answer's end.

Requests of other kinds (log-probabilities of given tokens) are answered as in any engine process, between two steps.
"""

from __future__ import annotations

import select
import socket
from pathlib import Path
from typing import Any

from serving.decoding.prompt_reader import PromptReader
from serving.decoding.token_loop import TokenLoop
from serving.decoding.token_session import TokenSession
from serving.engine import Engine
from serving.engines.engine_frames import (
    DROP,
    GENERATE,
    Answered,
    Asked,
    EngineWork,
    FrameCutter,
    pack_answered,
    unpack_asked,
)
from serving.engines.frame_worker import FrameWorker
from serving.limits import GenerationBounds

_READ = 1 << 18
_NOTHING = EngineWork(0, 0, 0, 0, 0, False)
_TAKEN = _NOTHING._replace(done=True)


def token_loop(engine: Engine, files: Path | PromptReader, bounds: GenerationBounds | None = None) -> TokenLoop:
    """What continues texts by this engine, tried once.

    Args:
        files: folder of the variant's files, or what has read of them how prompts are read.
    """
    assert engine.decoder is not None
    bounds = bounds or GenerationBounds()
    context = min(engine.decoder.context, bounds.context)
    session = TokenSession(engine, slots=bounds.slots, context=context)
    reader = files if isinstance(files, PromptReader) else PromptReader(files, engine.variant, engine.decoder)
    session.read(0, [0, 0], at=0)  # the first call takes longer
    session.step([0, 0], [2, 2])
    return TokenLoop(session, reader, bounds)


class TokenWorker:
    """Answers the frames of a connection.

    Args:
        worker: for requests of other kinds. ``loop``: for texts.
    """

    def __init__(self, worker: FrameWorker, loop: TokenLoop) -> None:
        self._worker, self._loop = worker, loop
        worker.ready["generation"] = loop.limits.model_dump(mode="json")

    @property
    def ready(self) -> dict[str, Any]:
        """What the front is told."""
        return self._worker.ready

    def work(self, connection: socket.socket) -> None:
        """Answer until the other side closes."""
        cutter, poll = FrameCutter(), select.poll()
        poll.register(connection, select.POLLIN)
        while True:
            while self._loop.idle or poll.poll(0):
                data = connection.recv(_READ)
                if not data:
                    return
                for frame in cutter.feed(data):
                    self._take(connection, unpack_asked(frame))
            if said := self._loop.turn():
                connection.sendall(pack_answered(said, _NOTHING))

    def _take(self, connection: socket.socket, requests: list[Asked]) -> None:
        plain, refused = list[Asked](), list[Answered]()
        for asked in requests:
            if asked.packing & DROP:
                self._loop.drop(asked.number)
            elif asked.packing & GENERATE:
                if (answer := self._loop.ask(asked)) is not None:
                    refused.append(answer)
            else:
                plain.append(asked)
        if plain:
            if refused:
                connection.sendall(pack_answered(refused, _NOTHING))
            self._worker.answer_all(connection, plain)
        else:
            connection.sendall(pack_answered(refused, _TAKEN))
