"""Versions that the endpoint is given, where there is no ledger: how they are written, and that they are served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from endpoint_process import ASK, endpoint
from onnx_models import numbered
from patience import PATIENCE

from model_registry.ledger import Ledger, LedgerError
from model_registry.store import Store
from serving.pinned_models import BadPin, PinnedModels

DIGEST = "0123456789abcdef" * 4


def test_several_models_are_read_and_written_alike() -> None:
    text = f"fast-digits/3@{DIGEST},a.b_c/12@{'f' * 64}"
    pinned = PinnedModels.parse(f" {text.replace(',', ' , ')} ")
    assert pinned.models() == ["a.b_c", "fast-digits"]
    assert ",".join(str(pinned.champion(model)) for model in ("fast-digits", "a.b_c")) == text
    assert pinned.champion("fast-digits").to_version == 3
    with pytest.raises(LedgerError, match="'x'"):
        pinned.champion("x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "digits",
        "digits/3",
        f"digits@{DIGEST}",
        f"digits/0@{DIGEST}",
        f"digits/-1@{DIGEST}",
        f"digits/1@{DIGEST[:12]}",
        f"digits/1@{DIGEST.upper()}",
        f"digits/1@sha256:{DIGEST}",
        f"../digits/1@{DIGEST}",
        f"digits/1@{DIGEST},",
        f"digits/1@{DIGEST},digits/2@{DIGEST}",
    ],
)
def test_what_is_not_a_pin_is_refused(text: str) -> None:
    with pytest.raises(BadPin):
        PinnedModels.parse(text)


def test_a_bad_pin_is_told_at_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.commands.cli", "serve", "--port", "0", "--pin", "digits/1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert "WINNOW_SERVE: 'digits/1' is not MODEL/VERSION@DIGEST" in done.stderr


@pytest.mark.slow
def test_a_pinned_version_is_served_and_the_ledger_is_not_asked(store: Store, tmp_path: Path) -> None:
    one, two = numbered(store, tmp_path, 1), numbered(store, tmp_path, 2)
    ledger = Ledger(store)
    for model in ("m", "other"):
        ledger.commit(ledger.begin(model, 2, two.digest, expected_champion_seq=0))
    with endpoint(tmp_path / "home", WINNOW_SERVE=f"m/1@{one.digest}") as running:
        assert running.infer("m", ASK).json()["model_version"] == "1"
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [1.0, 1.0]
        assert running.get("/v2/models").json() == {"models": ["m"]}
