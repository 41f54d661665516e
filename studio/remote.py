"""Requests in the process of a running server of the same data folder (`studio serve`).

A command that finds one sends its requests there instead of loading torch and models itself. The server's file
``server.json`` says where it listens and has the secret that only the user can read. Requests go as JobSpecs; events
come back as lines of JSON, and outputs are read from the store, which both share. Closing the connection cancels.

Requests that store nothing, and those that continue a saved state, run in this process.

Try it: ``studio serve``, and in another terminal ``time studio image "a red apple"``
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from studio import models
from studio.engine import Request, Ticket
from studio.engine.events import CancelledEvent, Event, Failed
from studio.engine.router import RequestRouter, Router
from studio.errors import EngineClosed, StudioError
from studio.files import read_limited
from studio.locks import is_locked
from studio.spec import JobSpec, ModelRef
from studio.store import Store
from studio.versions import libraries

if TYPE_CHECKING:
    from studio.engine.scheduling.tracked import TrackedRequest

FILE = "server.json"
LOCK = "server.lock"
"""Locked while a server uses the data folder."""
PATH = "/api/requests"
_CONNECT_S = 2.0  # a server of this machine accepts at once
_MOST_LINE = 16 << 20  # bytes of an event, which may have a preview
_GONE = "the server ended before the request did"
_HINT = "`studio resume --list` shows what it has saved; --local runs a command without the server"


class ServerAddress:
    """Where the server of a data folder listens, from its `server.json`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Raises ValueError for values that are not those of a server of this machine."""
        url = urlsplit(str(values.get("url", "")))
        if url.scheme != "http" or not url.hostname or not url.port or not isinstance(values.get("secret"), str):
            raise ValueError("not a server's address")
        self.host, self.port = url.hostname, url.port
        self._headers = {
            "Authorization": f"Bearer {values['secret']}", "Content-Type": "application/json", "Connection": "close",
        }  # fmt: skip

    @classmethod
    def of(cls, home: Path) -> ServerAddress | None:
        """The address in a data folder, or None."""
        try:
            found = json.loads(read_limited(home / FILE, 1 << 16))
            return cls(found)
        except (OSError, StudioError, ValueError, AttributeError):
            return None

    def ask(self, method: str, path: str, body: Any = None, timeout: float | None = _CONNECT_S) -> HTTPResponse:
        """The response to a request, whose body the caller reads. Raises OSError or HTTPException."""
        with closing(HTTPConnection(self.host, self.port, timeout=_CONNECT_S)) as connection:
            connection.connect()
            connection.sock.settimeout(timeout)
            text = None if body is None else json.dumps(body).encode()
            connection.request(method, path, text, self._headers)
            return connection.getresponse()  # it keeps the socket open until it is read or closed


def connect(home: Path, store: Store, local: Callable[[str], Router]) -> RequestRouter | None:
    """The router of the data folder's running server, or None if there is none.

    `local` makes this process's own with a notice: for a server that cannot be used, the reason.
    """
    address = ServerAddress.of(home)
    if address is None or not is_locked(home / LOCK):  # a killed server leaves the file; another program may listen
        return None
    try:
        response = address.ask("GET", PATH, timeout=60.0)  # it may have to look for devices
        found = json.loads(response.read(1 << 20)) if response.status == 200 else None
    except (OSError, HTTPException, ValueError):
        return local("the server of this data folder does not answer, so the command runs without it")
    if found is None:
        return local("the server of this data folder refused the request, so the command runs without it")
    if (theirs := found["version"]) != (ours := libraries()["studio"]):
        return local(f"the running server is Studio {theirs}, not {ours}, so the command runs without it")
    return RemoteRouter(address, store, tuple(found["devices"]), lambda: local(""))


class RemoteRouter:
    """Sends requests to the server, and gives tickets that follow them there. Thread-safe."""

    def __init__(
        self, address: ServerAddress, store: Store, devices: Sequence[str], local: Callable[[], Router]
    ) -> None:
        self.devices = tuple(devices)
        self._address, self._store, self._make_local = address, store, local
        self._local: Router | None = None
        self._guard = threading.Lock()
        self._batches: list[_Batch] = []

    def submit_many(self, requests: Sequence[Request], device: str | None = None) -> list[Ticket]:
        """See `Router.submit_many`. Also raises what the server answers, and EngineClosed if it is gone."""
        if not all(map(_may_travel, requests)):
            return self._own().submit_many(requests, device)
        for request in requests:
            for media in request.inputs.media():
                self._store.put(media.attach(None, None))
        body = {"requests": [_as_sent(each).model_dump(mode="json") for each in requests], "device": device}
        batch = _Batch(self._address, body, requests, self._store)
        with self._guard:
            self._batches = [each for each in self._batches if not each.done]
            self._batches.append(batch)
        return batch.tickets

    def close(self) -> None:
        """Cancel unfinished requests."""
        with self._guard:
            batches, local = self._batches, self._local
        for batch in batches:
            batch.close()
        if local is not None:
            local.close()

    def _own(self) -> Router:
        with self._guard:
            if self._local is None:
                self._local = self._make_local()
            return self._local


class _Batch:
    """Requests that were sent together, and the connection on which their events come."""

    def __init__(self, address: ServerAddress, body: Any, requests: Sequence[Request], store: Store) -> None:
        """Raises the server's error, or EngineClosed."""
        self._address, self._store = address, store
        try:
            self._response = address.ask("POST", PATH, body, timeout=None)
            first = self._line()
        except (OSError, HTTPException, ValueError) as error:
            raise EngineClosed(f"the server did not accept the request: {error}", hint=_HINT) from None
        if "error" in first:
            raise StudioError.from_json(first["error"])
        self._id = str(first["batch"])
        self._index: dict[int, int] = {}
        self.tickets = [Ticket(request, self._cancel) for request in requests]
        self._index = {id(ticket._entry): index for index, ticket in enumerate(self.tickets)}
        threading.Thread(target=self._follow, name="studio-remote", daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether all requests have ended."""
        return all(ticket.done for ticket in self.tickets)

    def close(self) -> None:
        """Cancel what has not ended: the server does so when the connection closes."""
        for ticket in self.tickets:
            if not ticket.done:
                ticket.cancel()

    def _line(self) -> dict[str, Any]:
        line = self._response.readline(_MOST_LINE)
        if not line:
            raise ConnectionError(_GONE)
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found

    def _follow(self) -> None:
        try:
            while not self.done:
                found = self._line()
                self.tickets[found["index"]]._emit(self._event(found["event"]))
        except (OSError, HTTPException, ValueError, LookupError, StudioError, AttributeError) as error:
            # Another thread has closed the response (AttributeError), or the server is gone or sent something else.
            failure = error if isinstance(error, StudioError) else EngineClosed(_GONE, hint=_HINT)
            for ticket in self.tickets:
                if not ticket.done:
                    ticket._emit(CancelledEvent() if ticket._entry.cancelled else Failed(failure))
        finally:
            self._response.close()

    def _event(self, found: Any) -> Event:
        return Event.from_json(json.dumps(found), lambda ref: self._store.open(ref.sha256))

    def _cancel(self, entry: TrackedRequest) -> None:
        index = self._index.get(id(entry))
        if index is None:
            return
        try:
            self._address.ask("POST", f"{PATH}/{self._id}/cancel", {"index": index}).read()
        except (OSError, HTTPException):
            return  # the server is gone, which `_follow` reports


def _may_travel(request: Request) -> bool:
    """Whether the JobSpec says all of a request, and its output can be read from the store."""
    return request.spec.stored and request.resume is None and not (request.notices or request.saved_as)


def _as_sent(request: Request) -> JobSpec:
    """The JobSpec with absolute paths of models, as the server runs in another folder, and without an AI label if this
    process's settings say so, which the server does not know.
    """
    spec, generator = request.spec, request.generator
    update: dict[str, Any] = {"model": _absolute(spec.model, request.weights)}
    if request.label is None and generator.generative and generator.output.has_label:
        update["ai_label"] = False
    return spec.model_copy(update=update)


def _absolute(model: ModelRef, located: ModelRef) -> ModelRef:
    """The ref with the located path for each source that is a path, not the name of a downloaded model."""
    additions = tuple(
        each if models.is_source(each.source) else each.model_copy(update={"source": found.source})
        for each, found in zip(model.additions, located.additions, strict=True)
    )
    source = model.source if not model.source or models.is_source(model.source) else located.source
    return model.model_copy(update={"source": source, "additions": additions})
