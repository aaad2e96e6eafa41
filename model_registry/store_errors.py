"""What can go wrong with an S3 store, by what can be done about it."""

from __future__ import annotations

from typing import Any

# Botocore's answers, by what can be done about them.
_DENIED = {"403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "Forbidden"}
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchVersion"}
_CONFLICT = {"412", "409", "PreconditionFailed", "ConditionalRequestConflict"}
_TOO_EARLY = {"SlowDown", "RequestTimeout", "OperationAborted", "408", "425", "429"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_FULL = {"XMinioStorageFull", "InsufficientStorage", "QuotaExceeded", "507"}


class StoreError(Exception):
    """Base of what the store raises."""


class StoreUnavailable(StoreError):
    """The S3 endpoint cannot be reached or answers 5xx. It may pass: callers retry."""


class StoreDenied(StoreError):
    """The S3 endpoint refuses the credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and try again."""


class StoreRefused(StoreError):
    """The S3 endpoint refuses what was asked, and would again: too large, not implemented, a clock that differs."""


class ObjectMissing(StoreError):
    """The store has no such object."""


class BucketMissing(StoreError):
    """The store has no such bucket. `winnow up` makes both; elsewhere create them, or name others in WINNOW_STORE."""


class CorruptObject(StoreError):
    """An object's bytes are not those of its hash, or the server cannot read them any more.

    A blob was moved to ``quarantine/``, or noted under ``unreadable/``, and must be computed again.
    """


class ChangedMeanwhile(StoreError):
    """A conditional put lost: what is there is not what was expected."""


def named_error(error: Any, where: str) -> StoreError:
    """The error that a ``ClientError`` of botocore stands for; ``where`` is the URL that answered so."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    what = error.operation_name
    if code in _CONFLICT or status == "412":
        return ChangedMeanwhile(f"S3 at {where}: {what}: precondition failed")
    if code in _CLOCK:
        return StoreRefused(
            f"S3 at {where}: {what}: {code}: the clocks of this machine and of the store differ by more than it "
            "allows; set them"
        )
    if code in _FULL or status in _FULL:
        return StoreRefused(f"S3 at {where}: {what}: {code}: it is full ({error}); make room or raise its quota")
    if code in _DENIED or status in {"401", "403"}:
        return StoreDenied(
            f"S3 at {where} refused the credentials ({what}: {code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if code == "NoSuchBucket":  # must not look like a missing object: that would be taken for a cache miss
        return BucketMissing(f"S3 at {where}: {what}: {error}; create the bucket with `winnow up`")
    if code in _MISSING or status == "404":
        return ObjectMissing(f"S3 at {where}: {what}: {code}: {error}")
    if status in {"501", "505"} or (status.startswith("4") and not {code, status} & _TOO_EARLY):
        return StoreRefused(f"S3 at {where} refuses {what}: {code or status}: {error}")
    full = "; if its disk is full, make room" if what.startswith(("Put", "Upload", "Complete")) else ""
    return StoreUnavailable(f"S3 at {where}: {what}: {code or status}: {error}{full}")
