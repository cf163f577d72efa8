"""Reads the layout format (WLLAYOUT version 1) from its mapping; rows are made only when they are asked for."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from typing import Any, Dict, Iterator, List, Literal, NamedTuple, Sequence, Tuple, Union, overload

from .errors import Corrupt, Refused

_MAGIC = b"WLLAYOUT"
# After so many searches by name a dictionary of all names pays.
_FINDS_BEFORE_INDEX = 32
_VERSION = 1
_PREAMBLE = struct.Struct("<8sII")
_ALIGNMENT_BYTES = 8
_RANK_MAX = 16
_KINDS = ("files", "tensors")


class Row(NamedTuple):
    """One tensor's row."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    segment: int
    offset: int
    nbytes: int


class Segment(NamedTuple):
    nbytes: int
    path: str


def _corrupt(what: str) -> Corrupt:
    return Corrupt(f"the layout is not valid: {what}", field="layout")


class Layout:
    """A layout over `data`, which must stay valid as long as it is used. Raises Corrupt for what it cannot be."""

    def __init__(self, data: memoryview) -> None:
        if len(data) < _PREAMBLE.size:
            raise _corrupt("it is cut off")
        magic, version, header_bytes = _PREAMBLE.unpack_from(data)
        if magic != _MAGIC:
            raise _corrupt("it does not begin with WLLAYOUT")
        if version != _VERSION:
            raise Refused(
                f"layout version {version} is not known to this client",
                field="layout.version",
                value=str(version),
                limit=str(_VERSION),
                way_out="upgrade the weightline package",
            )
        start = _PREAMBLE.size + header_bytes
        if start > len(data):
            raise _corrupt("its header is cut off")
        if header_bytes % _ALIGNMENT_BYTES:
            raise _corrupt(f"its header has {header_bytes} bytes, no multiple of {_ALIGNMENT_BYTES}")
        self._data = data
        header = self._read_header(bytes(data[_PREAMBLE.size : start]))
        self.count: int = header["items"]
        self._dtypes: List[str] = header["dtypes"]
        self.kind: str = header["kind"]
        if self.kind not in _KINDS:
            raise _corrupt(f"its kind {self.kind!r} is not known")
        self.algorithm: str = header["algorithm"]
        self.chunk_bytes: int = header["chunk_bytes"]
        self.segments: List[Segment] = [Segment(segment["bytes"], segment.get("path", "")) for segment in header["segments"]]
        self._at = start
        n, dims = self.count, header["dims"]
        self._offsets = self._column(n, "Q")
        self._sizes = self._column(n, "Q")
        self._dims = self._column(dims, "Q")
        self._ends = self._column(n, "I")
        self._segment_of = self._column(n, "I")
        self._aliases = self._column(n, "I")
        self._dtype_of = self._column(n, "B")
        self._ranks = self._column(n, "B")
        self._names = self._column(self._ends[n - 1] if n else 0, "B")
        if self._at != len(data):
            raise _corrupt(f"{len(data) - self._at} bytes follow its last column")
        # Where each row's dims begin: summed once, when the first shape is asked for.
        self._dim_starts: List[int] = []
        self._all_names: List[str] = []
        self._index: Dict[str, int] = {}
        self._finds = 0

    @staticmethod
    def _read_header(text: bytes) -> Dict[str, Any]:
        try:
            header = json.loads(text)
            right = (
                all(type(header[key]) is int and header[key] >= 0 for key in ("items", "dims", "chunk_bytes"))
                and all(isinstance(header[key], str) for key in ("kind", "algorithm"))
                and all(isinstance(header[key], list) for key in ("dtypes", "segments"))
                and all(isinstance(dtype, str) for dtype in header["dtypes"])
                and all(type(s["bytes"]) is int and s["bytes"] >= 0 for s in header["segments"])
                and all(isinstance(s.get("path", ""), str) for s in header["segments"])
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _corrupt("its header cannot be read") from error
        if not right:
            raise _corrupt("its header has values of a wrong type")
        return dict(header)

    def _column(self, count: int, form: Literal["Q", "I", "B"]) -> Any:
        size = count * struct.calcsize("<" + form)
        end = self._at + size
        if end > len(self._data):
            raise _corrupt("a column is cut off")
        column = self._data[self._at : end]
        padding = -size % _ALIGNMENT_BYTES
        if bytes(self._data[end : end + padding]) != bytes(padding):
            raise _corrupt("a column is not padded with zeros")
        self._at = end + padding
        if form == "B":
            return column
        if sys.byteorder != "little":
            return struct.unpack(f"<{count}{form}", column)
        return column.cast("B").cast(form)

    def name_bytes(self, index: int) -> bytes:
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        if not start <= end <= len(self._names):
            raise _corrupt(f"the name of item {index} ends at {end}, before it begins at {start}")
        return bytes(self._names[start:end])

    def name(self, index: int) -> str:
        try:
            return self.name_bytes(index).decode()
        except UnicodeDecodeError as error:
            raise _corrupt(f"the name of item {index} is not UTF-8") from error

    def find(self, name: str) -> int:
        """The row of a name; -1 when there is none. Rows are in the order of name bytes."""
        self._finds += 1
        if self._finds > _FINDS_BEFORE_INDEX:
            if not self._index:
                self._index = {known: i for i, known in enumerate(self.names())}
                if len(self._index) != self.count:
                    raise _corrupt("a name appears twice")
            return self._index.get(name, -1)
        wanted = name.encode("utf-8", "surrogatepass")
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self.name_bytes(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < self.count and self.name_bytes(low) == wanted else -1

    def names(self) -> List[str]:
        """All names, decoded once."""
        if not self._all_names:
            blob = bytes(self._names)
            if blob.isascii():
                text, start = blob.decode(), 0
                names: List[str] = []
                for end in self._ends:
                    if end < start:
                        raise _corrupt(f"the name of item {len(names)} ends at {end}, before it begins at {start}")
                    names.append(text[start:end])
                    start = end
                self._all_names = names
            else:
                self._all_names = [self.name(i) for i in range(self.count)]
        return self._all_names

    def owner(self, index: int) -> int:
        """The row that has the bytes of this one: another row's index for an alias, else its own."""
        return int(self._aliases[index])

    def place(self, index: int) -> Tuple[int, int, int]:
        """Segment, offset and size of a row, inside its segment."""
        segment, offset, nbytes = self._segment_of[index], self._offsets[index], self._sizes[index]
        if nbytes and (segment >= len(self.segments) or offset + nbytes > self.segments[segment].nbytes):
            raise _corrupt(f"item {index} offset {offset} + size {nbytes} exceeds segment {segment}")
        return segment, offset, nbytes

    def dtype(self, index: int) -> str:
        dtype = int(self._dtype_of[index])
        if dtype >= len(self._dtypes):
            raise _corrupt(f"item {index} has no dtype")
        return self._dtypes[dtype]

    def shape(self, index: int) -> Tuple[int, ...]:
        start = self._dim_start(index)
        return tuple(self._dims[start : start + self._ranks[index]])

    def row(self, index: int) -> Row:
        segment, offset, nbytes = self.place(index)
        return Row(self.name(index), self.dtype(index), self.shape(index), segment, offset, nbytes)

    def _dim_start(self, index: int) -> int:
        if not self._dim_starts:
            ranks = bytes(self._ranks)
            if max(ranks, default=0) > _RANK_MAX:
                raise _corrupt(f"a shape has {max(ranks)} dimensions, at most {_RANK_MAX} are allowed")
            starts = list(itertools.accumulate(ranks, initial=0))
            if starts[-1] != len(self._dims):
                raise _corrupt("its dims do not fit its ranks")
            self._dim_starts = starts
        return self._dim_starts[index]


class Names(Sequence[str]):
    """The names of a layout, in the order of their bytes, decoded when they are asked for."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __len__(self) -> int:
        return self._layout.count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> List[str]: ...
    def __getitem__(self, index: Union[int, slice]) -> Union[str, List[str]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._layout.name(index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._layout.find(name) >= 0

    def __repr__(self) -> str:
        return repr(list(self)) if len(self) <= 20 else f"<{len(self)} names>"
