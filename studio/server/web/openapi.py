"""The OpenAPI document of what the page uses, from which the types of its client are made.

Try it: ``python studio/server/web/openapi.py | head``
"""

from __future__ import annotations

import json
import re
import sys
import tempfile

import studio
from studio.jobs import Jobs
from studio.server.app import routes
from studio.server.limits import RequestLimits

USED = re.compile(r"/api/(jobs|events|artifacts|generators|health)\b.*")


def document() -> str:
    """The document as JSON."""
    with tempfile.TemporaryDirectory() as home, studio.Studio(home=home) as host, Jobs(host) as jobs:
        found = routes(jobs, RequestLimits()).openapi()
    paths = {path: what for path, what in found["paths"].items() if USED.fullmatch(path)}
    schemas = found["components"]["schemas"]
    named, more = set[str](), _named(paths)
    while more:
        named |= more
        more = set().union(*(_named(schemas[name]) for name in more)) - named
    kept = {name: schemas[name] for name in sorted(named)}
    info = {"title": "Studio", "version": "1"}
    return json.dumps({"openapi": found["openapi"], "info": info, "paths": paths, "components": {"schemas": kept}})


def _named(value: object) -> set[str]:
    """The schemas that a part of the document refers to."""
    return set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(value)))


if __name__ == "__main__":
    sys.stdout.write(document())
