"""What the endpoint answers when it cannot answer: named errors, each with its HTTP status.

Texts go to clients: they name the value, the rule and the remedy, and never a path, a key or a stack.
"""

from __future__ import annotations


class ServingError(Exception):
    """Base: anything that becomes an error answer ``{"error": text}``.

    Args:
        detail: what whoever administers the endpoint is told in the text's place: addresses, buckets, paths.
    """

    status = 500

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail or message


class InvalidRequest(ServingError):
    """The request breaks the protocol or does not fit the model."""

    status = 400


class Unauthorized(ServingError):
    """No token or key, or a wrong one."""

    status = 401


class AdminDisabled(ServingError):
    """The endpoint was started without WINNOW_ADMIN_TOKEN, so nobody may administer it."""

    status = 403


class Forbidden(ServingError):
    """The key is known, and may not do this."""

    status = 403


class TooManyRequests(ServingError):
    """The key has used up its rate; ``retry_after``: seconds until the next request is taken."""

    status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotFound(ServingError):
    """No such model, version or path."""

    status = 404


class RequestTimedOut(ServingError):
    """The request's body did not arrive in time."""

    status = 408


class Conflict(ServingError):
    """The admin request contradicts what is loaded or serving."""

    status = 409


class BodyTooLarge(ServingError):
    """The request's body is larger than the endpoint reads."""

    status = 413


class UnsupportedEncoding(ServingError):
    """The request's body is compressed."""

    status = 415


class LoadRefused(ServingError):
    """The variant cannot be served here; trying again without changing something gives the same answer."""

    status = 422


class Unsupported(ServingError):
    """A part of the protocol that this endpoint does not offer."""

    status = 501


class NotReady(ServingError):
    """The model or the endpoint cannot answer now, but is expected to soon."""

    status = 503


class LoadFailed(ServingError):
    """Loading failed for a reason outside the variant (store down, disk full, too slow); it may pass."""

    status = 503


class EngineCrashed(ServingError):
    """The engine process died while it held the request. It is started again."""

    status = 503


class Overloaded(ServingError):
    """The engine has more requests waiting than it may hold."""

    status = 503


class InferenceTimedOut(ServingError):
    """The engine did not answer in time."""

    status = 504


class EngineLoadError(Exception):
    """The variant cannot be run here; the text says which part of it, and what to do."""


class EngineRunError(Exception):
    """ONNX Runtime failed on an input that fits the model's declared shapes. Its text is for the log only."""
