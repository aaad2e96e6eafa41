"""Checkpoints: what goes in comes out, damage is noticed, and saving neither ends nor slows training."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_registry.store import Store, StoreUnavailable
from tasks.torch_models.fit_checkpoint import CheckpointUnreadable, StoreCheckpoints, pack, unpack

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=8)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(tree=TREES)
@settings(max_examples=100, deadline=None)
def test_any_tree_comes_back_as_it_was(tree: Any) -> None:
    # repr tells tuples from lists, ints from floats and bools, and NaN from nothing
    assert repr(unpack(pack({"x": tree}))["x"]) == repr(tree)


def test_tensors_come_back_bit_for_bit() -> None:
    base = torch.arange(12.0)
    tensors = {
        "view": base[3:6],
        "again": base,
        "turned": base.reshape(3, 4).T,
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
    }
    found = unpack(pack({"tensors": {0: tensors}}))["tensors"][0]
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_an_optimizer_comes_back() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    torch.autograd.backward(layer(torch.ones(4, 3)).sum())
    optimizer.step()
    before = optimizer.state_dict()
    again = torch.optim.AdamW(layer.parameters(), lr=0.5)
    again.load_state_dict(unpack(pack({"o": before}))["o"])
    assert again.state_dict()["param_groups"] == before["param_groups"]
    for name, value in before["state"][0].items():
        assert torch.equal(again.state_dict()["state"][0][name], value)


def test_other_objects_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"cannot hold set at '/a/1'"):
        pack({"a": [1, {2}]})


@pytest.mark.parametrize("data", [b"", b"x", b"\x00" * 40, pack({"a": 1})[:-3], pack({"a": torch.ones(9)})[:-3]])
def test_damaged_bytes_are_no_checkpoint(data: bytes) -> None:
    with pytest.raises(CheckpointUnreadable):
        unpack(data)


def test_the_last_one_is_kept_in_the_store(store: Store) -> None:
    checkpoints = StoreCheckpoints(store, "checkpoints/k/teacher", share=1e9)
    assert checkpoints.load() is None
    checkpoints.save(1, lambda: b"one", last=False)
    checkpoints.save(2, lambda: b"two", last=True)
    assert StoreCheckpoints(store, "checkpoints/k/teacher").load() == b"two"
    assert store.list_objects("checkpoints/k/") == ["checkpoints/k/teacher"]


def test_a_damaged_object_is_not_loaded(store: Store) -> None:
    checkpoints = StoreCheckpoints(store, "checkpoints/k/teacher")
    checkpoints.save(1, lambda: b"content", last=False)
    data = store.get("checkpoints/k/teacher")
    assert data is not None
    store.put("checkpoints/k/teacher", data[:-1] + b"X")
    assert checkpoints.load() is None


class Slow:
    """A store whose uploads take a second of the clock below, or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.keys, self.down = 100.0, list[str](), False
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def put(self, key: str, data: bytes) -> None:
        self.now += 1.0
        if self.down:
            raise StoreUnavailable("gone")
        self.keys.append(key)


def test_saving_takes_a_tenth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Slow(monkeypatch)
    checkpoints = StoreCheckpoints(store, "k")  # type: ignore[arg-type]
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b""

    for epoch in range(1, 101):
        store.now += 0.5
        checkpoints.save(epoch, make, last=False)
    assert len(store.keys) == len(made)  # nothing is packed in vain
    assert 4 <= len(store.keys) <= 6  # 50 s of training, 1 s each
    checkpoints.save(101, make, last=True)
    assert 5 <= len(store.keys) == len(made) <= 7


def test_long_epochs_are_all_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Slow(monkeypatch)
    checkpoints = StoreCheckpoints(store, "k")  # type: ignore[arg-type]
    for epoch in range(5):
        store.now += 11.0
        checkpoints.save(epoch, lambda: b"", last=False)
    assert len(store.keys) == 5


def test_an_outage_while_saving_does_not_end_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Slow(monkeypatch)
    store.down = True
    checkpoints = StoreCheckpoints(store, "k")  # type: ignore[arg-type]
    checkpoints.save(3, lambda: b"", last=True)
    assert "checkpoint of epoch 3 not saved: gone" in caplog.text


def test_an_outage_while_loading_is_no_missing_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(key: str) -> bytes:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(store, "get", gone)
    with pytest.raises(StoreUnavailable):
        StoreCheckpoints(store, "k").load()
