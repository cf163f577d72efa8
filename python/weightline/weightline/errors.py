"""Errors of the client and of the agent, one class for each code of the product."""

from __future__ import annotations

import base64
import json
from typing import Any, Dict, Optional, Sequence, Tuple, Type


class Error(Exception):
    """Any failure. `code` is stable; `field`, `value` and `limit` say what was wrong, `way_out` what can be done."""

    code = "Internal"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        value: str = "",
        limit: str = "",
        way_out: str = "",
        near: Sequence[str] = (),
    ) -> None:
        self.message = message
        self.field = field
        self.value = value
        self.limit = limit
        self.way_out = way_out
        self.near: Tuple[str, ...] = tuple(near)
        parts = [message]
        if self.near:
            parts.append("near: " + ", ".join(self.near))
        if way_out:
            parts.append("way out: " + way_out)
        super().__init__("; ".join(parts))


class NotFound(Error):
    """Held by nobody, or not there."""

    code = "NotFound"


class Unavailable(Error):
    """No agent, or a peer that does not answer now."""

    code = "Unavailable"


class DeadlineExceeded(Error):
    """It took longer than was allowed."""

    code = "DeadlineExceeded"


class Refused(Error):
    """The input or the state does not allow it."""

    code = "Refused"


class InvalidArgument(Error):
    """The request itself is wrong."""

    code = "InvalidArgument"


class PermissionDenied(Error):
    """This process may not do that."""

    code = "PermissionDenied"


class ResourceExhausted(Error):
    """A limit is reached."""

    code = "ResourceExhausted"


class Corrupt(Error):
    """Bytes are not what their digest or format says."""

    code = "Corrupt"


class InUse(Error):
    """Somebody uses it."""

    code = "InUse"


class AlreadyExists(Error):
    """It is there already, and different."""

    code = "AlreadyExists"


class Cancelled(Error):
    """The call was cancelled."""

    code = "Cancelled"


class Internal(Error):
    """A fault of the agent; its log has the cause."""

    code = "Internal"


_BY_CODE: Dict[str, Type[Error]] = {
    cls.code: cls
    for cls in (
        NotFound,
        Unavailable,
        DeadlineExceeded,
        Refused,
        InvalidArgument,
        PermissionDenied,
        ResourceExhausted,
        Corrupt,
        InUse,
        AlreadyExists,
        Cancelled,
        Internal,
    )
}

# Connect's names, for an answer that carries no detail of ours.
_BY_CONNECT_CODE: Dict[str, Type[Error]] = {
    "not_found": NotFound,
    "unavailable": Unavailable,
    "deadline_exceeded": DeadlineExceeded,
    "failed_precondition": Refused,
    "invalid_argument": InvalidArgument,
    "permission_denied": PermissionDenied,
    "resource_exhausted": ResourceExhausted,
    "data_loss": Corrupt,
    "aborted": InUse,
    "already_exists": AlreadyExists,
    "canceled": Cancelled,
}

_DETAIL_TYPE = "weightline.errors.v1.ErrorDetail"
_DETAIL_FIELDS = {1: "code", 2: "field", 3: "value", 4: "limit", 5: "way_out"}
_NEAR_FIELD = 6
_VARINT_BITS_MAX = 63


def _varint(data: bytes, at: int) -> Tuple[int, int]:
    number = shift = 0
    while True:
        if shift > _VARINT_BITS_MAX:
            raise ValueError("a number is too long")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def _read_detail(data: bytes) -> Tuple[Dict[str, str], Sequence[str]]:
    """An ErrorDetail message: strings alone."""
    facts: Dict[str, str] = {}
    near = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        size, at = _varint(data, at)
        if tag & 7 != 2 or at + size > len(data):
            break
        text = data[at : at + size].decode("utf-8", "replace")
        at += size
        if tag >> 3 == _NEAR_FIELD:
            near.append(text)
        elif tag >> 3 in _DETAIL_FIELDS:
            facts[_DETAIL_FIELDS[tag >> 3]] = text
    return facts, near


def from_connect(error: object) -> Error:
    """The error that a Connect answer carries; whatever else it is, an Internal one."""
    if not isinstance(error, dict):
        return Internal("the agent gave no reason")
    message = str(error.get("message", "the agent gave no reason"))
    facts: Dict[str, str] = {}
    near: Sequence[str] = ()
    details = error.get("details")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, dict) and detail.get("type") == _DETAIL_TYPE:
            encoded = str(detail.get("value", ""))
            try:
                facts, near = _read_detail(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
            except (ValueError, IndexError):
                pass
    cls = _BY_CODE.get(facts.pop("code", ""), _BY_CONNECT_CODE.get(str(error.get("code")), Internal))
    return cls(message, near=near, **facts)


def from_refusal(text: bytes) -> Error:
    """The error that the descriptor socket sends instead of descriptors."""
    try:
        facts: Optional[Dict[str, Any]] = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        return Unavailable("the descriptor socket answered with something that is no refusal")
    cls = _BY_CODE.get(str(facts.get("code")), Internal)
    near = facts.get("near")
    return cls(
        str(facts.get("message", "")),
        field=str(facts.get("field", "")),
        value=str(facts.get("value", "")),
        limit=str(facts.get("limit", "")),
        way_out=str(facts.get("way_out", "")),
        near=[str(name) for name in near] if isinstance(near, list) else (),
    )
