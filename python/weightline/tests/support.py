"""An agent of the tests' own on a Unix socket, and layouts to order."""

import array
import base64
import contextlib
import http.server
import json
import os
import socket
import socketserver
import struct
import tempfile
import threading
import unittest

import weightline


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.request_body = body[5:] if self.headers["Content-Type"] == "application/connect+json" else body
        self.server.answer(self)

    def log_message(self, *_):
        pass

    def reply(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, *items, end=b"{}"):
        body = b"".join(struct.pack(">BI", 0, len(item)) + item for item in (json.dumps(i).encode() for i in items))
        if end is not None:
            body += struct.pack(">BI", 2, len(end)) + end
        self.reply(200, body, "application/connect+json")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self):
        request, _ = super().get_request()
        return request, ("local", 0)


def detail(**fields):
    numbers = {"code": 1, "field": 2, "value": 3, "limit": 4, "way_out": 5, "near": 6}
    data = b"".join(bytes([numbers[k] << 3 | 2, len(v)]) + v.encode() for k, v in fields.items())
    return {"type": "weightline.errors.v1.ErrorDetail", "value": base64.b64encode(data).decode().rstrip("=")}


class AgentCase(unittest.TestCase):
    """Starts the fake for each test; `answer` says what it replies."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.folder.name + "/agent.sock"
        self.server = Server(self.path, Handler)
        self.server.answer = lambda handler: handler.reply(404, b"{}")
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.agent = weightline.connect(self.path)

    def tearDown(self):
        self.server.shutdown()
        self.server.server_close()
        self.folder.cleanup()

    def answer(self, answer):
        self.server.answer = answer

    def acquire(self, **request):
        return self.agent.acquire(**{"model_name": "m", "timeout": 1, **request})


def padded(data):
    return data + bytes(-len(data) % 8)


def layout(rows, segments, *, kind="tensors", header=None, raw_header=None):
    """A layout's bytes. rows: (name, dtype, shape, segment, offset, nbytes[, index of the row it is an alias of])."""
    rows = sorted(((r[0] if isinstance(r[0], bytes) else r[0].encode(), *r[1:]) for r in rows), key=lambda r: r[0])
    dtypes = sorted({r[1] for r in rows})
    dims = [d for r in rows for d in r[2]]
    facts = {
        "kind": kind,
        "algorithm": "xxh3-128",
        "chunk_bytes": 65536,
        "items": len(rows),
        "dims": len(dims),
        "dtypes": dtypes,
        "segments": [{"bytes": size, **({"path": path} if path else {})} for size, path in segments],
        **(header or {}),
    }
    text = json.dumps(facts, separators=(",", ":")).encode() if raw_header is None else raw_header
    text += b" " * (-len(text) % 8)
    ends, end = [], 0
    for row in rows:
        end += len(row[0])
        ends.append(end)
    n = len(rows)
    columns = [
        struct.pack(f"<{n}Q", *(r[4] for r in rows)),
        struct.pack(f"<{n}Q", *(r[5] for r in rows)),
        struct.pack(f"<{len(dims)}Q", *dims),
        struct.pack(f"<{n}I", *ends),
        struct.pack(f"<{n}I", *(r[3] for r in rows)),
        struct.pack(f"<{n}I", *(r[6] if len(r) > 6 else i for i, r in enumerate(rows))),
        bytes(dtypes.index(r[1]) for r in rows),
        bytes(len(r[2]) for r in rows),
        b"".join(r[0] for r in rows),
    ]
    return b"WLLAYOUT" + struct.pack("<II", 1, len(text)) + text + b"".join(padded(c) for c in columns)


class HoldingCase(AgentCase):
    """Serves a holding whole: Acquire, the descriptor socket, Release."""

    def serve(self, layout_bytes, segments, *, kind="tensors", batch=253, tell=None):
        """`segments` are the files' bytes; `tell` changes what Acquire says."""
        self.released = []
        files = [layout_bytes, *segments]
        held = {
            "leaseId": "lease-1",
            "holding": {"objectDigest": base64.b64encode(bytes(range(32))).decode(), "kind": kind, "totalBytes": str(sum(map(len, segments))), "layoutBytes": str(len(layout_bytes))},
            "ticket": {"id": base64.b64encode(b"i" * 16).decode(), "secret": base64.b64encode(b"s" * 32).decode(), "socket": "/elsewhere/agent.sock.fd"},
            "outcome": "held",
            "descriptors": len(files),
        }
        held = tell(held) if tell else held

        def answer(handler):
            if handler.path.endswith("Acquire"):
                handler.stream({"held": held})
            else:
                self.released.append(json.loads(handler.request_body)["leaseId"])
                handler.reply(200, b'{"released":true}')

        self.answer(answer)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self.path + ".fd")
        listener.listen()
        self.requests = []

        def run():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    self.requests.append(connection.recv(100))
                    for first in range(0, len(files), batch):
                        fds = [memfd(data) for data in files[first : first + batch]]
                        connection.sendmsg([struct.pack("<II", len(files), first)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
                        for fd in fds:
                            os.close(fd)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def stop():
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()
            # The folder may be gone already: cleanups run after tearDown.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + ".fd")

        self.addCleanup(stop)


def memfd(data):
    """A file of these bytes that can only be read."""
    writable = os.memfd_create("segment")
    os.write(writable, data)
    fd = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
    os.close(writable)
    return fd


def descriptors():
    return len(os.listdir("/proc/self/fd"))
