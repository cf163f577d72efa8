"""Memory that a pod fills for the agent: a memfd for each segment, written or mapped, then given away."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

from .errors import Internal, ResourceExhausted
from .mapping import MAP_FAILED, libc

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_PROT_NONE = 0
_WRITE_MAX_BYTES = 1 << 30


def _exhausted(what: str, nbytes: int, number: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{what}: {os.strerror(number)}",
        field="segment",
        value=str(nbytes),
        way_out="see the pod's memory limit: an offer needs the memory of one segment beside the object itself",
    )


class Buffer:
    """A writable mapping of a part of a memfd. `view` is dead after close(): whoever still touches it then ends with a SIGSEGV."""

    def __init__(self, descriptor: int, offset: int, nbytes: int) -> None:
        # A mapping begins at a page.
        skip = offset % mmap.PAGESIZE
        length = skip + nbytes
        address = libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, offset - skip)
        if address == MAP_FAILED:
            raise _exhausted(f"{nbytes} bytes cannot be mapped", nbytes, ctypes.get_errno())
        self._address: int = address
        self._length = length
        array = (ctypes.c_ubyte * nbytes).from_address(address + skip)
        # The address range stays taken while anything points into it, also after close().
        unmap = weakref.finalize(array, libc.munmap, address, length)
        unmap.atexit = False
        self.view: memoryview = memoryview(array).cast("B")

    def close(self) -> None:
        """Lets go of the memory: views that others still have point to nothing from now on."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        if libc.mmap(self._address, self._length, _PROT_NONE, flags, -1, 0) == MAP_FAILED:
            raise Internal(f"a buffer cannot be unmapped: {os.strerror(ctypes.get_errno())}", field="buffer")
        try:
            self.view.release()
        except BufferError:
            # Somebody made an array of it; that is dead like the view.
            pass
        self.view = memoryview(b"")


class Memory:
    """A memfd of `nbytes` bytes, all zero until they are written."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.nbytes = nbytes
        try:
            self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise _exhausted("a memfd cannot be made", nbytes, error.errno or 0) from error
        try:
            os.ftruncate(self.descriptor, nbytes)
        except OSError as error:
            os.close(self.descriptor)
            raise _exhausted(f"a memfd of {nbytes} bytes cannot be made", nbytes, error.errno or 0) from error

    def write(self, offset: int, data: memoryview) -> None:
        """Writes all of `data`. Without a mapping: the kernel takes fresh pages and fills them in one go."""
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self.descriptor, data[done : done + _WRITE_MAX_BYTES], offset + done)
            except OSError as error:
                raise _exhausted(f"{len(data)} bytes cannot be written", len(data), error.errno or 0) from error

    def map(self, offset: int, nbytes: int) -> Buffer:
        return Buffer(self.descriptor, offset, nbytes)

    def allocated(self) -> int:
        """Bytes of memory that it takes."""
        return os.fstat(self.descriptor).st_blocks * 512

    def close(self) -> None:
        os.close(self.descriptor)


def of_bytes(name: str, data: bytes) -> Memory:
    """A memfd with these bytes."""
    memory = Memory(name, len(data))
    memory.write(0, memoryview(data))
    return memory
