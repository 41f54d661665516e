"""Chat templates: a conversation as the prompt that a model was trained on, rendered in a sandboxed process.

Templates are jinja2 as in transformers, and come with untrusted models. They are rendered in a separate process
(`chat_worker.py`), which the kernel limits to 2 s of CPU time, 512 MiB of memory and no files. The process is reused
for the next render, and restarted after it was killed. Counting loops inside jinja2 instead would miss `'x' * 10**9`,
`10**(10**10)`, `'%999999999d' % 1`, filters that repeat, and constants folded at compile time.

Try it: ``ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": "hello"}])``
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from studio.errors import InputError, ModelError
from studio_gpt.tokens import TURN_ENDS, breaker

if TYPE_CHECKING:
    from studio_gpt.state import TextInputs
    from studio_gpt.tokens import Tokens

MOST_TEMPLATE = 256 << 10  # characters; the largest in use have about 20,000
MOST_OUTPUT = 4 << 20  # characters
MEMORY_MIB = 512
SECONDS = 2.0  # of CPU time
TIMEOUT_S = 30.0  # of wall-clock time, for a busy machine
MODEL_FIELDS = ("content", "reasoning_content")  # of an assistant's message
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


def chat_tokens(tokens: Tokens, inputs: TextInputs) -> list[int]:
    """The tokens of a conversation (`system`, `turns`, `prompt`), up to where the model's answer begins.

    A model for single messages gets no `turns`. Raises InputError without a chat template, ModelError if that fails.
    """
    if tokens.chat_template is None:
        hint = "use a chat model, or remove `chat` to continue the prompt"
        raise InputError("chat", "the model has no chat template", hint=hint)
    contents = [inputs.prompt] if tokens.one_turn else [*inputs.turns, inputs.prompt]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    if inputs.system:
        messages.insert(0, {"role": "system", "content": inputs.system})
    return conversation_tokens(tokens, messages)


def conversation_tokens(tokens: Tokens, messages: Sequence[Mapping[str, Any]], **more: Any) -> list[int]:
    """The tokens of a conversation in the model's chat template, which `tokens` must have; `more` is for `render`.

    Only the template itself writes control tokens. A control token that is spelt out in a message or in `more` is plain
    text, so a message cannot end its turn. Raises ModelError if the template fails.
    """
    template = ChatTemplate(tokens.chat_template or "", tokens.specials)
    mark = _unused(json.dumps([list(messages), more], ensure_ascii=False, default=str) + template.text)
    escape = breaker(tokens.control(template.text), mark)
    escape_model = breaker(tokens.control(), mark)  # a model writes tokens such as `<think>` that its template reads
    marked = {name: _each_text(value, escape) for name, value in more.items()}
    marked["messages"] = [_each_text(each, escape) for each in messages]
    for made, each in zip(marked["messages"], messages, strict=True):
        if each.get("role") == "assistant":
            made |= {name: escape_model(each[name]) for name in MODEL_FIELDS if isinstance(each.get(name), str)}
    text = template.render(**marked)
    ids = tokens.encode_marked(text, mark)
    begun = tokens.first is None or ids[:1] == [tokens.first]
    return ids if begun else [cast(int, tokens.first), *ids]


def turn_ends(tokens: Tokens) -> frozenset[int]:
    """End-of-turn tokens of the model: those with a known name, and the token that its template writes after
    answers.
    """
    control = tokens.control(tokens.chat_template or "")
    named = {number for text, number in control.items() if text in TURN_ENDS}
    answer = "The answer is 7431."
    messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    try:
        text = ChatTemplate(tokens.chat_template or "", tokens.specials).render(messages, add_generation_prompt=False)
    except ModelError:  # it expects another form of conversation; use the known names
        return frozenset(named)
    after = text.rpartition(answer)[2].lstrip()
    written = [text for text in control if after.startswith(text)]
    return frozenset(named | {control[max(written, key=len)]} if written else named)


def _unused(text: str) -> str:
    """A character that does not occur in a text."""
    return next(each for each in map(chr, range(0xF0000, 0xFFFFE)) if each not in text)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Messages or tools with every text changed, except the names of fields and roles."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each if key == "role" else _each_text(each, change) for key, each in value.items()}
    return [_each_text(each, change) for each in value] if isinstance(value, list | tuple) else value


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
