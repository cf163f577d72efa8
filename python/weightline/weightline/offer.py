"""An offer: the process's tensors become a holding of the node."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Type, Union

from . import transport
from .errors import Error, InvalidArgument, Refused
from .layout import Layout
from .mapping import map_file
from .memory import Buffer, Memory, of_bytes

if TYPE_CHECKING:
    from types import TracebackType

    from .agent import Agent
    from .held import Held

#: Name, dtype and shape as safetensors names them, and the size in bytes where nobody knows the dtype.
TensorForm = Union[Tuple[str, str, Sequence[int]], Tuple[str, str, Sequence[int], int]]

# The agent copies and digests what it is given before it answers; far slower than any memory is.
_GIVE_BYTES_PER_S = 50e6
_GIVE_TIMEOUT_S = 60.0
_MISSING_NAMED = 8


def tensor_list(tensors: Sequence[TensorForm], aliases: Mapping[str, str]) -> bytes:
    """The list of tensors as the agent reads it: the header of a safetensors file without offsets."""
    members: List[str] = []
    known: Set[str] = set()

    def add(name: object, description: Dict[str, Any]) -> None:
        if not isinstance(name, str):
            raise InvalidArgument(f"tensor name {name!r} is not a string", field="tensors", value=repr(name))
        if name in known:
            raise InvalidArgument(f"tensor {name!r} appears twice", field="tensors", value=name)
        known.add(name)
        members.append(f"{json.dumps(name, ensure_ascii=False)}:{json.dumps(description, ensure_ascii=False)}")

    for i, form in enumerate(tensors):
        if not (isinstance(form, (tuple, list)) and len(form) in (3, 4) and isinstance(form[1], str)):
            raise InvalidArgument(
                f"tensors[{i}] {form!r} is not (name, dtype, shape) or (name, dtype, shape, bytes)", field=f"tensors[{i}]", value=repr(form)
            )
        shape = [int(dim) for dim in form[2]]
        if any(dim < 0 for dim in shape):
            raise InvalidArgument(f"tensors[{i}] {form[0]!r} has shape {tuple(shape)}", field=f"tensors[{i}].shape", value=repr(shape))
        description: Dict[str, Any] = {"dtype": form[1], "shape": shape}
        if len(form) == 4:
            description["bytes"] = int(form[3])
        add(form[0], description)
    for alias, name in aliases.items():
        add(alias, {"alias": name})
    try:
        return ("{" + ",".join(members) + "}").encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("a tensor's name is not valid Unicode", field="tensors", value=repr(error.object[error.start : error.end])) from error


def flat_bytes(name: str, data: object) -> memoryview:
    """The bytes of any buffer, in C order; copied only when they do not lie so."""
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except TypeError as error:
        way_out = "give bytes, a memoryview or an array; of a torch tensor t on the CPU: t.contiguous().view(torch.uint8).numpy()"
        raise InvalidArgument(f"the data of tensor {name!r} has no buffer: {type(data).__name__}", field=name, way_out=way_out) from error
    if view.nbytes == 0:
        return memoryview(b"")
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


class _Segment:
    """One memfd while it is filled."""

    def __init__(self, number: int, nbytes: int, rows: Set[int]) -> None:
        self.number = number
        self.nbytes = nbytes
        self.missing = rows
        self.memory: Optional[Memory] = None
        self.buffers: Dict[int, Buffer] = {}
        self.given = False

    def open(self) -> Memory:
        if self.memory is None:
            self.memory = Memory(f"weightline-offer-{self.number}", self.nbytes)
        return self.memory

    def close(self) -> None:
        for buffer in self.buffers.values():
            buffer.close()
        self.buffers.clear()
        if self.memory is not None:
            self.memory.close()
            self.memory = None


class Filling:
    """An offer that is being filled: write every tensor, then seal(). Leaving its block without seal() withdraws it.

    A segment (at most 1 GiB, or one larger tensor) is handed to the agent as soon as all its tensors are written, and its
    memory let go when the agent has copied it. Written in the order of names, an offer takes the memory of the object and
    of one segment. Any thread may write; two must not write the same tensor.
    """

    def __init__(self, agent: "Agent", offer_id: str, ticket_id: bytes, secret: bytes, descriptors: str, tensors: bytes) -> None:
        self.offer_id = offer_id
        self._agent = agent
        self._ticket = (ticket_id, secret)
        self._descriptors = descriptors
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._over = False
        self._segments: List[_Segment] = []
        try:
            self._layout = self._arrange(tensors)
        except BaseException:
            self.withdraw()
            raise
        layout = self._layout
        rows: List[Set[int]] = [set() for _ in layout.segments]
        for index in range(layout.count):
            segment, _, nbytes = layout.place(index)
            if nbytes and layout.owner(index) == index:
                rows[segment].add(index)
        self._segments = [_Segment(i, segment.nbytes, rows[i]) for i, segment in enumerate(layout.segments)]

    def _arrange(self, tensors: bytes) -> Layout:
        memory = of_bytes("weightline-tensors", tensors)
        try:
            answer, descriptor = self._give(None, memory)
        finally:
            memory.close()
        assert descriptor is not None
        try:
            return Layout(map_file(descriptor, int(answer["layout_bytes"])))
        finally:
            os.close(descriptor)

    def _give(self, segment: Optional[int], memory: Memory) -> "Tuple[Dict[str, Any], Optional[int]]":
        timeout = _GIVE_TIMEOUT_S + memory.nbytes / _GIVE_BYTES_PER_S
        return transport.give_descriptor(self._descriptors, *self._ticket, segment, memory.descriptor, memory.nbytes, timeout)

    @property
    def names(self) -> Sequence[str]:
        """All names, aliases too, in the order of their bytes: the order in which filling takes the least memory."""
        return self._layout.names()

    @property
    def missing(self) -> List[str]:
        """Names of the tensors that are not written yet."""
        return [self._layout.name(index) for segment in self._segments for index in sorted(segment.missing)]

    def _find(self, name: str) -> Tuple[int, int, int, "Optional[_Segment]"]:
        """The row with the bytes of a name: its index, offset, size, and segment (None when it has no bytes)."""
        if self._over or os.getpid() != self._pid:
            raise Refused("this offer is over", field="offer", value=self.offer_id, way_out="begin a new offer")
        index = self._layout.find(name)
        if index < 0:
            raise InvalidArgument(f"the offer has no tensor {name!r}", field="name", value=str(name), way_out="see .names")
        index = self._layout.owner(index)
        number, offset, nbytes = self._layout.place(index)
        if nbytes == 0:
            return index, 0, 0, None
        segment = self._segments[number]
        if segment.given:
            raise Refused(f"tensor {name!r} was handed to the agent already", field=name, way_out="write each tensor once")
        return index, offset, nbytes, segment

    def write(self, name: str, data: object) -> None:
        """The bytes of a tensor, from any buffer of exactly its size."""
        index, offset, nbytes, segment = self._find(name)
        view = flat_bytes(name, data)
        if len(view) != nbytes:
            raise InvalidArgument(
                f"tensor {name!r} has {nbytes} bytes, {len(view)} were given", field=name, value=str(len(view)), limit=str(nbytes)
            )
        if segment is None:
            return
        with self._lock:
            memory = segment.open()
        memory.write(offset, view)
        self._finished(segment, index)

    def buffer(self, name: str) -> memoryview:
        """A writable view of a tensor's bytes, to be filled in place. It is dead after written(name): touching it then is a SIGSEGV."""
        index, offset, nbytes, segment = self._find(name)
        if segment is None:
            return memoryview(bytearray())
        with self._lock:
            if index not in segment.buffers:
                segment.buffers[index] = segment.open().map(offset, nbytes)
            return segment.buffers[index].view

    def written(self, name: str) -> None:
        """Says that a tensor's buffer is filled."""
        index, _, _, segment = self._find(name)
        if segment is None:
            return
        with self._lock:
            buffer = segment.buffers.pop(index, None)
        if buffer is None:
            raise InvalidArgument(f"tensor {name!r} has no buffer", field=name, way_out="take it with buffer(name), or use write(name, data)")
        buffer.close()
        self._finished(segment, index)

    def _finished(self, segment: _Segment, index: int) -> None:
        with self._lock:
            segment.missing.discard(index)
            if segment.missing or segment.buffers or segment.given or segment.memory is None:
                return
            segment.given = True
            memory = segment.memory
        try:
            self._give(segment.number, memory)
        except Error:
            # The agent ends an offer whose memory it does not take.
            self._end()
            raise
        segment.close()

    def seal(self) -> "Held":
        """Completes the offer: the agent proves it, and the finished holding is attached, read-only.

        The lease is the caller's to release, as with acquire().
        """
        missing = self.missing
        if missing:
            named = ", ".join(missing[:_MISSING_NAMED]) + (", ..." if len(missing) > _MISSING_NAMED else "")
            raise InvalidArgument(
                f"{len(missing)} tensors are not written: {named}", field="tensors", value=named, way_out="write them, then seal"
            )
        if self._over:
            raise Refused("this offer is over", field="offer", value=self.offer_id, way_out="begin a new offer")
        held = self._agent.seal_offer(self.offer_id)
        self._end()
        return held

    def withdraw(self) -> None:
        """Ends the offer; nothing of it stays. Does nothing when it is over, and in a fork's child."""
        if self._over or os.getpid() != self._pid:
            return
        self._end()
        self._agent.withdraw_offer(self.offer_id)

    def _end(self) -> None:
        self._over = True
        for segment in self._segments:
            segment.close()

    def __enter__(self) -> "Filling":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: "Optional[TracebackType]"
    ) -> None:
        self.withdraw()
