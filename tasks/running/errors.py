"""The named errors of the pipeline. Each text names the value, the rule and the remedy.

All take ``(message, **details)`` with JSON details, so that one raised in a child process arrives unchanged.
"""

from __future__ import annotations

from typing import Any


class WinnowError(Exception):
    """Base of the pipeline's errors; ``exit_code`` is what the command line ends with."""

    exit_code = 1

    def __init__(self, message: str, **details: Any) -> None:
        self.message = message
        self.details = details
        super().__init__(message)


class SpecError(WinnowError):
    """The spec is wrong; lists every error at once."""

    exit_code = 2


class WorkloadError(WinnowError):
    """The user's workload cannot be used; lists everything that is missing, with an example."""

    exit_code = 2


class WrongInstallation(WinnowError):
    """Python finds somebody else's ``tasks`` or ``flows`` package before ours."""

    exit_code = 2


class UnsafeLock(WinnowError):
    """The folder of the machine's lock is not ours alone: a link in it could point to any file of ours."""


class DataReadError(WinnowError):
    """A file of the user's data cannot be read as what the spec says it is."""

    exit_code = 2


class DataCheckFailed(WinnowError):
    """The data failed a critical check; ``details['failures']`` names check, split and rows."""


class TrainingDiverged(WinnowError):
    """The loss became NaN or infinite."""


class WeightsMismatch(WinnowError):
    """The weights brought do not fit the model: missing, unexpected or wrongly shaped tensors."""

    exit_code = 2


class WorkloadChanged(WinnowError):
    """A saved model was made by workload code that has changed since; its weights cannot be trusted to fit."""


class PruningRefused(WinnowError):
    """The model cannot be pruned as asked."""


class CutRefused(WinnowError):
    """The model cannot be cut as asked: no layer may step further, or there is no block to leave out."""


class ExportRefused(WinnowError):
    """torch.export cannot trace the model; names the module and line, and what to change."""


class ParityFailed(WinnowError):
    """The exported file does not answer as the model does."""


class CalibrationError(WinnowError):
    """The calibration data cannot serve for quantization."""


class QatUnsupported(WinnowError):
    """The file has an operator or a way of quantizing that cannot be trained; names what."""


class QatParityFailed(WinnowError):
    """The quantized file that was written does not answer as the module that was trained."""


class GateFailed(WinnowError):
    """The chosen variant did not pass; the text holds the whole table."""


class TargetUnsupported(WinnowError):
    """A variant has an operator, or asks for something, that a target cannot take; names node and operator."""


class EndpointUnhealthy(WinnowError):
    """The endpoint did not load, verify or answer for the new version; the old one keeps serving."""


class ChildFailed(WinnowError):
    """A stage's process raised something unexpected, or died; the text ends with its last log lines."""


class RankLost(WinnowError):
    """A process that trains with others lost one of them."""


class RanksDisagree(WinnowError):
    """Processes that train together differ in code, data or results."""


class StageTimedOut(WinnowError, TimeoutError):
    """A stage ran past its time limit and was ended."""


class StageOutOfMemory(WinnowError):
    """A stage grew past its memory limit and was ended, or an accelerator had no more memory for it."""


class RunUnreadable(WinnowError):
    """The stored record of a run is damaged."""


class Interrupted(WinnowError):
    """The run was asked to stop."""


CANDIDATE_FAILURES = (
    CalibrationError,
    ChildFailed,
    CutRefused,
    ExportRefused,
    ParityFailed,
    PruningRefused,
    QatParityFailed,
    QatUnsupported,
    StageOutOfMemory,
    StageTimedOut,
    TrainingDiverged,
)
"""What ends one candidate of a search, but not the search."""


def named_errors() -> dict[str, type[Exception]]:
    """Every error that may cross from a child process to its parent, by class name."""
    from model_registry import store

    ours: dict[str, type[Exception]] = {
        name: value for name, value in globals().items() if isinstance(value, type) and issubclass(value, WinnowError)
    }
    stores = (store.StoreUnavailable, store.StoreDenied, store.StoreRefused, store.ObjectMissing, store.BucketMissing)
    return ours | {error.__name__: error for error in (*stores, store.CorruptObject)}
