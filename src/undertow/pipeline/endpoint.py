"""Asks a model behind an OpenAI-compatible endpoint: messages out, one short text back.

The only module that speaks HTTP itself (`httpx2`, of the extra `judge`). Everything is
bounded: time, tries, waits and the reply's size. The key comes from a variable of the
environment when it is used; it stands in the request's header and nowhere else, and
since redirects are not followed it reaches the named address alone. Knows nothing of
rows or of what is asked.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from undertow.errors import ConfigError, MissingDependencyError, ModelError
from undertow.records import Message

if TYPE_CHECKING:
    import httpx2

LARGEST_REPLY = 1 << 18
"""Bytes of a reply that are read."""

LONGEST_WAIT_SECONDS = 60.0
"""Between two tries, whatever the server asks for."""

_OK, _TOO_MANY, _SERVER_FAULT = 200, 429, 500
_SHOWN = 200
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how patiently.

    Attributes:
        url: Address up to what precedes `/chat/completions`, without name, password,
            query or fragment.
        model: The model's name there.
        key_env: Variable of the environment that holds the key; None sends no key.
        timeout_seconds: For one try: connecting, each wait for bytes, and all in all.
        attempts: Tries of one request.
        max_tokens: Of the reply.

    Raises:
        ConfigError: A value is wrong; every fault at once. Never shows a secret that
            stands in the address.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout_seconds: float = 60.0
    attempts: int = 5
    max_tokens: int = 8

    def __post_init__(self) -> None:
        faults = [*_url_faults(self.url)]
        if not self.model:
            faults.append("model: got '', expected the model's name at the endpoint")
        if not self.timeout_seconds > 0:
            faults.append(f"timeout: got {self.timeout_seconds}, expected over 0 s")
        if self.attempts < 1:
            faults.append(f"attempts: got {self.attempts}, expected at least 1")
        if self.max_tokens < 1:
            faults.append(f"max_tokens: got {self.max_tokens}, expected at least 1")
        if faults:
            raise ConfigError("the judge's endpoint", faults)

    @property
    def name(self) -> str:
        """The model and its address."""
        return f"{self.model} at {self.url.rstrip('/')}"

    def key(self) -> str | None:
        """The key, as the environment has it now.

        Raises:
            ConfigError: The variable is missing, or holds what no header may.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if _KEY.fullmatch(key):
            return key
        got = "holds spaces or characters that are not ASCII" if key else "is not set"
        raise ConfigError(
            "the judge's key",
            [f"the variable {self.key_env!r} {got}; set it to the endpoint's key"],
        )


def _url_faults(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        yield "url: cannot be understood; expected one like https://host:8000/v1"
        return
    if parts.username or parts.password or "@" in parts.netloc:
        yield "url: holds a name or password; give the key by a variable instead"
    elif parts.query or parts.fragment or "?" in url or "#" in url:
        yield "url: holds a query or fragment; give the address up to /v1"
    elif parts.scheme not in ("http", "https") or not host:
        yield f"url: got {url!r}, expected one like https://host:8000/v1"
    elif not _KEY.fullmatch(url):
        yield f"url: got {url!r}, expected ASCII without spaces"


class _Reply(NamedTuple):
    """Status, the headers that matter, and the body, cut at the largest."""

    status: int
    retry_after: str | None
    location: str | None
    encoding: str | None
    body: bytes
    is_cut: bool


@contextmanager
def asking(
    endpoint: Endpoint,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[Sequence[Message]], str]]:
    """Yields a function that sends messages and returns the text of the reply.

    The text is "" where the model gave none (a refusal, a filter of the provider).
    Too many requests, faults of the server, timeouts and connections that fail or break
    are tried again, after 1, 2, 4 … seconds or what the server asks for, at most a
    minute; everything else is an error at once. A try that timed out may have been
    answered, and billed, all the same.

    Args:
        endpoint: Where, and how patiently.
        sleep: Waits; for tests.
        clock: Seconds that only grow; for tests.

    Raises:
        MissingDependencyError: `httpx2` is not installed.
        ConfigError: The key is not in the environment.
        ModelError: From the function: no reply after all tries, or one that is not
            understood.
    """
    try:
        import httpx2
    except ImportError as error:
        raise MissingDependencyError("a judge at an endpoint", "judge") from error
    key = endpoint.key()
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        # Nothing that could unfold into more than was read.
        "Accept-Encoding": "identity",
    }
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    with httpx2.Client(
        headers=headers, timeout=endpoint.timeout_seconds, follow_redirects=False
    ) as client:
        yield _Asker(endpoint, client, key, sleep, clock)


class _Asker:
    """One endpoint, its open client, and the key that no message may show."""

    def __init__(
        self,
        endpoint: Endpoint,
        client: "httpx2.Client",
        key: str | None,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._endpoint, self._client, self._key = endpoint, client, key
        self._sleep, self._clock = sleep, clock
        self._address = f"{endpoint.url.rstrip('/')}/chat/completions"

    def __call__(self, messages: Sequence[Message]) -> str:
        """The reply to messages.

        Raises:
            ModelError: There is none after all tries, or it is not understood.
        """
        body = {
            "model": self._endpoint.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": 0,
            "max_tokens": self._endpoint.max_tokens,
        }
        return self._text(self._answered(json.dumps(body).encode("ascii")))

    def _answered(self, body: bytes) -> _Reply:
        """The first reply that is no passing fault."""
        import httpx2

        passing = (
            httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError,
            httpx2.ProxyError,
        )  # fmt: skip
        attempts, fault = self._endpoint.attempts, ""
        for attempt in range(attempts):
            asked: float | None = None
            try:
                reply = self._posted(body)
            except passing as error:
                fault = f"{type(error).__name__}: {self._shown(str(error))}"
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                what = f"{type(error).__name__}: {self._shown(str(error))}"
                raise self._fault("cannot be asked", what, "check it") from error
            else:
                if reply.status != _TOO_MANY and reply.status < _SERVER_FAULT:
                    return reply
                fault = f"status {reply.status}: {self._said(reply)}"
                asked = _seconds(reply.retry_after)
            if attempt + 1 < attempts:
                self._sleep(min(max(2.0**attempt, asked or 0), LONGEST_WAIT_SECONDS))
        raise self._fault(
            f"gave no answer in {attempts} tries", fault, "see that it runs, or wait"
        )

    def _posted(self, body: bytes) -> _Reply:
        import httpx2

        limit = self._endpoint.timeout_seconds
        end = self._clock() + limit
        data = bytearray()
        with self._client.stream("POST", self._address, content=body) as response:
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > LARGEST_REPLY:
                    break
                # The client's own limit is one for each wait: a trickle passes it.
                if self._clock() > end:
                    raise httpx2.ReadTimeout(f"not whole after {limit:g} s")
            head = response.headers
            return _Reply(
                response.status_code, head.get("retry-after"), head.get("location"),
                head.get("content-encoding"), bytes(data[:LARGEST_REPLY]),
                len(data) > LARGEST_REPLY,
            )  # fmt: skip

    def _text(self, reply: _Reply) -> str:
        """The text in a reply."""
        if reply.location is not None and 300 <= reply.status < 400:
            raise self._fault(
                f"redirects (status {reply.status}), which is not followed",
                f"to {self._shown(reply.location)}", "give the final address",
            )  # fmt: skip
        if reply.status != _OK:
            raise self._fault(
                f"answered with status {reply.status}", self._said(reply),
                "check address, model name and key",
            )  # fmt: skip
        if reply.is_cut:
            raise self._fault(
                "sent a reply that is too long", f"over {LARGEST_REPLY} bytes",
                "check that it is a chat-completions endpoint",
            )  # fmt: skip
        if reply.encoding not in (None, "identity"):
            raise self._fault(
                "sent a compressed reply unasked", self._shown(reply.encoding),
                "switch that off there",
            )  # fmt: skip
        try:
            content = json.loads(reply.body)["choices"][0]["message"]["content"]
            if not isinstance(content, str | None):
                raise TypeError("content")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._fault(
                "sent a reply that is not understood; expected JSON with "
                "choices[0].message.content", self._said(reply),
                "check that it is a chat-completions endpoint",
            ) from error  # fmt: skip
        return self._without_key(content or "")

    def _said(self, reply: _Reply) -> str:
        """What an unhappy server says, for a message."""
        text = reply.body.decode("utf-8", "replace")
        try:
            found: Any = json.loads(reply.body)["error"]["message"]
            text = found if isinstance(found, str) else text
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        return self._shown(text)

    def _shown(self, text: str) -> str:
        """Foreign text for a message: without the key, quoted, cut."""
        text = self._without_key(text.strip())
        return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _fault(self, what: str, got: str, todo: str) -> ModelError:
        return ModelError(f"{self._endpoint.name}: {what}; got {got}; {todo}")


def _seconds(retry_after: str | None) -> float | None:
    """The wait that a server asks for, in seconds or up to a date; None if unreadable."""
    if retry_after is None:
        return None
    digits = retry_after.strip()
    if digits.isascii() and digits.isdigit():
        return float(digits[:9])
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
