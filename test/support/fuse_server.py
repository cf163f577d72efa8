"""A FUSE file system with one file, /file, whose server never answers FLUSH, STATFS or a second GETATTR of it: closing it hangs.

fuse_server.py FOLDER mounts there and prints one line for each request that it leaves unanswered: its name and the process that waits.
"""

import ctypes
import os
import stat
import struct
import sys

LOOKUP, GETATTR, OPEN, STATFS, FLUSH, INIT, OPENDIR, ACCESS = 1, 3, 14, 17, 25, 26, 27, 34
ENOSYS = 38
IN_HEADER = struct.Struct("<IIQQIIIHH")

folder = sys.argv[1]
device = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % device
if libc.mount(b"fuse", folder.encode(), b"fuse", 0, options) != 0:
    sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")


def attributes(inode: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o666
    return struct.pack("<6Q10I", inode, 8448, 17, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(unique: int, body: bytes = b"", error: int = 0) -> None:
    os.write(device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


print("mounted", flush=True)
while True:
    try:
        request = os.read(device, 1 << 20)
    except OSError as error:
        print("aborted:", os.strerror(error.errno or 0), flush=True)
        sys.exit(0)
    _, opcode, unique, inode, _, _, pid, _, _ = IN_HEADER.unpack_from(request)
    if opcode == INIT:
        answer(unique, struct.pack("<4I2H2I2HI7I", 7, 31, 65536, 0, 16, 12, 65536, 1, 32, 0, 0, *[0] * 7))
    elif opcode == LOOKUP:
        answer(unique, struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + attributes(2))
    elif opcode == GETATTR and inode == 1:
        answer(unique, struct.pack("<Q2I", 3600, 0, 0) + attributes(1))
    elif opcode in (OPEN, OPENDIR):
        answer(unique, struct.pack("<Q2I", 1, 0, 0))
    elif opcode == ACCESS:
        answer(unique)
    elif opcode in (FLUSH, STATFS, GETATTR):
        print({FLUSH: "FLUSH", STATFS: "STATFS", GETATTR: "GETATTR"}[opcode], pid, flush=True)
    else:
        answer(unique, error=ENOSYS)
