"""Translates errors of gRPC and of Google's client into this library's."""

from __future__ import annotations

import grpc

from murmur_beam.errors import PermanentError, StoreUnavailable, TransientError

# Faults of the table or of access to it, and faults of a single request.
_UNUSABLE = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
_REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
}
# A fault of a family is a fault of the table, whatever its code. The texts are the emulator's and the service's.
_FAMILY_TEXTS = ("unknown family", "non-aggregate cell", "column family type mismatch", "column family not found")
_CREATING = "currently being created"
_NO_TRANSACTIONS = "not allowed by this app profile"


def error_of(
    code: grpc.StatusCode | None, text: str, where: str, app_profile: str, *, folds: bool = False
) -> Exception:
    """The error to raise for an answer of the service.

    Args:
        code: gRPC's; None if there is none.
        text: the service's message.
        where: the table, as the user names it.
        app_profile: the one in use; empty for the default.
        folds: whether the request is made for a fold or the record, and not for a commit.
    """
    message = f"{where}: {getattr(code, 'name', 'error')}: {text}"
    advice = f"; see: murmur check '{where}'"
    vague = code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
    if any(clear in text.lower() for clear in _FAMILY_TEXTS) and (code in _UNUSABLE or code in _REFUSED or vague):
        return StoreUnavailable(f"{message}; a column family is missing, or is not of the type it must be{advice}")
    if code in _UNUSABLE:
        return StoreUnavailable(message + ("" if code is grpc.StatusCode.NOT_FOUND else advice))
    if _lacks_transactions(code, text):
        what, option = ("folds and the table's record need", "fold") if folds else ("a commit needs", "app")
        return StoreUnavailable(
            f"{message} ({app_profile or 'default'}): {what} one that routes to a single cluster and allows single-row "
            f"transactions; name it in the URI, ?{option}_profile=NAME{advice}"
        )
    if code is grpc.StatusCode.FAILED_PRECONDITION and _CREATING in text:
        return TransientError(message)
    return PermanentError(message) if code in _REFUSED else TransientError(message)


def status_of(err: BaseException | None) -> grpc.StatusCode | None:
    """The status code of an error, whichever layer of the client raised it; None if it has none."""
    if isinstance(err, (grpc.aio.AioRpcError, grpc.Call)):
        code: grpc.StatusCode | None = err.code()
        return code
    return getattr(err, "grpc_status_code", None)


def is_creating(err: BaseException | None) -> bool:
    """Whether the service says that the table is still being created."""
    return status_of(err) is grpc.StatusCode.FAILED_PRECONDITION and _CREATING in str(err)


def lacks_transactions(err: BaseException | None) -> bool:
    """Whether the service says that the app profile does not allow single-row transactions."""
    return _lacks_transactions(status_of(err), str(err))


def _lacks_transactions(code: grpc.StatusCode | None, text: str) -> bool:
    return code is grpc.StatusCode.FAILED_PRECONDITION and _NO_TRANSACTIONS in text


def is_unavailable(err: BaseException | None) -> bool:
    """Whether there was no connection, or it broke. An overloaded server may give the same code, so this does not show
    whether the server answers.
    """
    return status_of(err) is grpc.StatusCode.UNAVAILABLE


def is_refusal(err: Exception) -> bool:
    """Whether an error from `Connection.translated` is the fault of the request itself."""
    return type(err) is PermanentError
