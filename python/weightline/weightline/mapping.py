"""Read-only mappings of whole files that keep no descriptor, as mmap.mmap does (it duplicates the one it is given)."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

from .errors import Corrupt, ResourceExhausted

EMPTY = memoryview(b"")

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MAP_FAILED = ctypes.c_void_p(-1).value


def map_file(descriptor: int, nbytes: int) -> memoryview:
    """The first `nbytes` of a file. The mapping lives as long as any view of it; the descriptor stays the caller's."""
    # A file of no bytes cannot be mapped.
    if nbytes == 0:
        return EMPTY
    actual = os.fstat(descriptor).st_size
    if actual < nbytes:
        raise Corrupt(f"a segment has {actual} bytes, its layout says {nbytes}", field="segment", value=str(actual), limit=str(nbytes))
    address = libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == MAP_FAILED:
        raise ResourceExhausted(
            f"{nbytes} bytes of the model cannot be mapped: {os.strerror(ctypes.get_errno())}",
            field="segment",
            value=str(nbytes),
            way_out="see the process's limit of address space (ulimit -v) and vm.max_map_count",
        )
    array = (ctypes.c_ubyte * nbytes).from_address(address)
    # Every view of `array`, and every slice of one, keeps it alive: with the last the mapping goes.
    unmap = weakref.finalize(array, libc.munmap, address, nbytes)
    # At exit other threads may still read; the mapping ends with the process anyhow.
    unmap.atexit = False
    return memoryview(array).toreadonly().cast("B")
