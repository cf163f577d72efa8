"""The node's agent, as a process on the node sees it."""

from __future__ import annotations

import base64
import contextlib
import math
import os
import time
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from . import transport
from .errors import Corrupt, DeadlineExceeded, Error, InvalidArgument, Unavailable
from .held import Held
from .offer import Filling, TensorForm, tensor_list

DEFAULT_SOCKET = "/run/weightline/agent.sock"
DESCRIPTOR_SUFFIX = ".fd"
# The agent says within this time that a call takes longer; beyond the call's own timeout it is dead.
_GRACE_S = 5.0
# A lease that cannot be given back in this time ends with the process.
_RELEASE_TIMEOUT_S = 10.0
# The agent hashes what it has digests of, and sets flags: seconds for the largest object.
_SEAL_TIMEOUT_S = 120.0
# The layout's descriptor, and one for each of at most 4096 segments.
_DESCRIPTORS_MAX = 4097

Progress = Callable[[Dict[str, Any]], None]

_IDENTITY_NUMBERS = {
    "mx_source_type",
    "backend_framework",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "expert_parallel_size",
}
_IDENTITY_TEXTS = {
    "mx_version",
    "model_name",
    "dtype",
    "quantization",
    "revision",
    "backend_framework_version",
    "torch_version",
    "cuda_version",
    "triton_version",
    "gpu_arch",
    "compile_config_digest",
}


def connect(path: Optional[str] = None) -> "Agent":
    """The agent at `path`, else at MX_AGENT_SOCKET, else at the default path. Nothing is sent before the first call."""
    return Agent(path or os.environ.get("MX_AGENT_SOCKET") or DEFAULT_SOCKET)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _identity(identity: Mapping[str, Any]) -> Dict[str, Any]:
    """A source identity by the contract's field names, as proto3 JSON."""
    message: Dict[str, Any] = {}
    for name, value in identity.items():
        if name == "extra_parameters":
            right = isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
            value = dict(value) if right else value
        elif name in _IDENTITY_NUMBERS:
            right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        elif name in _IDENTITY_TEXTS:
            right = isinstance(value, str)
        else:
            raise InvalidArgument(f"identity has no field {name}", field=f"identity.{name}", way_out="see the contract's SourceIdentity")
        if not right:
            raise InvalidArgument(f"identity.{name} {value!r} has a wrong type", field=f"identity.{name}", value=repr(value))
        message[_camel(name)] = value
    return message


def _progress(told: Mapping[str, Any]) -> Dict[str, Any]:
    try:
        verified, total = int(told.get("verifiedBytes", 0)), int(told.get("totalBytes", 0))
    except (TypeError, ValueError):
        raise Corrupt("the agent's progress cannot be read", field="progress", value=repr(dict(told))[:200]) from None
    return {"state": str(told.get("state", "")), "verified_bytes": verified, "total_bytes": total}


def _ticket(message: Mapping[str, Any]) -> Tuple[bytes, bytes, int]:
    """A ticket's id and secret, and how many descriptors it gives."""
    ticket = message["ticket"]
    count = message["descriptors"]
    if type(count) is not int or not 1 <= count <= _DESCRIPTORS_MAX:
        raise ValueError(f"descriptors {count!r}")
    return base64.b64decode(ticket["id"]), base64.b64decode(ticket["secret"]), count


class Agent:
    """Calls to one agent. Every call has a connection of its own: any thread may use it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def acquire(
        self,
        model_name: Optional[str] = None,
        rank: int = 0,
        revision: str = "",
        timeout: float = 300.0,
        progress: Optional[Progress] = None,
        identity: Optional[Mapping[str, Any]] = None,
    ) -> Held:
        """A lease on a model by the name that `load` gave it, or on any identity.

        Waits up to `timeout` seconds while the node receives it, telling `progress` {state, verified_bytes, total_bytes}.
        """
        if (model_name is None) == (identity is None):
            raise InvalidArgument("give model_name or identity, one of them", field="model_name")
        for name, text in (("model_name", model_name), ("revision", revision)):
            if text is not None and not isinstance(text, str):
                raise InvalidArgument(f"{name} {text!r} is not a string", field=name, value=repr(text))
        if not (isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout > 0):
            raise InvalidArgument(f"timeout {timeout!r} is not a number of seconds above 0", field="timeout", value=repr(timeout))
        if not (isinstance(rank, int) and 0 <= rank < 2**32):
            raise InvalidArgument(f"rank {rank!r} is not a whole number from 0", field="rank", value=repr(rank))
        wanted: Dict[str, Any] = {"rank": rank}
        if identity is not None:
            wanted["identity"] = _identity(identity)
        else:
            wanted["model"] = {"modelName": model_name, "revision": revision}
        message = self._acquire(wanted, float(timeout), progress)
        return self._attach(message)

    def _acquire(self, wanted: Dict[str, Any], timeout: float, progress: Optional[Progress]) -> Dict[str, Any]:
        deadline = time.monotonic() + timeout + _GRACE_S
        events = transport.stream(self.path, "Acquire", {"wanted": wanted, "timeoutS": timeout}, timeout + _GRACE_S)
        # An exception of `progress` ends the call now, not when its traceback is let go.
        with contextlib.closing(events):
            for event in events:
                held = event.get("held")
                if isinstance(held, dict):
                    return held
                told = event.get("progress")
                if progress is not None and isinstance(told, dict):
                    progress(_progress(told))
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(f"the agent did not answer within {timeout} s", field="timeout", value=str(timeout))
        raise Unavailable("the agent ended the call without an answer", field="MX_AGENT_SOCKET", value=self.path, way_out="acquire again")

    def _attach(self, message: Dict[str, Any]) -> Held:
        try:
            try:
                ticket_id, secret, count = _ticket(message)
                # Not the path that the agent tells: a pod sees the sockets' directory elsewhere.
                path = self.path + DESCRIPTOR_SUFFIX
                with contextlib.closing(transport.receive_descriptors(path, ticket_id, secret, count)) as descriptors:
                    return Held(self, message, descriptors)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Corrupt(
                    f"the agent's answer cannot be read: {error!r}", field="held", way_out="use client and agent of near versions"
                ) from error
        except BaseException:
            self.release(str(message.get("leaseId", "")))
            raise

    def offer(
        self,
        identity: Mapping[str, Any],
        tensors: Sequence[TensorForm],
        rank: int = 0,
        aliases: Optional[Mapping[str, str]] = None,
        alone: bool = False,
        stall_timeout: float = 300.0,
    ) -> Filling:
        """Begins an offer: `tensors` (name, dtype, shape), filled with write() or buffer(), become a holding of this node.

        `aliases` are further names of a tensor's bytes, which are kept once. AlreadyExists says that the node holds or
        fills this identity: acquire it then, which waits and attaches, or offer it with `alone`, as an object of its own.
        The agent gives the offer up when no step comes for `stall_timeout` seconds.
        """
        if not (isinstance(rank, int) and 0 <= rank < 2**32):
            raise InvalidArgument(f"rank {rank!r} is not a whole number from 0", field="rank", value=repr(rank))
        if not (isinstance(stall_timeout, (int, float)) and math.isfinite(stall_timeout) and stall_timeout > 0):
            raise InvalidArgument(
                f"stall_timeout {stall_timeout!r} is not a number of seconds above 0", field="stall_timeout", value=repr(stall_timeout)
            )
        listed = tensor_list(tensors, aliases or {})
        message = {"identity": _identity(identity), "rank": rank, "alone": bool(alone), "stallTimeoutS": float(stall_timeout)}
        opened = transport.call(self.path, "Offer", message)
        try:
            offer_id, ticket = str(opened["offerId"]), opened["ticket"]
            ticket_id, secret = base64.b64decode(ticket["id"]), base64.b64decode(ticket["secret"])
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"the agent's answer cannot be read: {error!r}", field="offer", way_out="use client and agent of near versions") from error
        return Filling(self, offer_id, ticket_id, secret, self.path + DESCRIPTOR_SUFFIX, listed)

    def seal_offer(self, offer_id: str) -> Held:
        """Completes an offer of this process: what Filling.seal() calls."""
        answer = transport.call(self.path, "SealOffer", {"offerId": offer_id}, _SEAL_TIMEOUT_S)
        held = answer.get("held")
        if not isinstance(held, dict):
            raise Corrupt("the agent's answer has no holding", field="held", way_out="use client and agent of near versions")
        return self._attach(held)

    def withdraw_offer(self, offer_id: str) -> bool:
        """Ends an offer of this process. False when it had ended, or when the agent is away: it ends offers of dead processes itself."""
        try:
            return bool(transport.call(self.path, "WithdrawOffer", {"offerId": offer_id}, _RELEASE_TIMEOUT_S).get("withdrawn", False))
        except Error:
            return False

    def release(self, lease_id: str) -> bool:
        """Ends a lease of this process. False when it had ended, or when the agent is away: it ends leases of dead processes itself."""
        try:
            return bool(transport.call(self.path, "Release", {"leaseId": lease_id}, _RELEASE_TIMEOUT_S).get("released", False))
        except Error:
            return False

    def status(self) -> Dict[str, Any]:
        """What the agent says of itself, as proto3 JSON of StatusResponse."""
        return transport.call(self.path, "Status", {})

    @staticmethod
    def decode_bytes(text: str) -> bytes:
        """Bytes of proto3 JSON."""
        return base64.b64decode(text)
