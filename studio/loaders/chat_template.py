"""Chat templates: a conversation as the prompt that a model was trained on, rendered in a sandboxed process.

Templates are jinja2 as in transformers, and come with untrusted models. They are rendered in a separate process
(`chat_worker.py`), which the kernel limits to 2 s of CPU time, 512 MiB of memory and no files. The process is reused
for the next render, and restarted after it was killed. Counting loops inside jinja2 instead would miss `'x' * 10**9`,
`10**(10**10)`, `'%999999999d' % 1`, filters that repeat, and constants folded at compile time.

Tokenizers and processors of transformers render the template of their folder here too: see `limit`.

Try it: ``ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": "hello"}])``
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import ModelError

MOST_TEMPLATE = 256 << 10  # characters; the largest in use have about 20,000
MOST_OUTPUT = 4 << 20  # characters
MEMORY_MIB = 512
SECONDS = 2.0  # of CPU time
TIMEOUT_S = 30.0  # of wall-clock time, for a busy machine
WORKER = Path(__file__).with_name("chat_worker.py")


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template. `special` has its special tokens: `bos_token`, `eos_token` and so on.

    Raises ModelError for a template of more than 262,144 characters.
    """

    text: str
    special: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if len(self.text) > MOST_TEMPLATE:
            raise ModelError(f"the chat template has {len(self.text):,} characters; the maximum is {MOST_TEMPLATE:,}")

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **more: Any) -> str:
        """The conversation as one text, including special tokens.

        Args:
            messages: each with `role` and `content`, and other fields that the template uses.
            add_generation_prompt: whether the text ends where the model's answer begins.
            more: further variables, such as `tools` or `enable_thinking`. A value that is not JSON becomes `<its
                type>`.

        Raises ModelError with the reason if the template fails, rejects the conversation or exceeds its limits.
        """
        values = {**(self.special or {}), "messages": list(messages), "add_generation_prompt": add_generation_prompt}
        values |= {"tools": None, "documents": None, **more}
        answer = _worker.ask({"template": self.text, "values": values})
        if "error" in answer:
            hint = "use another chat template, or change the conversation"
            raise ModelError(f"the chat template failed: {answer['error']}", hint=hint)
        return str(answer["text"])


def limit(made: Any) -> None:
    """Let a tokenizer or processor of transformers render its chat template in the sandboxed process."""
    if not isinstance(getattr(made, "chat_template", None), str):
        return
    kind = type(made)
    made.__class__ = type(kind.__name__, (_Limited, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


class _Limited:
    """A tokenizer or processor whose own chat template is rendered by `ChatTemplate`.

    transformers then gets the text, as a field of the first message, and a template that prints this field.
    """

    chat_template: str

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' method of this name. Raises ModelError if the template fails or exceeds its limits."""
        real = super().apply_chat_template  # type: ignore[misc]
        given = inspect.signature(real).bind(conversation, *args, **kwargs).arguments
        if given.get("chat_template") is not None or not conversation:
            return real(conversation, *args, **kwargs)
        inner: Any = getattr(self, "tokenizer", self)
        more = {name: given.get(name) for name in ("tools", "documents")} | given.get("kwargs", {})
        template = ChatTemplate(
            self.chat_template, {name: _text(each) for name, each in inner.special_tokens_map.items()}
        )

        def printed(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
            ask = bool(given.get("add_generation_prompt"))
            text = template.render(messages, add_generation_prompt=ask, **more)
            return [{**messages[0], _PRINTED: text}, *messages[1:]]

        batched = isinstance(conversation[0], list | tuple)
        printing = [printed(each) for each in conversation] if batched else printed(conversation)
        named = {name: value for name, value in given.items() if name not in ("conversation", "kwargs")}
        named |= given.get("kwargs", {})
        return real(printing, **named | {"chat_template": f"{{{{ messages[0].{_PRINTED} }}}}"})


_PRINTED = "studio_printed"


def _text(value: Any) -> Any:
    return [*map(str, value)] if isinstance(value, list | tuple) else str(value)


class _Worker:
    """The rendering process, started on first use; it renders one template at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer; if the process was killed, an error."""
        line = json.dumps(question, default=lambda value: f"<{type(value).__name__}>").encode() + b"\n"
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.close()  # something else ended it meanwhile
            process = self._process = self._process or _start()
            try:
                answer = _exchange(process, line)
            except BaseException:
                self.close()
                raise
            if answer is None:
                self.close()
                return {"error": f"it needs more than {SECONDS:g} s of CPU time or {MEMORY_MIB} MiB of memory"}
        found: dict[str, Any] = json.loads(answer)
        return found

    def forget(self) -> None:
        """Forget the process in a fork, as it belongs to the parent."""
        self._lock, self._process = threading.Lock(), None

    def close(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError), process:  # closes its pipes and waits
                pass


def _start() -> subprocess.Popen[bytes]:
    kept = {name: os.environ[name] for name in ("TZ", "LANG", "LC_ALL") if name in os.environ}
    bounds = [str(MEMORY_MIB), str(SECONDS), str(MOST_OUTPUT)]
    return subprocess.Popen(
        [sys.executable, "-I", str(WORKER), *bounds], env={**kept, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> bytes | None:
    """Send a line and read one back; None if the process ended, or took too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    answer, until = bytearray(), time.monotonic() + TIMEOUT_S
    while not answer.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
        block = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        if not block or len(answer) > 8 * MOST_OUTPUT:
            return None
        answer += block
    return bytes(answer)


_worker = _Worker()
atexit.register(_worker.close)
os.register_at_fork(after_in_child=_worker.forget)
