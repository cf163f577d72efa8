"""A client of the local API that does what a good one would not: pipelines, is silent, does not read."""

import json
import socket
import struct
import sys

SERVICE = "/weightline.local.v1.AgentService/"
STREAMS = {"Acquire", "Load", "Pull"}


def connect(path, timeout=30.0):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    sock.connect(path)
    return sock


def request(method, message, headers=(), text=None):
    """One call's bytes; `text` in place of the message's JSON."""
    body = (json.dumps(message) if text is None else text).encode()
    if method in STREAMS:
        body = struct.pack(">BI", 0, len(body)) + body
    kind = "connect+json" if method in STREAMS else "json"
    lines = [
        "POST " + SERVICE + method + " HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/" + kind,
        "Content-Length: %d" % len(body),
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Answers:
    """Reads a connection's answers one after another."""

    def __init__(self, sock):
        self.file = sock.makefile("rb")

    def head(self):
        status = self.file.readline()
        if not status:
            return None, {}
        headers = {}
        while True:
            line = self.file.readline().strip()
            if not line:
                return int(status.split()[1]), headers
            name, value = line.decode().split(":", 1)
            headers[name.lower()] = value.strip()

    def body(self, headers):
        if headers.get("transfer-encoding") != "chunked":
            return self.file.read(int(headers.get("content-length", 0)))
        body = b""
        while True:
            size = int(self.file.readline(), 16)
            body += self.file.read(size)
            self.file.readline()
            if size == 0:
                return body

    def next(self):
        """The answer's status and JSON; a stream's last message in place of its list. (None, None) at the end."""
        status, headers = self.head()
        if status is None:
            return None, None
        body = self.body(headers)
        if headers.get("content-type", "").startswith("application/connect"):
            last = b"{}"
            while body:
                size = struct.unpack(">I", body[1:5])[0]
                if body[5 : 5 + size] not in (b"{}",):
                    last = body[5 : 5 + size]
                body = body[5 + size :]
            return status, json.loads(last)
        return status, json.loads(body or b"{}")


def ask(path, method, message, **more):
    """One call on a connection of its own."""
    sock = connect(path)
    try:
        sock.sendall(request(method, message, **more))
    except OSError:
        pass
    try:
        return Answers(sock).next()
    finally:
        sock.close()


def model(name, timeout_s=120):
    return {"wanted": {"model": {"modelName": name}}, "timeoutS": timeout_s}


def say(*words):
    print(*words)
    sys.stdout.flush()
