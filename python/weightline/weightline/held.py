"""A lease on a holding, with its bytes mapped."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Optional, Sequence, Type

from .errors import Corrupt, Refused
from .layout import Layout, Names
from .mapping import EMPTY, map_file
from .tensor import Tensor

if TYPE_CHECKING:
    from types import TracebackType

    from .agent import Agent


class Files(Mapping[str, memoryview]):
    """The files of a holding of kind `files`, by path."""

    def __init__(self, segments: Dict[str, memoryview]) -> None:
        self._segments = segments

    def __getitem__(self, path: str) -> memoryview:
        return self._segments[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)


class Held(Mapping[str, Tensor]):
    """Names to tensors. Use it as a context manager, or call release(); the lease ends with the process too.

    After that `held[...]` raises; a view that was taken before still shows the old bytes.
    """

    def __init__(self, agent: "Agent", message: Mapping[str, Any], descriptors: Iterator[int]) -> None:
        """`descriptors` gives the layout's, then each segment's; each is used before the next is asked for."""
        holding = message["holding"]
        self.lease_id: str = message["leaseId"]
        self.object_digest: str = agent.decode_bytes(holding.get("objectDigest", "")).hex()
        self.kind: str = holding.get("kind", "")
        self.nbytes = int(holding.get("totalBytes", 0))
        #: "held": nothing moved; "received": it came from a peer; "waited": with another caller's fill.
        self.outcome: str = message.get("outcome", "")
        #: Bytes that typed views had to copy because the tensor lies unaligned in its file.
        self.copied_bytes = 0
        self._agent = agent
        self._pid = os.getpid()
        self._released = False
        layout_bytes = int(holding.get("layoutBytes", 0))
        self._layout = Layout(map_file(next(descriptors), layout_bytes))
        segments = int(message["descriptors"]) - 1
        if segments != len(self._layout.segments):
            raise Corrupt(
                f"{segments} segments come, the layout has {len(self._layout.segments)}",
                field="descriptors",
                value=str(segments),
                limit=str(len(self._layout.segments)),
            )
        self._segments = [map_file(descriptor, segment.nbytes) for segment, descriptor in zip(self._layout.segments, descriptors)]

    @property
    def names(self) -> Sequence[str]:
        self._check()
        return Names(self._layout)

    @property
    def files(self) -> Files:
        self._check()
        if self.kind != "files":
            raise Refused(f"this holding is of kind {self.kind}, not files", field="kind", value=self.kind, limit="files")
        return Files({segment.path: view for segment, view in zip(self._layout.segments, self._segments)})

    def __getitem__(self, name: str) -> Tensor:
        self._check()
        index = self._layout.find(name)
        if index < 0:
            raise KeyError(name)
        segment, offset, nbytes = self._layout.place(index)
        data = self._segments[segment][offset : offset + nbytes] if nbytes else EMPTY
        return Tensor(name, self._layout, index, data, self._count_copy)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return self._layout.count

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._layout.find(name) >= 0

    def _count_copy(self, nbytes: int) -> None:
        self.copied_bytes += nbytes

    def _check(self) -> None:
        if self._released:
            raise Refused("this lease is released", field="lease", value=self.lease_id, way_out="acquire the model again")

    def release(self) -> None:
        """Ends the lease. Does nothing the second time, and in a fork's child, which holds none."""
        if self._released or os.getpid() != self._pid:
            return
        self._released = True
        # Views that are still used keep their mapping; all others go now.
        self._segments = []
        self._agent.release(self.lease_id)

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: "Optional[TracebackType]"
    ) -> None:
        self.release()
