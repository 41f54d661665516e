"""The sandboxed process that renders chat templates: a JSON line in, a JSON line out.

A template comes with an untrusted model. Jinja has loops and arithmetic, and jinja2's sandbox limits neither time nor
memory; so templates run here, under limits of the kernel. Before the first template this process gives up opening files
and sockets, writing files and starting processes, and its memory is limited; every render has its own CPU time limit.
It imports nothing of Studio. `chat_template.py` starts it.

Try it: ``echo '{"template": "{{ 6 * 7 }}", "values": {}}' | python chat_worker.py 512 2 100000``
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the model's text for training; it is ignored here."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def raise_exception(message: str) -> NoReturn:
    """Called by a template to reject a conversation."""
    raise jinja2.TemplateError(message)


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
           sort_keys: bool = False) -> str:  # fmt: skip
    """Plain JSON; jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(form: str) -> str:
    """The local date and time."""
    return datetime.now().strftime(form)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment that transformers' templates are written for."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=Namespace)
    return made


ENVIRONMENT = environment()


@lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
    """A compiled template, cached."""
    return ENVIRONMENT.from_string(template)


def render(template: str, values: dict[str, Any], most: int) -> dict[str, Any]:
    """`{"text": …}`, or `{"error": …}` with one line."""
    try:
        parts, length = [], 0
        for part in compiled(template).generate(**values):
            length += len(part)
            if length > most:
                return {"error": f"its output has more than {most:,} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "its recursion is too deep"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except Exception as error:  # a template can make any operator and any filter fail
        kind = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
        return {"error": " ".join(f"{kind}{error}".split())[:1000]}


WARM_UP = (
    "{{ 'a\\n' ~ strftime_now('%c %Z') }}{{ lipsum(n=1) }}{{ a | pprint }}{{ a | tojson }}{{ 'a' | urlencode }}",
    "{{ [1] | random }}{{ 'a' | title | wordwrap | urlize | striptags }}{{ [a] | groupby('b') | list }}",
    "{{ raise_exception('no') }}",
    "{{ a.b.c.d }}",
    "{% if %}",
)


def confine(memory_mib: int) -> None:
    """Set resource limits; not every platform supports each."""
    for template in WARM_UP:  # Python and jinja2 load some of their own files on first use
        render(template, {"a": {"b": 1}}, 1000)
    for name, most in (("AS", memory_mib << 20), ("CORE", 0), ("FSIZE", 0), ("NPROC", 0), ("NOFILE", 3)):
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        try:
            resource.setrlimit(kind, (min(most, hard) if hard != resource.RLIM_INFINITY else most,) * 2)
        except (OSError, ValueError):  # macOS rejects a limit of the address space
            continue


def main(memory_mib: str, seconds: str, most: str) -> None:
    """Render until standard input is closed. A render that exceeds its CPU time kills the process (SIGPROF)."""
    confine(int(memory_mib))
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
        answer = json.dumps(render(asked["template"], asked["values"], int(most)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
