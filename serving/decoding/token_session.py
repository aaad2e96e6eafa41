"""Steps of a decoder over several texts whose keys and values lie in one buffer for each layer, and stay there.

A text has a slot, a row of every buffer; ONNX Runtime reads the past from it and writes the new tokens behind it, so
nothing is copied. Kernels for a single row round otherwise than those for several (activations are int8), and one row
that is left over behind whole tiles (the last of 33, for one) is a single row too. So a text that is alone is computed
beside another slot, and prompts are read an even number of tokens at a time. Then a prompt in whatever pieces, and a
step beside whatever others, give the same bits, and answers do not depend on who else is asking.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from model_registry.decoder_form import LOGITS, MOST, SEEN, TOKENS, WANTED
from serving.engine import Engine
from serving.exceptions import EngineRunError
from serving.tensors import Array

_RELEASED = 64
"""Tokens of a text that has ended from which on its memory is given back to the system."""


class TokenSession:
    """The buffers, and the model that is asked with them.

    Args:
        engine: of a variant that continues text.
        slots: texts at a time; there is one more, which a text that is alone is computed beside.
        context: tokens of a text, at most.
    """

    def __init__(self, engine: Engine, *, slots: int, context: int) -> None:
        assert engine.decoder is not None
        self.form, self._session = engine.decoder, engine.session
        self.slots, self.context = slots, context
        self._shape = (slots + 1, self.form.kv_heads, context, self.form.head_size)
        self._type = self.form.cache_type
        self._maps = [mmap.mmap(-1, int(np.prod(self._shape)) * self._type.itemsize) for _ in self.form.past]
        """Memory that the system gives page by page when it is written to, and takes back when it is told to."""
        self._buffers = [np.frombuffer(each, self._type).reshape(self._shape) for each in self._maps]

    def read(self, slot: int, tokens: Sequence[int], *, at: int, wanted: int = 1) -> Array:
        """Read a piece of a prompt, tokens that follow ``at`` others of the slot's text.

        Args:
            tokens: best an even number of them. With an odd one another token is read behind them, where the context
                has room; whatever comes next is written over it.
            wanted: the number of last tokens of which the logits are wanted.

        Returns:
            Logits [wanted, vocabulary].
        """
        odd = len(tokens) % 2 and at + len(tokens) < self.context
        read = [*tokens, 0] if odd else list(tokens)
        last = len(read) - len(tokens) + wanted
        answered = min(last + last % 2, len(read))
        found = self._run(np.array([read], np.int64), [at + len(read) - 1], slot, wanted=answered)[0]
        logits: Array = found[answered - last : answered - last + wanted]
        return logits

    def step(self, tokens: Sequence[int], seen: Sequence[int], *, beside: int = 0) -> Array:
        """One more token of each of the first slots.

        Args:
            tokens: of each text. ``seen``: how many it has had before.
            beside: what the slot behind the last one has had, where that one is computed for company.

        Returns:
            Logits [texts, vocabulary].
        """
        rows = len(tokens)
        if rows == 1:  # what it writes for company is written over by whatever comes to be there
            tokens, seen = [*tokens, 0], [*seen, min(beside, self.context - 1)]
        return self._run(np.array(tokens, np.int64)[:, None], list(seen), 0, wanted=1)[:rows, 0]

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first tokens of one slot into another one."""
        for buffer in self._buffers:
            buffer[target, :, :length] = buffer[source, :, :length]

    def copy_out(self, slot: int, start: int, end: int) -> Array:
        """Keys and values of some tokens, [layers x 2, heads, tokens, size of a head]."""
        return np.stack([buffer[slot, :, start:end] for buffer in self._buffers])

    def copy_in(self, slot: int, start: int, kept: Array) -> None:
        """What :meth:`copy_out` gave, into a slot."""
        end = start + kept.shape[2]
        for buffer, part in zip(self._buffers, kept, strict=True):
            buffer[slot, :, start:end] = part

    def release(self, slot: int, length: int) -> None:
        """A text of that length has ended: give its memory back, unless it is hardly any."""
        if length < _RELEASED or not hasattr(mmap, "MADV_DONTNEED"):
            return
        size = int(np.prod(self._shape[1:])) * self._type.itemsize
        start = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (slot * size + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if whole > 0:
            for each in self._maps:
                each.madvise(mmap.MADV_DONTNEED, start, whole)

    def _run(self, tokens: Array, seen: list[int], first: int, *, wanted: int) -> Array:
        rows = len(tokens)
        binding = self._session.io_binding()
        binding.bind_cpu_input(TOKENS, tokens)
        binding.bind_cpu_input(SEEN, np.array(seen, np.int32))
        binding.bind_cpu_input(MOST, np.array(max(max(seen) + 1, tokens.shape[1]), np.int32))
        binding.bind_cpu_input(WANTED, np.array([wanted], np.int64))
        binding.bind_output(LOGITS)
        for past, present, buffer in zip(self.form.past, self.form.present, self._buffers, strict=True):
            part = buffer[first : first + rows]
            where = ("cpu", 0, self._type.type, part.shape, part.ctypes.data)
            binding.bind_input(past, *where)
            binding.bind_output(present, *where)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises a family of classes without a common base
            raise EngineRunError(f"{type(error).__name__}: {error}") from error
        logits: Array = binding.get_outputs()[0].numpy()
        return logits
