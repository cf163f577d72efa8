"""Clients that mean harm: `hostile_client.py KIND SOCKET`, until killed. Says "begun" when the harm is on, then now and then what it did."""

import array
import os
import resource
import socket
import struct
import sys
import time

from raw_client import Answers, ask, connect, model, request, say

FLOOD_DESCRIPTORS = 253
SILENT = 512


def silent(path):
    """512 connections that say nothing; closed ones are made anew, three times a second."""
    open_ones = []
    first = True
    while True:
        alive = []
        for s in open_ones:
            try:
                s.setblocking(False)
                if s.recv(4096) == b"":
                    s.close()
                    continue
            except BlockingIOError:
                pass
            except OSError:
                s.close()
                continue
            alive.append(s)
        open_ones = alive
        while len(open_ones) < SILENT:
            open_ones.append(connect(path))
        if first:
            say("begun", len(open_ones))
            first = False
        time.sleep(0.3)


def crowd(path):
    """70 processes with as many silent connections as each may have; all leave when the first is killed."""
    reader, writer = os.pipe()
    done, told = os.pipe()
    for i in range(70):
        if os.fork() == 0:
            os.close(writer)
            os.close(done)
            kept = []
            for i in range(16):
                s = connect(path)
                # One that had an answer may be silent for longer.
                s.sendall(request("Status", {}))
                Answers(s).next()
                kept.append(s)
            os.write(told, b"x")
            os.read(reader, 1)
            os._exit(len(kept) - 16)
    count = 0
    while count < 70:
        count += len(os.read(done, 100))
    say("begun", count)
    while True:
        time.sleep(60)


def busy(path):
    """Keeps its core and calls nobody: what the others lose to the processor alone."""
    say("begun")
    while True:
        pass


def reconnect(path):
    """Connects and leaves, for ever."""
    say("begun")
    count, last = 0, time.monotonic()
    while True:
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        s.close()
        count += 1
        if count % 1000 == 0 and time.monotonic() - last > 1:
            say("connected", count)
            last = time.monotonic()


def unread(path):
    """Asks on four connections and reads no answer."""
    say("begun")
    one = request("Status", {})
    while True:
        socks = [connect(path) for i in range(4)]
        for s in socks:
            s.setblocking(False)
        alive = True
        while alive:
            for s in socks:
                try:
                    s.send(one * 20)
                except BlockingIOError:
                    pass
                except OSError:
                    alive = False
            time.sleep(0.01)
        for s in socks:
            s.close()
        say("closed by the agent")


def leases(path):
    """As many leases as it can get, on one connection."""
    s = connect(path)
    answers = Answers(s)
    one = request("Acquire", model("m", 5))
    got = tried = 0
    say("begun")
    while True:
        s.sendall(one)
        status, body = answers.next()
        tried += 1
        if status is None:
            s = connect(path)
            answers = Answers(s)
        elif "held" in body:
            got += 1
        if tried % 2000 == 0:
            say("tried", tried, "got", got)


def calls(path):
    """Pipelines calls on sixteen connections and reads the answers; closed ones are made anew."""
    socks = [connect(path) for i in range(16)]
    one = request("Status", {}) * 10
    say("begun")
    rounds, last = 0, time.monotonic()
    while True:
        for i, s in enumerate(socks):
            try:
                s.settimeout(1)
                s.sendall(one)
                if s.recv(1 << 20) == b"":
                    raise OSError
            except OSError:
                s.close()
                socks[i] = connect(path)
        rounds += 1
        if time.monotonic() - last > 1:
            say("rounds", rounds)
            last = time.monotonic()


def descriptors(path):
    """Throws descriptors at the descriptor socket, with and without a message, and reads nothing."""
    files = [os.open("/dev/null", os.O_RDONLY) for i in range(FLOOD_DESCRIPTORS)]
    extra = array.array("i", files)
    ticket = b"WLFD" + struct.pack("<I", 1) + bytes(48)
    say("begun")
    count, last = 0, time.monotonic()
    while True:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.settimeout(5)
        try:
            s.connect(path + ".fd")
            for data in (ticket, b"x", ticket * 4):
                s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, extra)])
                count += 1
        except OSError:
            pass
        s.close()
        if time.monotonic() - last > 1:
            say("messages", count)
            last = time.monotonic()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kinds = {"busy": busy, "silent": silent, "crowd": crowd, "reconnect": reconnect, "unread": unread, "leases": leases, "calls": calls, "descriptors": descriptors}
    kinds[sys.argv[1]](sys.argv[2])
