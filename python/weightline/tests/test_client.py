"""The client against the layout's test vectors and an agent of the test's own."""

import array
import base64
import json
import os
import socket
import struct
import tempfile
import threading
import unittest
from pathlib import Path

import weightline
from weightline.layout import Layout, Names

from support import AgentCase, detail, layout

VECTORS = Path(__file__).resolve().parents[3] / "packages/rdma-native/test/vectors/layout"


class LayoutVectors(unittest.TestCase):
    def test_every_vector(self):
        paths = sorted(VECTORS.glob("*.bin"))
        self.assertGreaterEqual(len(paths), 9)
        for path in paths:
            with self.subTest(path.stem):
                expected = json.loads(path.with_suffix(".json").read_text())
                read = Layout(memoryview(path.read_bytes()))
                self.assertEqual((read.kind, read.algorithm, read.chunk_bytes), (expected["kind"], expected["algorithm"], expected["chunk_bytes"]))
                self.assertEqual([(str(s.nbytes), s.path) for s in read.segments], [(s["bytes"], s["path"]) for s in expected["segments"]])
                rows = [read.row(i) for i in range(read.count)]
                self.assertEqual(
                    [(r.name, r.dtype, [str(d) for d in r.shape], r.segment, str(r.offset), str(r.nbytes)) for r in rows],
                    [(i["name"], i["dtype"], i["shape"], i["segment"], i["offset"], i["bytes"]) for i in expected["items"]],
                )
                names = Names(read)
                self.assertEqual([read.find(name) for name in names], list(range(read.count)))
                self.assertEqual(read.find("no such name"), -1)
                self.assertNotIn(5, names)

    def test_cut_and_flipped_layouts_raise_and_never_crash(self):
        for path in sorted(VECTORS.glob("*.bin")):
            data = path.read_bytes()
            for cut in range(len(data)):
                with self.assertRaises(weightline.Corrupt, msg=f"{path.stem} cut at {cut}"):
                    Layout(memoryview(data[:cut]))
            with self.assertRaises(weightline.Corrupt):
                Layout(memoryview(data + bytes(8)))
            for at in range(len(data)):
                mutated = bytearray(data)
                mutated[at] ^= 0x81
                try:
                    read = Layout(memoryview(bytes(mutated)))
                    for i in range(read.count):
                        read.row(i)
                    list(Names(read))
                except weightline.Error:
                    pass

    def test_headers_and_columns_that_lie_are_corrupt(self):
        one = [("a", "F32", (4,), 0, 0, 16)]
        segments = [(16, "")]
        self.assertEqual(Layout(memoryview(layout(one, segments))).row(0).shape, (4,), "what is changed below is right before")
        for header in [
            {"kind": "other"},
            {"kind": 5},
            {"algorithm": None},
            {"items": -1},
            {"items": True},
            {"items": 1.0},
            {"items": 2**40},
            {"dims": "1"},
            {"dtypes": "F32"},
            {"dtypes": [5]},
            {"segments": {}},
            {"segments": [5]},
            {"segments": [{}]},
            {"segments": [{"bytes": 16, "path": 5}]},
        ]:
            with self.subTest(header), self.assertRaises(weightline.Corrupt):
                Layout(memoryview(layout(one, segments, header=header)))
        for text in [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000]:
            with self.subTest(text[:9]), self.assertRaises(weightline.Corrupt):
                Layout(memoryview(layout(one, segments, raw_header=text)))
        with self.assertRaises(weightline.Refused) as raised:
            Layout(memoryview(b"WLLAYOUT\2" + layout(one, segments)[9:]))
        self.assertIn("upgrade", raised.exception.way_out)

    def test_rows_that_lie_are_corrupt_when_they_are_asked_for(self):
        def row(*fields, **more):
            return Layout(memoryview(layout([fields], [(16, "")], **more)))

        for lie in [
            row("a", "F32", (4,), 1, 0, 16),
            row("a", "F32", (4,), 0, 4, 16),
            row("a", "F32", (4,), 0, 2**64 - 8, 16),
            row("a", "F32", (1,) * 17, 0, 0, 16),
            row(b"\xff", "F32", (4,), 0, 0, 16),
            row("a", "F32", (4,), 0, 0, 16, header={"dtypes": []}),
        ]:
            with self.assertRaises(weightline.Corrupt):
                lie.row(0)
        with self.assertRaises(weightline.Corrupt):
            list(Names(row(b"\xff", "F32", (4,), 0, 0, 16)))
        twice = Layout(memoryview(layout([("a", "U8", (1,), 0, 0, 1)] * 2, [(16, "")])))
        with self.assertRaises(weightline.Corrupt):
            for _ in range(100):
                twice.find("a")
        data = bytearray(layout([("ab", "U8", (1,), 0, 0, 1), ("cd", "U8", (1,), 0, 0, 1)], [(16, "")]))
        at = data.index(struct.pack("<II", 2, 4))
        data[at] = 9
        backwards = Layout(memoryview(bytes(data)))
        for ask in (lambda: list(Names(backwards)), lambda: backwards.name(0), lambda: backwards.name(1)):
            with self.assertRaises(weightline.Corrupt):
                ask()


class Answers(AgentCase):
    def failure(self, *kinds, **request):
        with self.assertRaises(kinds or weightline.Error) as raised:
            self.acquire(**request)
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

    def test_an_error_of_a_wrong_shape_is_still_one_of_ours(self):
        for error in ["x", [1], {"details": 5}, {"details": "ab"}, {"message": 5, "code": []}]:
            self.answer(lambda handler, error=error: handler.stream(end=json.dumps({"error": error}).encode()))
            self.assertIs(type(self.failure()), weightline.Internal)
            self.answer(lambda handler, error=error: handler.reply(500, json.dumps(error).encode()))
            self.assertIs(type(self.failure()), weightline.Internal)
        endless = base64.b64encode(b"\xff" * 100_000).decode()
        error = {"code": "not_found", "details": [{"type": "weightline.errors.v1.ErrorDetail", "value": endless}]}
        self.answer(lambda handler: handler.stream(end=json.dumps({"error": error}).encode()))
        self.assertIs(type(self.failure()), weightline.NotFound)
        overlong = base64.b64encode(b"\x92" + b"\x80" * 11 + b"\0" + b"\1x").decode()
        error["details"][0]["value"] = overlong
        self.answer(lambda handler: handler.stream(end=json.dumps({"error": error}).encode()))
        self.assertEqual(self.failure(weightline.NotFound).field, "", "a number of more than ten bytes is none")

    def test_an_agent_that_says_held_wrongly(self):
        right = {**self.held()["held"]}
        for change in [
            {"ticket": None},
            {"ticket": {}},
            {"ticket": {"id": 5, "secret": ""}},
            {"descriptors": 0},
            {"descriptors": -1},
            {"descriptors": 10**6},
            {"descriptors": "1"},
        ]:
            with self.subTest(change):
                self.answer(lambda handler, change=change: handler.stream({"held": {**right, **change}}))
                self.failure(weightline.Corrupt)
        self.answer(lambda handler: handler.stream({"progress": {"verifiedBytes": "many"}}))
        self.failure(weightline.Corrupt, progress=lambda _: None)

    def test_an_exception_of_progress_ends_the_call(self):
        gone = threading.Event()

        def answer(handler):
            handler.stream({"progress": {"state": "finding"}}, end=None)
            if handler.connection.recv(1) == b"":
                gone.set()

        self.answer(answer)

        def stop(_):
            raise KeyboardInterrupt

        try:
            self.acquire(progress=stop, timeout=60)
        except KeyboardInterrupt as error:
            self.assertTrue(gone.wait(10), "the agent is not told while the exception is kept")
            self.assertIsNotNone(error.__traceback__)
        else:
            self.fail("the exception was lost")

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
            ({"model_name": 5}, "model_name"),
            ({"revision": None, "rank": 0.5}, "rank"),
            ({"revision": 5}, "revision"),
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

        for answer, kind, field in [
            (lambda c: c.send(json.dumps({"code": "PermissionDenied", "message": "no", "field": "ticket"}).encode()), weightline.PermissionDenied, "ticket"),
            (lambda c: c.send(b"nonsense"), weightline.Unavailable, ""),
            (lambda c: None, weightline.Unavailable, ""),
            (with_fds(struct.pack("<II", 2, 0), 1), weightline.Corrupt, "descriptors"),
            (with_fds(struct.pack("<II", 1, 1), 1), weightline.Corrupt, "descriptors"),
            (with_fds(struct.pack("<II", 1, 0), 3), weightline.Corrupt, "descriptors"),
            (with_fds(b"short", 1), weightline.Corrupt, "descriptors"),
            (with_fds(struct.pack("<II", 1, 0), 1), weightline.Corrupt, "segment"),
        ]:
            try:
                os.unlink(self.path + ".fd")
            except FileNotFoundError:
                pass
            self.serve_descriptors(answer)
            self.assertEqual(self.failure(kind).field, field)
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
