"""Connect over HTTP/1.1 on the agent's Unix socket, and descriptors from the descriptor socket."""

from __future__ import annotations

import array
import errno
import http.client
import json
import os
import socket
import struct
import time
from typing import Any, Dict, Generator, Iterable, List, Optional, Tuple

from .errors import Corrupt, DeadlineExceeded, Error, ResourceExhausted, Unavailable, from_connect, from_refusal

SERVICE = "/weightline.local.v1.AgentService/"
_END_OF_STREAM = 2
_MESSAGE_MAX_BYTES = 64 << 20
_DESCRIPTOR_TIMEOUT_S = 10.0
_QUEUE_PAUSE_S = 0.002
# What the kernel passes with one message (SCM_MAX_FD).
_DESCRIPTORS_PER_MESSAGE = 253
# What a call ends with when the other side is no agent, or one no more.
_LOSSES = (OSError, http.client.HTTPException, ValueError, RecursionError)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: Optional[float]) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = _connect(self._path, socket.SOCK_STREAM, self.timeout)


def _connect(path: str, kind: int, timeout: Optional[float]) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.settimeout(timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            try:
                sock.connect(path)
                break
            except BlockingIOError:
                # The queue of those who connect is full: a moment, as a socket without a timeout would wait.
                if deadline is not None and time.monotonic() > deadline:
                    raise
                time.sleep(_QUEUE_PAUSE_S)
    except OSError as error:
        sock.close()
        raise unreachable(path, error) from error
    return sock


def unreachable(path: str, error: OSError) -> Unavailable:
    """Why nobody answers on a socket's path, in words that help."""
    if error.errno == errno.ENOENT:
        why, way_out = "there is no socket", "start the agent on this node, or set MX_AGENT_SOCKET to its socket"
    elif error.errno == errno.ECONNREFUSED:
        why = "the socket is dead: no agent listens on it any more"
        way_out = "start the agent; in a pod mount the socket's directory, not the socket file, which a restart replaces"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why, way_out = "this process may not open it", "mount the directory with permission to enter it"
    else:
        why, way_out = os.strerror(error.errno or 0), "see whether the agent runs"
    return Unavailable(f"no agent at {path}: {why}", field="MX_AGENT_SOCKET", value=path, way_out=way_out)


def _lost(path: str, error: Exception) -> Error:
    if isinstance(error, socket.timeout):
        return DeadlineExceeded(f"the agent at {path} did not answer in time", field="timeout")
    return Unavailable(
        f"the agent at {path} went away in the middle of a call", field="MX_AGENT_SOCKET", value=path, way_out="call again when it is back"
    )


def call(path: str, method: str, message: Dict[str, Any], timeout: float = 30.0) -> Dict[str, Any]:
    """A unary call."""
    connection = _UnixConnection(path, timeout)
    try:
        connection.request("POST", SERVICE + method, json.dumps(message), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = json.loads(response.read(_MESSAGE_MAX_BYTES) or b"{}")
    except _LOSSES as error:
        raise _lost(path, error) from error
    finally:
        connection.close()
    if response.status != 200:
        raise from_connect(body)
    return body if isinstance(body, dict) else {}


def stream(path: str, method: str, message: Dict[str, Any], timeout: Optional[float]) -> Generator[Dict[str, Any], None, None]:
    """A server-streaming call: yields its messages, raises its error. `timeout` is for each wait."""
    body = json.dumps(message).encode()
    connection = _UnixConnection(path, timeout)
    try:
        try:
            envelope = struct.pack(">BI", 0, len(body)) + body
            connection.request("POST", SERVICE + method, envelope, {"Content-Type": "application/connect+json"})
            response = connection.getresponse()
            if response.status != 200:
                raise from_connect(json.loads(response.read(_MESSAGE_MAX_BYTES) or b"{}"))
            while True:
                flags, item = _read_envelope(response)
                if flags & _END_OF_STREAM:
                    if item.get("error"):
                        raise from_connect(item["error"])
                    return
                yield item
        except _LOSSES as error:
            raise _lost(path, error) from error
    finally:
        connection.close()


def _read_envelope(response: http.client.HTTPResponse) -> "tuple[int, Dict[str, Any]]":
    head = _read_exactly(response, 5)
    flags, size = struct.unpack(">BI", head)
    if size > _MESSAGE_MAX_BYTES:
        raise http.client.HTTPException(f"a message of {size} bytes")
    item = json.loads(_read_exactly(response, size) or b"{}")
    return flags, item if isinstance(item, dict) else {}


def _read_exactly(response: http.client.HTTPResponse, size: int) -> bytes:
    data = response.read(size)
    if len(data) < size:
        raise http.client.IncompleteRead(data, size - len(data))
    return data


def receive_descriptors(path: str, ticket_id: bytes, secret: bytes, count: int) -> Generator[int, None, None]:
    """Trades a one-time ticket for `count` descriptors. Each is open until the caller asks for more, or closes the generator."""
    sock = _connect(path, socket.SOCK_SEQPACKET, _DESCRIPTOR_TIMEOUT_S)
    try:
        sock.sendall(b"WLFD" + struct.pack("<I", 1) + ticket_id + secret)
        passed = 0
        while passed < count:
            batch = _receive_message(sock, passed, count)
            try:
                yield from batch
            finally:
                _close_all(batch)
            passed += len(batch)
    except OSError as error:
        raise _lost(path, error) from error
    finally:
        sock.close()


def give_descriptor(
    path: str, ticket_id: bytes, secret: bytes, segment: Optional[int], descriptor: int, nbytes: int, timeout: float
) -> Tuple[Dict[str, Any], Optional[int]]:
    """Gives a memfd for an offer, the list of tensors (`segment` None) or a segment, and waits until the agent has taken it.

    Returns the answer, and for the list the descriptor of the layout, which is the caller's to close.
    """
    sock = _connect(path, socket.SOCK_SEQPACKET, timeout)
    try:
        what = struct.pack("<IIQ", 0 if segment is None else 1, segment or 0, nbytes)
        message = b"WLGV" + struct.pack("<I", 1) + ticket_id + secret + what
        socket.send_fds(sock, [message], [descriptor])
        data, got, flags, _ = socket.recv_fds(sock, 64 << 10, 2, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise _lost(path, error) from error
    finally:
        sock.close()
    try:
        if not data:
            raise Unavailable("the agent went away while it took an offer's memory", way_out="offer it again")
        answer = _answer(data)
        if len(got) != (1 if segment is None else 0):
            raise Corrupt(f"{len(got)} descriptors came with the agent's answer", field="descriptors", value=str(len(got)))
    except BaseException:
        _close_all(got)
        raise
    return answer, got[0] if got else None


def _answer(data: bytes) -> Dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or answer.get("ok") is not True:
        raise from_refusal(data)
    return answer


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _receive_message(sock: socket.socket, before: int, count: int) -> List[int]:
    """The next message's descriptors, which are the caller's to close; none is left open when it is wrong."""
    space = socket.CMSG_SPACE(_DESCRIPTORS_PER_MESSAGE * array.array("i").itemsize)
    # Closed on exec from the start: another thread may fork in between.
    data, ancillary, flags, _ = sock.recvmsg(64 << 10, space, socket.MSG_CMSG_CLOEXEC)
    got = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            got.frombytes(content[: len(content) - len(content) % got.itemsize])
    try:
        _check_message(data, flags, len(got), before, count)
    except BaseException:
        _close_all(got)
        raise
    return list(got)


def _check_message(data: bytes, flags: int, got: int, before: int, count: int) -> None:
    if flags & socket.MSG_CTRUNC:
        raise ResourceExhausted(
            "this process cannot open all descriptors of the model",
            field="descriptors",
            value=str(count),
            limit="at most 253 at once, beside what the process has open",
            way_out="raise its limit of open files (ulimit -n)",
        )
    if not data:
        raise Unavailable("the descriptor socket closed before all descriptors came", way_out="acquire again")
    if not got:
        raise from_refusal(data)
    total, first = struct.unpack("<II", data) if len(data) == 8 else (0, 0)
    if total != count or first != before or before + got > count:
        raise Corrupt(
            f"the descriptor socket announced {total} descriptors from {first} on, {count} from {before} on were expected",
            field="descriptors",
            value=str(total),
            limit=str(count),
        )
