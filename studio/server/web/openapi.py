"""The OpenAPI document of Studio's own interface, from which the types of the page's client are made.

Try it: ``python studio/server/web/openapi.py | head``
"""

from __future__ import annotations

import json
import sys
import tempfile

import studio
from studio.jobs import Jobs
from studio.server.app import routes
from studio.server.limits import RequestLimits


def document() -> str:
    """The document as JSON."""
    with tempfile.TemporaryDirectory() as home, studio.Studio(home=home) as host, Jobs(host) as jobs:
        found = routes(jobs, RequestLimits()).openapi()
    found["paths"] = {path: what for path, what in found["paths"].items() if path.startswith("/api/")}
    return json.dumps({**found, "info": {"title": "Studio", "version": "1"}})


if __name__ == "__main__":
    sys.stdout.write(document())
