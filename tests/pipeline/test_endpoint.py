"""An endpoint by a real server on this machine: what is sent, tried again and refused."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from undertow.errors import ConfigError, MissingDependencyError, ModelError
from undertow.pipeline.endpoint import LARGEST_REPLY, Endpoint, asking
from undertow.records import Message

KEY = "sk-very/secret+0123456789"
MESSAGES = (Message("system", "Judge."), Message("user", "Owl? \u202e🦉 \udcff"))


@dataclass
class Reply:
    """What the server answers once."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    # Stands until the test ends, instead of an answer.
    hang: bool = False
    # Closes the connection instead of an answer.
    drop: bool = False


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Answers with the planned replies in turn, the last one over and over."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def next(self, request: Request) -> Reply:
        self.requests.append(request)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def said(content: object) -> bytes:
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message}]}).encode()


def failed(text: str) -> bytes:
    return json.dumps({"error": {"message": text, "type": "odd"}}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {k.lower(): v for k, v in self.headers.items()}
            reply = state.next(Request(self.path, headers, body))
            if reply.hang:
                state.released.wait()
            if reply.hang or reply.drop:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            # A client that had enough of a long reply is what is tested.
            with suppress(BrokenPipeError, ConnectionResetError):
                super().handle()

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(
        target=listening.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    yield state
    state.released.set()
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a variable that holds the key, as a shell's file may leave it."""
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    return "JUDGE_KEY"


def endpoint(server: Server, **settings: Any) -> Endpoint:
    return Endpoint(server.url, "judge-1", **settings)


def ask(
    where: Endpoint, *, clock: Callable[[], float] = lambda: 0.0
) -> tuple[str, list[float]]:
    """The reply, and the waits."""
    waits: list[float] = []
    with asking(where, sleep=waits.append, clock=clock) as send:
        return send(MESSAGES), waits


def fault(
    where: Endpoint, *, clock: Callable[[], float] = lambda: 0.0
) -> tuple[str, list[float]]:
    """The message of the error, and the waits before it."""
    waits: list[float] = []
    with (
        asking(where, sleep=waits.append, clock=clock) as send,
        pytest.raises(ModelError) as caught,
    ):
        send(MESSAGES)
    found: BaseException | None = caught.value
    while found is not None:  # whatever a traceback would show
        assert KEY not in f"{found!r}{found}"
        found = found.__cause__ or found.__context__
    return str(caught.value), waits


def test_the_request_is_exactly_this(server: Server, key: str) -> None:
    server.replies = [Reply(body=said("No."))]
    assert ask(endpoint(server, key_env=key, max_tokens=3)) == ("No.", [])
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body.isascii()
    assert json.loads(request.body) == {
        "model": "judge-1",
        "messages": [
            {"role": "system", "content": "Judge."},
            {"role": "user", "content": "Owl? \u202e🦉 \udcff"},
        ],
        "temperature": 0,
        "max_tokens": 3,
    }
    headers = request.headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers
    assert KEY not in str(headers | {"authorization": ""}) + request.path


def test_without_a_variable_no_key_is_sent(server: Server) -> None:
    server.replies = [Reply(body=said("yes"))]
    # A final slash is forgiven.
    assert ask(Endpoint(f"{server.url}/", "judge-1"))[0] == "yes"
    assert "authorization" not in server.requests[0].headers
    assert server.requests[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("content", [None, ""])
def test_a_model_that_refuses_says_nothing(server: Server, content: object) -> None:
    server.replies = [Reply(body=said(content))]
    assert ask(endpoint(server))[0] == ""


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_passing_faults_are_tried_again_with_longer_waits(
    server: Server, status: int
) -> None:
    server.replies = [*[Reply(status)] * 3, Reply(body=said("no"))]
    assert ask(endpoint(server)) == ("no", [1, 2, 4])
    assert len({request.body for request in server.requests}) == 1
    assert len(server.requests) == 4


def test_tries_end_and_the_last_fault_is_told(server: Server, key: str) -> None:
    server.replies = [Reply(503, failed("overloaded \x1b[2J"))]
    message, waits = fault(endpoint(server, key_env=key, attempts=3))
    assert message == (
        f"judge-1 at {server.url}: gave no answer in 3 tries; got status 503: "
        "'overloaded \\x1b[2J'; see that it runs, or wait"
    )
    assert waits == [1, 2]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        ("7", 7), ("0", 1), ("86400", 60), ("9" * 400, 60), ("soon", 1), ("-3", 1),
        ("²", 1), ("Wed, 21 Oct 2015 07:28:00 GMT", 1),
        (formatdate(4e9, usegmt=True), 60), ("Wed, 99 Oct 2015 07:28:00 GMT", 1),
    ],
)  # fmt: skip
def test_a_server_may_ask_for_a_wait_of_a_minute_at_most(
    server: Server, asked: str, wait: float
) -> None:
    asked = asked.encode("utf-8").decode("latin-1")
    server.replies = [Reply(429, headers={"Retry-After": asked}), Reply(body=said(""))]
    assert ask(endpoint(server)) == ("", [wait])


def test_a_date_to_wait_for_is_understood(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9 - 20)
    until = {"Retry-After": formatdate(4e9, usegmt=True)}
    server.replies = [Reply(503, headers=until), Reply(body=said("no"))]
    assert ask(endpoint(server)) == ("no", [20])


def test_broken_connections_are_tried_again(server: Server) -> None:
    server.replies = [Reply(drop=True), Reply(body=said("no"))]
    assert ask(endpoint(server)) == ("no", [1])


def test_where_nobody_listens_is_told(key: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]
    where = Endpoint(f"http://127.0.0.1:{port}", "m", key_env=key, attempts=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        message, waits = fault(where)
    assert f"m at http://127.0.0.1:{port}: gave no answer in 2 tries" in message
    assert "ConnectError" in message
    assert waits == [1]


def test_a_server_that_hangs_is_given_up(server: Server, key: str) -> None:
    server.replies = [Reply(hang=True)]
    where = endpoint(server, key_env=key, timeout_seconds=0.05, attempts=2)
    message, waits = fault(where)
    assert "gave no answer in 2 tries; got ReadTimeout" in message
    assert waits == [1]


def test_a_trickle_does_not_outlast_the_time(server: Server) -> None:
    server.replies = [Reply(body=b" " * 200_000 + said("no"))]
    seconds = iter(range(0, 10**6, 40))
    message, _ = fault(endpoint(server, attempts=1), clock=lambda: float(next(seconds)))
    assert "ReadTimeout: 'not whole after 60 s'" in message


def test_a_redirect_is_not_followed(server: Server, key: str) -> None:
    there = {"Location": f"{server.url}/elsewhere?key={KEY}"}
    server.replies = [Reply(307, headers=there), Reply(body=said("no"))]
    message, waits = fault(endpoint(server, key_env=key))
    assert "redirects (status 307), which is not followed" in message
    assert f"to '{server.url}/elsewhere?key=[key]'; give the final address" in message
    assert (len(server.requests), waits) == (1, [])


@pytest.mark.parametrize("status", [201, 400, 401, 404])
def test_other_faults_are_errors_at_once_and_never_show_the_key(
    server: Server, key: str, status: int
) -> None:
    for body in (failed(f"bad key {KEY}."), f"bad key {KEY}.".encode()):
        server.requests.clear()
        server.replies = [Reply(status, body)]
        message, _ = fault(endpoint(server, key_env=key))
        assert message == (
            f"judge-1 at {server.url}: answered with status {status}; got 'bad key "
            "[key].'; check address, model name and key"
        )
        assert len(server.requests) == 1


def test_a_key_at_the_end_of_what_is_shown_is_not_cut_out_of_hiding(
    server: Server, key: str
) -> None:
    server.replies = [Reply(400, b"x" * 195 + KEY.encode())]
    message, _ = fault(endpoint(server, key_env=key))
    assert KEY[:3] not in message


def test_a_key_that_comes_back_as_the_reply_is_hidden(server: Server, key: str) -> None:
    server.replies = [Reply(body=said(f"it is {KEY}"))]
    assert ask(endpoint(server, key_env=key))[0] == "it is [key]"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"\xff\xfe", b"[]", b"3", b"{}", b'{"choices": []}',
        b'{"choices": [{"text": "no"}]}', b'{"choices": {"0": 1}}', said(["no"]),
        said({"text": "no"}), said(1), b"[" * 100_000, b'{"choices": [{"message": null}]}',
    ],
    ids=range(14),
)  # fmt: skip
def test_replies_of_another_shape_are_refused(
    server: Server, key: str, body: bytes
) -> None:
    server.replies = [Reply(body=body)]
    message, waits = fault(endpoint(server, key_env=key))
    assert "sent a reply that is not understood" in message
    assert "expected JSON with choices[0].message.content" in message
    assert len(message) < 500
    assert (len(server.requests), waits) == (1, [])


def test_a_reply_that_is_too_long_is_not_read_to_its_end(server: Server) -> None:
    server.replies = [Reply(body=b" " * (64 * LARGEST_REPLY) + said("no"))]
    message, _ = fault(endpoint(server))
    assert f"sent a reply that is too long; got over {LARGEST_REPLY} bytes" in message
    server.replies = [Reply(400, body=b"y" * (64 * LARGEST_REPLY))]
    message, _ = fault(endpoint(server))
    assert "status 400; got 'yyy" in message
    assert len(message) < 500


def test_a_compressed_reply_is_refused_unread(server: Server) -> None:
    server.replies = [Reply(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})]
    assert "sent a compressed reply unasked; got 'gzip'" in fault(endpoint(server))[0]


# --- settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/v1", "url: got 'ftp://host/v1', expected one like https://"),
        ("https://", "url: got 'https://', expected one like"),
        ("host:8000/v1", "url: got 'host:8000/v1', expected one like"),
        ("https://host:port/v1", "url: cannot be understood"),
        ("https://[::1/v1", "url: cannot be understood"),
        ("https://ho st/v1", "url: got 'https://ho st/v1', expected ASCII"),
        ("https://me:hunter2@host/v1", "url: holds a name or password"),
        ("https://hunter2@host/v1", "url: holds a name or password"),
        ("https://host/v1?key=hunter2", "url: holds a query or fragment"),
        ("https://host/v1#hunter2", "url: holds a query or fragment"),
    ],
)
def test_addresses_that_do_not_work_or_hold_secrets_are_refused(
    url: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint(url, "m")
    assert f"the judge's endpoint: 1 fault(s):\n  - {message}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint("x", "", timeout_seconds=float("nan"), attempts=0, max_tokens=0)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "url", "model", "timeout", "attempts", "max_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the variable 'JUDGE_KEY' is not set"),
        (" \n", "the variable 'JUDGE_KEY' is not set"),
        ("sk-one\nsk-two", "holds spaces or characters that are not ASCII"),
        ("sk-onë", "holds spaces or characters that are not ASCII"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_unshown(
    value: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    where = Endpoint("http://127.0.0.1:9", "m", key_env="JUDGE_KEY")
    with pytest.raises(ConfigError, match="the judge's key") as caught, asking(where):
        pass
    assert message in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_nothing_of_an_endpoint_shows_the_key(key: str) -> None:
    where = Endpoint("https://host/v1", "m", key_env=key)
    with asking(where) as send:
        assert where.key() == KEY
        assert KEY not in f"{where!r}{send!r}{where.name}"


def test_a_missing_client_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with (
        pytest.raises(MissingDependencyError) as caught,
        asking(Endpoint("http://127.0.0.1:9", "m")),
    ):
        pass
    assert "pip install 'undertow[judge]'" in str(caught.value)
