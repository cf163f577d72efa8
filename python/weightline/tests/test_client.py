"""The client against the layout's test vectors and an agent of the test's own."""

import array
import base64
import http.server
import json
import os
import socket
import socketserver
import struct
import tempfile
import threading
import unittest
from pathlib import Path

import weightline
from weightline.layout import Layout, Names

VECTORS = Path(__file__).resolve().parents[3] / "packages/rdma-native/test/vectors/layout"


class LayoutVectors(unittest.TestCase):
    def test_every_vector(self):
        paths = sorted(VECTORS.glob("*.bin"))
        self.assertGreaterEqual(len(paths), 9)
        for path in paths:
            with self.subTest(path.stem):
                expected = json.loads(path.with_suffix(".json").read_text())
                layout = Layout(memoryview(path.read_bytes()))
                self.assertEqual((layout.kind, layout.algorithm, layout.chunk_bytes), (expected["kind"], expected["algorithm"], expected["chunk_bytes"]))
                self.assertEqual([(str(s.nbytes), s.path) for s in layout.segments], [(s["bytes"], s["path"]) for s in expected["segments"]])
                rows = [layout.row(i) for i in range(layout.count)]
                self.assertEqual(
                    [(r.name, r.dtype, [str(d) for d in r.shape], r.segment, str(r.offset), str(r.nbytes)) for r in rows],
                    [(i["name"], i["dtype"], i["shape"], i["segment"], i["offset"], i["bytes"]) for i in expected["items"]],
                )
                names = Names(layout)
                self.assertEqual([layout.find(name) for name in names], list(range(layout.count)))
                self.assertEqual(layout.find("no such name"), -1)
                self.assertNotIn(5, names)

    def test_cut_and_flipped_layouts_raise_and_never_crash(self):
        for path in sorted(VECTORS.glob("*.bin")):
            data = path.read_bytes()
            for cut in range(len(data)):
                with self.assertRaises(weightline.Error):
                    layout = Layout(memoryview(data[:cut]))
                    for i in range(layout.count):
                        layout.row(i)
                    raise weightline.Corrupt("padding alone was cut")
            for at in range(len(data)):
                mutated = bytearray(data)
                mutated[at] ^= 0x81
                try:
                    layout = Layout(memoryview(bytes(mutated)))
                    for i in range(layout.count):
                        layout.row(i)
                except (weightline.Error, UnicodeDecodeError):
                    pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
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


class FakeAgent(unittest.TestCase):
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

    def failure(self, *kinds, **request):
        with self.assertRaises(kinds or weightline.Error) as raised:
            self.agent.acquire(**{"model_name": "m", "timeout": 1, **request})
        return raised.exception

    def test_an_error_of_the_agent_has_its_class_code_and_facts(self):
        error = {"error": {"code": "not_found", "message": "no node holds m", "details": [detail(code="NotFound", field="model_name", value="m", way_out="load it", near="n")]}}
        self.answer(lambda handler: handler.stream(end=json.dumps(error).encode()))
        raised = self.failure(weightline.NotFound)
        self.assertEqual((raised.code, raised.field, raised.value, raised.way_out, raised.near), ("NotFound", "model_name", "m", "load it", ("n",)))
        self.assertEqual(str(raised), "no node holds m; near: n; way out: load it")

    def test_errors_without_a_detail_go_by_connects_code(self):
        for code, kind in [("unavailable", weightline.Unavailable), ("resource_exhausted", weightline.ResourceExhausted), ("data_loss", weightline.Corrupt), ("strange", weightline.Internal)]:
            self.answer(lambda handler, code=code: handler.stream(end=json.dumps({"error": {"code": code}}).encode()))
            self.assertIs(type(self.failure()), kind)
            self.answer(lambda handler, code=code: handler.reply(500, json.dumps({"code": code, "message": "x"}).encode()))
            self.assertIs(type(self.failure()), kind)

    def test_a_broken_detail_does_no_harm(self):
        error = {"error": {"code": "aborted", "message": "x", "details": [{"type": "weightline.errors.v1.ErrorDetail", "value": "////"}, {"type": "other"}, 5]}}
        self.answer(lambda handler: handler.stream(end=json.dumps(error).encode()))
        self.assertIs(type(self.failure()), weightline.InUse)

    def test_answers_that_are_cut_off_or_nonsense(self):
        self.answer(lambda handler: handler.stream({"progress": {"state": "finding"}}, end=None))
        self.failure(weightline.Unavailable)
        self.answer(lambda handler: handler.stream())
        self.failure(weightline.Unavailable)
        self.answer(lambda handler: handler.reply(200, b"\x00\xff\xff\xff\xffx", "application/connect+json"))
        self.failure(weightline.Unavailable)
        self.answer(lambda handler: handler.reply(200, b"\x00\x00\x00\x00\x02[]\x02\x00\x00\x00\x02{}", "application/connect+json"))
        self.failure(weightline.Unavailable)
        self.answer(lambda handler: handler.reply(200, b"\x00\x00\x00\x00\x01{", "application/connect+json"))
        self.failure(weightline.Unavailable)
        self.answer(lambda handler: handler.connection.shutdown(socket.SHUT_RDWR))
        self.failure(weightline.Unavailable)

    def test_progress_is_told(self):
        events = [{"progress": {"state": "receiving", "verifiedBytes": str(2**53 + 1), "totalBytes": str(2**54)}}, {"progress": {"state": "finding"}}]
        self.answer(lambda handler: handler.stream(*events))
        seen = []
        self.failure(progress=seen.append)
        self.assertEqual(seen, [{"state": "receiving", "verified_bytes": 2**53 + 1, "total_bytes": 2**54}, {"state": "finding", "verified_bytes": 0, "total_bytes": 0}])

    def test_an_agent_that_does_not_answer(self):
        from weightline import agent

        before, agent._GRACE_S = agent._GRACE_S, 0.2
        try:
            event = threading.Event()
            self.answer(lambda handler: event.wait(10))
            self.failure(weightline.DeadlineExceeded, timeout=0.2)
            event.set()
        finally:
            agent._GRACE_S = before

    def test_arguments_that_cannot_be_right_are_named(self):
        for request, field in [
            ({"model_name": None}, "model_name"),
            ({"identity": {"model_name": "m"}}, "model_name"),
            ({"model_name": None, "identity": {"modell": "m"}}, "identity.modell"),
            ({"model_name": None, "identity": {"model_name": 5}}, "identity.model_name"),
            ({"model_name": None, "identity": {"model_name": "m", "extra_parameters": {"a": 1}}}, "identity.extra_parameters"),
            ({"timeout": 0}, "timeout"),
            ({"timeout": float("nan")}, "timeout"),
            ({"rank": -1}, "rank"),
            ({"rank": "0"}, "rank"),
        ]:
            self.assertEqual(self.failure(weightline.InvalidArgument, **request).field, field)

    def held(self, descriptors=1):
        holding = {"objectDigest": "", "kind": "files", "totalBytes": "4", "layoutBytes": "8"}
        ticket = {"id": base64.b64encode(bytes(16)).decode(), "secret": base64.b64encode(bytes(32)).decode()}
        return {"held": {"leaseId": "l", "holding": holding, "ticket": ticket, "descriptors": descriptors}}

    def serve_descriptors(self, answer):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self.path + ".fd")
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            request = connection.recv(100)
            self.assertEqual(request, b"WLFD" + struct.pack("<I", 1) + bytes(48))
            answer(connection)
            connection.close()
            listener.close()

        threading.Thread(target=serve, daemon=True).start()

    def test_what_the_descriptor_socket_may_answer(self):
        self.answer(lambda handler: handler.stream(self.held()) if handler.path.endswith("Acquire") else handler.reply(200, b"{}"))
        before = len(os.listdir("/proc/self/fd"))

        def with_fds(header, count):
            def answer(connection):
                fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
                connection.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
                for fd in fds:
                    os.close(fd)

            return answer

        for answer, kind in [
            (lambda c: c.send(json.dumps({"code": "PermissionDenied", "message": "no"}).encode()), weightline.PermissionDenied),
            (lambda c: c.send(b"nonsense"), weightline.Unavailable),
            (lambda c: None, weightline.Unavailable),
            (with_fds(struct.pack("<II", 2, 0), 1), weightline.Corrupt),
            (with_fds(struct.pack("<II", 1, 1), 1), weightline.Corrupt),
            (with_fds(struct.pack("<II", 1, 0), 3), weightline.Corrupt),
            (with_fds(b"short", 1), weightline.Corrupt),
            (with_fds(struct.pack("<II", 1, 0), 1), weightline.Corrupt),
        ]:
            try:
                os.unlink(self.path + ".fd")
            except FileNotFoundError:
                pass
            self.serve_descriptors(answer)
            self.failure(kind)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before + 2, "no descriptor is left open")


class NoAgent(unittest.TestCase):
    def test_no_socket_and_a_dead_one(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaises(weightline.Unavailable) as raised:
                weightline.connect(folder + "/none").acquire(model_name="m")
            self.assertIn("there is no socket", str(raised.exception))
            dead = socket.socket(socket.AF_UNIX)
            dead.bind(folder + "/dead")
            dead.close()
            with self.assertRaises(weightline.Unavailable) as raised:
                weightline.connect(folder + "/dead").acquire(model_name="m")
            self.assertIn("mount the socket's directory", str(raised.exception))

    def test_the_path_comes_from_the_call_the_variable_or_the_default(self):
        before = os.environ.pop("MX_AGENT_SOCKET", None)
        try:
            self.assertEqual(weightline.connect().path, "/run/weightline/agent.sock")
            os.environ["MX_AGENT_SOCKET"] = "/x"
            self.assertEqual(weightline.connect().path, "/x")
            self.assertEqual(weightline.connect("/y").path, "/y")
        finally:
            os.environ.pop("MX_AGENT_SOCKET", None)
            if before is not None:
                os.environ["MX_AGENT_SOCKET"] = before


if __name__ == "__main__":
    unittest.main()
