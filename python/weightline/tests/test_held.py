"""A holding attached from descriptors: what its views show, how long, and what is refused."""

import array
import gc
import os
import socket
import struct
import sys
import unittest
from unittest import mock

import weightline
from weightline import transport

from support import HoldingCase, descriptors, layout

try:
    import numpy
except ImportError:
    numpy = None
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None


def mappings():
    with open("/proc/self/maps") as maps:
        return sum("memfd:segment" in line for line in maps)


class Attached(HoldingCase):
    ROWS = [
        ("w", "F32", (2, 2), 0, 0, 16),
        ("tied", "F32", (2, 2), 0, 0, 16, 6),
        ("half", "BF16", (2,), 0, 16, 4),
        ("empty", "F8_E4M3", (0,), 0, 0, 0),
        ("packed", "F4", (2, 8), 0, 20, 8),
        ("odd", "F32", (1,), 0, 29, 4),
        ("new", "F5_NEW", (4,), 0, 33, 3),
    ]
    VALUES = struct.pack("<4f", 1, 2, 3, 4)
    SEGMENT = VALUES + b"\x80\x3f\x00\x40" + bytes(range(8)) + b"\0" + struct.pack("<f", 1.5) + b"abc"

    def serve_rows(self, **more):
        self.serve(layout(self.ROWS, [(len(self.SEGMENT), "")]), [self.SEGMENT], **more)

    def test_names_bytes_shapes_and_digest(self):
        self.serve_rows()
        with self.acquire() as held:
            self.assertEqual(list(held.names), ["empty", "half", "new", "odd", "packed", "tied", "w"])
            self.assertEqual((held.names[0], held.names[-1], held.names[1:3], len(held), "w" in held, "x" in held.names), ("empty", "w", ["half", "new"], 7, True, False))
            self.assertEqual(held.object_digest, bytes(range(32)).hex())
            self.assertEqual((held["w"].dtype, held["w"].shape, held["w"].nbytes), ("F32", (2, 2), 16))
            self.assertEqual(bytes(held["w"].data), self.VALUES)
            self.assertEqual(bytes(held["tied"].data), self.VALUES)
            self.assertEqual((held["empty"].shape, bytes(held["empty"].data)), ((0,), b""))
            self.assertEqual((held["new"].dtype, bytes(held["new"].data)), ("F5_NEW", b"abc"))
            self.assertTrue(held["w"].data.readonly)
            with self.assertRaises(TypeError):
                held["w"].data[0] = 1
            with self.assertRaises(KeyError):
                held["nothing"]
            with self.assertRaises(weightline.Refused):
                held.files
        self.assertEqual(self.requests, [b"WLFD" + struct.pack("<I", 1) + b"i" * 16 + b"s" * 32])
        self.assertEqual(self.released, ["lease-1"])

    def test_files_and_an_empty_segment(self):
        files = {"config.json": b"{}", "empty": b"", "part a/0.safetensors": b"12345678"}
        rows = [("t", "U8", (4,), 2, 4, 4)]
        self.serve(layout(rows, [(len(data), path) for path, data in files.items()], kind="files"), list(files.values()), kind="files")
        with self.acquire() as held:
            self.assertEqual({path: bytes(view) for path, view in held.files.items()}, files)
            self.assertTrue(all(view.readonly for view in held.files.values()))
            self.assertEqual(bytes(held["t"].data), b"5678")

    def test_more_segments_than_one_message_carries(self):
        count = 600
        rows = [(f"{i:04}", "U8", (2,), i, 0, 2) for i in range(count)]
        before = descriptors()
        self.serve(layout(rows, [(2, "")] * count), [struct.pack("<H", i) for i in range(count)])
        with self.acquire() as held:
            self.assertEqual([struct.unpack("<H", held[name].data)[0] for name in held.names], list(range(count)))
            self.assertLessEqual(descriptors(), before + 3, "descriptors are closed once they are mapped")

    def test_a_process_that_may_open_few_files(self):
        import resource

        count = 400
        rows = [(f"{i:04}", "U8", (2,), i, 0, 2) for i in range(count)]
        self.serve(layout(rows, [(2, "")] * count), [struct.pack("<H", i) for i in range(count)], batch=20)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        # Enough for a batch on both sides of the socket, not for all.
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 60, hard))
        with self.acquire() as held:
            self.assertEqual(struct.unpack("<H", held["0399"].data)[0], 399)

    def test_a_process_that_may_open_too_few_files_is_told_so(self):
        def receive(limit):
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(30)]
                theirs.sendmsg([struct.pack("<II", 30, 0)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
                for fd in fds:
                    os.close(fd)
                before = descriptors()
                resource.setrlimit(resource.RLIMIT_NOFILE, (before + limit, hard))
                try:
                    for fd in transport._receive_message(ours, 0, 30):
                        os.close(fd)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    self.assertEqual(descriptors(), before, "what came is closed")

        receive(40)
        with self.assertRaises(weightline.ResourceExhausted) as raised:
            receive(10)
        self.assertIn("ulimit -n", raised.exception.way_out)

    def test_after_release_lookups_raise_and_views_show_the_old_bytes(self):
        self.serve_rows()
        gc.collect()
        before = mappings()
        held = self.acquire()
        names, view = held.names, held["w"]
        held.release()
        held.release()
        self.assertEqual(self.released, ["lease-1"], "the second release is nothing")
        for use in (lambda: held["w"], lambda: held.names, lambda: held.files):
            with self.assertRaises(weightline.Refused) as raised:
                use()
            self.assertIn("acquire", raised.exception.way_out)
        self.assertEqual((bytes(view.data), view.shape, list(names)[-1]), (self.VALUES, (2, 2), "w"))
        del held, names, view
        gc.collect()
        self.assertEqual(mappings(), before, "the last view takes the mapping with it")

    def test_a_block_that_fails_ends_the_lease(self):
        self.serve_rows()
        with self.assertRaises(ZeroDivisionError):
            with self.acquire():
                1 / 0
        self.assertEqual(self.released, ["lease-1"])

    def test_a_forks_child_holds_no_lease(self):
        self.serve_rows()
        held = self.acquire()
        view = held["w"].data
        child = os.fork()
        if child == 0:
            try:
                held.release()
                os._exit(0 if bytes(view) == self.VALUES else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertEqual(self.released, [], "the child told the agent nothing")
        self.assertEqual(bytes(held["w"].data), self.VALUES)
        held.release()
        self.assertEqual(self.released, ["lease-1"])

    def test_what_cannot_be_attached_gives_the_lease_back(self):
        right = layout(self.ROWS, [(len(self.SEGMENT), "")])
        broken = [
            (b"no layout at all", [self.SEGMENT]),
            (right, [self.SEGMENT[:-1]]),
            (right, [self.SEGMENT, b"one too many"]),
            (right, []),
            (b"", [self.SEGMENT]),
        ]
        before = descriptors()
        for layout_bytes, segments in broken:
            with self.subTest(layout_bytes[:8]):
                self.serve(layout_bytes, segments)
                with self.assertRaises(weightline.Corrupt):
                    self.acquire()
                self.assertEqual(self.released, ["lease-1"])
                self.doCleanups()
        gc.collect()
        self.assertLessEqual(descriptors(), before + 2, "no descriptor is left open")

    def test_without_the_libraries_the_error_names_the_other_ways(self):
        self.serve_rows()
        with self.acquire() as held:
            with mock.patch.dict(sys.modules, {"numpy": None}), self.assertRaises(weightline.Refused) as raised:
                held["w"].numpy()
            self.assertRegex(raised.exception.way_out, r"install numpy.*\.torch\(\).*\.data")
            with mock.patch.dict(sys.modules, {"torch": None}), self.assertRaises(weightline.Refused) as raised:
                held["w"].torch()
            self.assertRegex(raised.exception.way_out, r"install torch.*\.data")

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_numpy(self):
        self.serve_rows()
        with self.acquire() as held:
            array = held["w"].numpy()
            self.assertEqual((array.tolist(), array.flags.writeable, held.copied_bytes), ([[1, 2], [3, 4]], False, 0))
            self.assertEqual(numpy.frombuffer(held["w"].data, numpy.uint8).ctypes.data, array.ctypes.data, "a view, no copy")
            odd = held["odd"].numpy()
            self.assertEqual((odd.tolist(), odd.flags.aligned, odd.flags.writeable, held.copied_bytes), ([1.5], True, False, 4))
            for name in ("packed", "new"):
                with self.assertRaises(weightline.Refused) as raised:
                    held[name].numpy()
                self.assertIn(".data", raised.exception.way_out)
                self.assertEqual(held[name].nbytes, {"packed": 8, "new": 3}[name], "only the typed view raises")
            with mock.patch.dict(sys.modules, {"ml_dtypes": None}), self.assertRaises(weightline.Refused) as raised:
                held["half"].numpy()
            self.assertRegex(raised.exception.way_out, r"ml_dtypes.*\.torch\(\).*\.data")
            if ml_dtypes is not None:
                self.assertEqual(held["half"].numpy().astype("float32").tolist(), [1, 2])
                self.assertEqual(held["empty"].numpy().shape, (0,))

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_a_shape_that_does_not_fit_its_bytes_has_no_typed_view(self):
        rows = [("short", "F32", (5,), 0, 0, 16), ("torn", "F32", (3,), 0, 0, 15), ("vast", "F32", (0, 2**63), 0, 0, 0)]
        self.serve(layout(rows, [(16, "")]), [self.VALUES])
        with self.acquire() as held:
            for name, kind in (("short", weightline.Corrupt), ("torn", weightline.Corrupt), ("vast", weightline.Refused)):
                with self.assertRaises(kind) as raised:
                    held[name].numpy()
                self.assertEqual(raised.exception.field, name)
            self.assertEqual(bytes(held["short"].data), self.VALUES)


if __name__ == "__main__":
    unittest.main()
