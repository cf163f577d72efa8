"""The queue of those who connect is full: a client waits, as long as its call may take."""

import os
import socket
import tempfile
import threading
import time
import unittest

from weightline import Unavailable, transport


class FullQueue(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "agent.sock")
        self.server = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.server.close)
        self.server.bind(self.path)
        self.server.listen(0)
        self.waiting = []
        while True:
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            self.addCleanup(one.close)
            try:
                one.connect(self.path)
            except BlockingIOError:
                break
            self.waiting.append(one)

    def test_it_waits_for_a_place(self) -> None:
        tried = threading.Event()

        def accept() -> None:
            tried.wait(10)
            for _ in range(len(self.waiting)):
                self.server.accept()[0].close()

        thread = threading.Thread(target=accept)
        thread.start()
        original = time.sleep

        def sleep(seconds: float) -> None:
            tried.set()
            original(seconds)

        transport.time.sleep, kept = sleep, transport.time.sleep
        try:
            sock = transport._connect(self.path, socket.SOCK_STREAM, 10.0)
        finally:
            transport.time.sleep = kept
        sock.close()
        thread.join()
        self.assertTrue(tried.is_set(), "the queue was full at first")

    def test_not_for_ever(self) -> None:
        with self.assertRaises(Unavailable):
            transport._connect(self.path, socket.SOCK_STREAM, 0.1)


if __name__ == "__main__":
    unittest.main()
