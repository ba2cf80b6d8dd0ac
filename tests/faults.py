"""Answers of a server, and how a test spoils them.

A fault is a function(request, reply) that changes the reply or the way it is delivered. A fault
that has the attribute "unheard" comes in place of what the request asks for, which is not done.
"""
import itertools
import json
import os
import socket
import struct
import time
from dataclasses import dataclass, field

RESOURCES = ["directory", "newNonce", "newAccount", "newOrder", "authz", "challenge", "order",
             "finalize", "certificate"]
ERROR = "urn:ietf:params:acme:error:"
MISSING = Ellipsis                          # a value for put(): take the field away


def send_all(handler, data):
    """Deliver the answer as it should be."""
    handler.wfile.write(data)


@dataclass
class Reply:
    """One answer: the body is bytes, or something that is sent as JSON."""
    status: int = 200
    body: object = b""
    headers: dict = field(default_factory=dict)
    deliver: object = send_all

    def render(self, head=False):
        """Return the bytes of the answer; a header whose value is None is left out."""
        body, kind = self.body, "application/pem-certificate-chain"
        if not isinstance(body, bytes):
            body, kind = json.dumps(body).encode(), "application/json"
        headers = {"Content-Type": kind, "Content-Length": len(body), **self.headers}
        lines = ["%s: %s\r\n" % item for item in headers.items() if item[1] is not None]
        text = "HTTP/1.1 %d as scripted\r\n%s\r\n" % (self.status, "".join(lines))
        return text.encode("latin-1") + (b"" if head else body)


def change(status=None, headers=()):
    """The answer's HTTP status or headers differ from the honest ones."""
    def fault(request, reply):
        reply.status = status or reply.status
        reply.headers.update(headers)
    return fault


def put(paths, value):
    """Fields of the answer's JSON differ; a path is such as "challenges.2.token"."""
    def fault(request, reply):
        for path in paths.split():
            *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
            body = reply.body
            for step in steps:
                body = body[step]
            if value is MISSING:
                del body[last]
            else:
                body[last] = value
    return fault


def fields(**values):
    """Some fields of the answer's JSON differ."""
    return lambda request, reply: reply.body.update(values)


def replace(body, status=None, headers=()):
    """Another body: bytes, or a value that becomes JSON."""
    def fault(request, reply):
        reply.body = body
        change(status, headers)(request, reply)
    return fault


def problem(kind, status=403, headers=(), heard=False, **more):
    """The CA refuses (if heard: though it has carried out what was asked)."""
    body = {"type": ERROR + kind, "detail": "as scripted", "status": status, **more}
    fault = replace(body, status, {"Content-Type": "application/problem+json", **dict(headers)})
    fault.unheard = not heard
    return fault


def delivered(deliver, heard=True):
    """A fault by a function(handler, data) that delivers the answer in its own way."""
    def fault(request, reply):
        reply.deliver = deliver
    fault.unheard = not heard
    return fault


def reset(sock):
    """End a TCP connection by a reset, at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(sock.detach())


def hang_up(handler, data):
    """Reset the connection in place of the answer."""
    handler.close_connection = True
    reset(handler.connection)


def stay_silent(handler, data):
    """Never answer: hold the connection until the client has left."""
    while handler.connection.recv(1):
        pass


def closing(part):
    """Give a part (a function) of the answer, then close without having said so."""
    def deliver(handler, data):
        handler.close_connection = True
        handler.wfile.write(part(data))
    return deliver


close_after, close_instead = closing(bytes), closing(lambda data: b"")
cut_short = closing(lambda data: data[:-max(1, len(data.split(b"\r\n\r\n", 1)[1]) // 2)])


def wire(data):
    """These bytes instead of an answer, then the end of the connection."""
    return closing(lambda honest: data)


def drip(head, endless):
    """Say the head one byte at a time, then the endless bytes again and again."""
    def deliver(handler, data):
        for byte in itertools.chain(head, itertools.cycle(endless)):
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)
    return deliver


def flood(length=None):
    """An answer of 50 MB, with a Content-Length or ended by the connection's end."""
    said = b"Content-Length: %d" % length if length else b"Connection: close"
    head = b"HTTP/1.1 200 OK\r\n" + said + b"\r\n\r\n{\"a\": \""
    return closing(lambda honest: head + b"x" * 50000000)
