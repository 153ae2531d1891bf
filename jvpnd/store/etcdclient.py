"""Requests to etcd: the members in turn until one answers, each request bounded in time and size.

etcd3gw knows the addresses; what is asked and answered is the JSON of etcd's gRPC gateway. Every
thread has a Connection of its own, whose HTTP connections stay open.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, Final, NoReturn

import requests
import urllib3
from etcd3gw.client import Etcd3Client

from jvpnd.configcluster import EtcdAccess

CONNECT_S: Final = 0.5
ATTEMPT_S: Final = 1.5  # then the next member is asked
PAUSE_S: Final = 0.1  # when all of them have failed
MAX_ANSWER: Final = 16 * 1024 * 1024  # bytes
_CHUNK: Final = 65536
_API: Final = "/v3/"  # etcd 3.4 and newer

# google.rpc.Code
INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, OUT_OF_RANGE = 3, 4, 5, 11
UNAVAILABLE, UNAUTHENTICATED = 14, 16
_BROKEN: Final = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
_ANOTHER_MAY: Final = (DEADLINE_EXCEEDED, UNAVAILABLE)  # no leader, a member that is stopping


class EtcdError(Exception):
    """Why it did not work, in one line."""


class Unreachable(EtcdError):  # noqa: N818
    """No member answered in time; what was asked may have been done."""


class Refused(EtcdError):  # noqa: N818
    """etcd says no, with a `code` of google.rpc.Code; nothing was done."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in message[:200]))
        self.code = code


class TooLarge(EtcdError):  # noqa: N818
    """The answer is larger than MAX_ANSWER: ask for less at a time."""


class Login:
    """The token that all connections share; "" without a user."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token = ""


class Connection:
    """One thread's."""

    def __init__(self, access: EtcdAccess, login: Login) -> None:
        self._access = access
        self._login = login
        self._session = _session(access)
        self._members = [
            Etcd3Client(host, port, scheme, api_path=_API, session=self._session)
            for scheme, host, port in access.endpoints
        ]
        self._at = 0  # the one that is asked next

    def close(self) -> None:
        self._session.close()

    def ask(self, path: str, body: Mapping[str, Any], within_s: float) -> dict[str, Any]:
        """What etcd answers; asked again elsewhere where that may help, so what is asked must be
        such that it can be done twice. Raises EtcdError."""
        until_s, failed, problem = time.monotonic() + within_s, 0, "no time was left"
        renewed = False
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                return self._once(path, body, min(left_s, ATTEMPT_S))
            except Refused as refusal:
                if refusal.code in _ANOTHER_MAY:
                    problem = self._told(refusal)
                elif _is_about_token(refusal) and self._access.username and not renewed:
                    renewed = True
                    continue
                else:
                    raise
            except (*_BROKEN, ValueError) as error:
                problem = self._told(error)
            self._at = (self._at + 1) % len(self._members)
            failed += 1
            if failed % len(self._members) == 0:
                time.sleep(max(0.0, min(PAUSE_S, until_s - time.monotonic())))
        raise Unreachable(problem)

    def follow(
        self, path: str, body: Mapping[str, Any], silence_s: float
    ) -> Iterator[dict[str, Any]]:
        """The messages of a stream, which ends after `silence_s` without one; the next is opened at
        another member. Raises EtcdError."""
        try:
            token = self._token(CONNECT_S + ATTEMPT_S)
            with closing(self._post(path, body, token, silence_s)) as response:
                self._require_ok(response, token)
                for line in _lines(response):
                    yield _result(line)
        except urllib3.exceptions.ReadTimeoutError:
            return  # silence
        except (*_BROKEN, ValueError) as error:
            raise Unreachable(self._told(error)) from error
        finally:
            self._at = (self._at + 1) % len(self._members)

    def date(self, within_s: float) -> str:
        """The time of the member that is asked next, as HTTP says it; "" if it does not. Raises
        EtcdError."""
        url, read_s = f"{self._members[self._at].base_url}/version", min(within_s, ATTEMPT_S)
        wait_s = (min(read_s, CONNECT_S), read_s)
        try:
            with self._session.get(url, stream=True, timeout=wait_s) as response:
                return response.headers.get("Date", "")
        except _BROKEN as error:
            raise Unreachable(self._told(error)) from error

    def _once(self, path: str, body: Mapping[str, Any], within_s: float) -> dict[str, Any]:
        token = self._token(within_s)
        with closing(self._post(path, body, token, within_s)) as response:
            self._require_ok(response, token)
            return _object(_content(response, time.monotonic() + within_s))

    def _post(
        self, path: str, body: Mapping[str, Any], token: str, read_s: float
    ) -> requests.Response:
        headers = {"Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = token
        if path == "watch":
            headers["Grpc-Metadata-hasleader"] = "true"  # not at a member that is cut off
        return self._session.post(
            self._members[self._at].get_url(path),
            data=json.dumps(body),
            headers=headers,
            stream=True,
            timeout=(min(read_s, CONNECT_S), read_s),
            allow_redirects=False,
        )

    def _require_ok(self, response: requests.Response, token: str) -> None:
        if response.status_code == 200:
            return
        text = _content(response, time.monotonic() + CONNECT_S)
        try:
            told = _object(text)
            refusal = Refused(int(told.get("code", 0)), str(told.get("error", "")))
        except (ValueError, TypeError):
            raise ValueError(f"HTTP status {response.status_code}") from None
        if _is_about_token(refusal):
            self._forget(token)
        raise refusal

    # --- the user ---

    def _token(self, within_s: float) -> str:
        if not self._access.username:
            return ""
        login = self._login
        with login.lock:
            if not login.token:
                body = {"name": self._access.username, "password": self._access.password}
                with closing(self._post("auth/authenticate", body, "", within_s)) as response:
                    self._require_ok(response, "")
                    answer = _object(_content(response, time.monotonic() + within_s))
                login.token = str(answer.get("token", ""))
            return login.token

    def _forget(self, token: str) -> None:
        """It is of no use any more; another thread may have a new one already."""
        login = self._login
        if token:
            with login.lock:
                if login.token == token:
                    login.token = ""

    def _told(self, error: Exception) -> str:
        return f"{self._members[self._at].base_url}: {_words(error)[:200]}"


def _words(error: Exception) -> str:
    if isinstance(error, ValueError) and not isinstance(error, _BROKEN):
        return str(error)
    return _said(error) or "the answer broke off"


def _said(error: BaseException) -> str:
    """What the system or OpenSSL said; the libraries in between wrap it."""
    for inner in (error.__cause__, error.__context__, *error.args):
        if isinstance(inner, BaseException) and (text := _said(inner)):
            return text
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return error.strerror or str(error)
    return ""


def _session(access: EtcdAccess) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy, no .netrc
    session.verify = True if access.ca_file is None else str(access.ca_file)
    if access.certificate is not None:
        session.cert = (str(access.certificate[0]), str(access.certificate[1]))
    return session


def _is_about_token(refusal: Refused) -> bool:
    """It has expired, or users were changed since."""
    return refusal.code == UNAUTHENTICATED or (
        refusal.code == INVALID_ARGUMENT and "revision of auth store is old" in str(refusal)
    )


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """As they come; requests' own iterators wait until they have as much as was asked for."""
    while chunk := response.raw.read1(_CHUNK, decode_content=False):
        yield chunk


def _content(response: requests.Response, until_s: float) -> bytes:
    """All of it, unless it is too much or comes too slowly. Raises TooLarge, ValueError."""
    content = bytearray()
    for chunk in _chunks(response):
        content += chunk
        if len(content) > MAX_ANSWER:
            raise TooLarge("an answer that is too large")
        if time.monotonic() > until_s:
            raise ValueError("an answer that comes too slowly")
    return bytes(content)


def _lines(response: requests.Response) -> Iterator[bytes]:
    """The lines that are not empty. Raises TooLarge."""
    rest = b""
    for chunk in _chunks(response):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
        if len(rest) > MAX_ANSWER:
            raise TooLarge("a message that is too large")


def _object(text: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("an answer that is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("an answer that is no object")
    return value


def _result(line: bytes) -> dict[str, Any]:
    """One message of a stream. Raises Refused, ValueError."""
    message = _object(line)
    if isinstance(error := message.get("error"), dict):
        _refuse(error)
    result = message.get("result")
    if not isinstance(result, dict):
        raise ValueError("a message without a result")
    return result


def _refuse(error: Mapping[str, Any]) -> NoReturn:
    code = error.get("grpc_code", error.get("code", 0))
    raise Refused(code if isinstance(code, int) else 0, str(error.get("message", "")))
