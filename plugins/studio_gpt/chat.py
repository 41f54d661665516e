"""A conversation as the text that a model was trained to go on from: its own chat template, rendered at arm's length.

Templates are jinja2 as transformers reads them, and come with models from strangers. They are rendered in a process of
their own (`chat_worker.py`), which the kernel holds to 2 s of processor time, 512 MiB of memory and no files; it stays
for the next render and is replaced when it was ended. Counting loops inside jinja2 instead would leave open what no
hook sees: `'x' * 10**9`, `10**(10**10)`, `'%999999999d' % 1`, filters that repeat, constants folded while compiling. It
knows nothing of models.

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
    from studio_gpt.text import TextInputs
    from studio_gpt.tokens import Tokens

MOST_TEMPLATE = 256 << 10  # characters; the largest in use have about 20,000
MOST_OUTPUT = 4 << 20  # characters
MEMORY_MIB = 512
SECONDS = 2.0  # of the processor
PATIENCE_S = 30.0  # of the clock, on a machine that is busy with something else
OWN_WORDS = ("content", "reasoning_content")  # of a message of the model's
WORKER = Path(__file__).with_name("chat_worker.py")


@dataclass(frozen=True)
class ChatTemplate:
    """A model's template. `special` holds what else it may use: `bos_token`, `eos_token` and so on.

    Raises ModelError for a template that is larger than 262,144 characters.
    """

    text: str
    special: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if len(self.text) > MOST_TEMPLATE:
            raise ModelError(f"the chat template has {len(self.text):,} characters; it may have {MOST_TEMPLATE:,}")

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **more: Any) -> str:
        """The conversation as one text, special tokens included.

        Args:
            messages: each with `role` and `content`, and whatever else the template knows.
            add_generation_prompt: whether the text ends where the model's answer begins.
            more: further variables, such as `tools` or `enable_thinking`. What JSON has no word for is `<its type>`.

        Raises ModelError with the reason where the template fails, refuses the conversation or goes beyond its bounds.
        """
        values = {**(self.special or {}), "messages": list(messages), "add_generation_prompt": add_generation_prompt}
        values |= {"tools": None, "documents": None, **more}
        answer = _worker.ask({"template": self.text, "values": values})
        if "error" in answer:
            hint = "give the model another template, or the conversation another form"
            raise ModelError(f"the chat template cannot be used: {answer['error']}", hint=hint)
        return str(answer["text"])


def chat_tokens(tokens: Tokens, inputs: TextInputs) -> list[int]:
    """The tokens of a conversation (`system`, `turns`, `prompt`), up to where the model's answer begins.

    A model of one turn is given no `turns`. Raises InputError if it has no chat template, ModelError if that fails.
    """
    if tokens.chat_template is None:
        hint = "use a model that was trained for chats, or leave out `chat` to go on from the prompt"
        raise InputError("chat", "the model has no chat template", hint=hint)
    said = [inputs.prompt] if tokens.one_turn else [*inputs.turns, inputs.prompt]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    if inputs.system:
        messages.insert(0, {"role": "system", "content": inputs.system})
    return conversation_tokens(tokens, messages)


def conversation_tokens(tokens: Tokens, messages: Sequence[Mapping[str, Any]], **more: Any) -> list[int]:
    """The tokens of a conversation in the model's chat template, which `tokens` must have; `more` is for `render`.

    Only what the template itself writes is taken as control tokens. One that is spelt out in a message or in `more`
    stays text, so nobody can end a turn and begin another with words. Raises ModelError if the template fails.
    """
    template = ChatTemplate(tokens.chat_template or "", tokens.specials)
    mark = _unused(json.dumps([list(messages), more], ensure_ascii=False, default=str) + template.text)
    by_others = breaker(tokens.control(template.text), mark)
    by_model = breaker(tokens.control(), mark)  # it writes tokens such as `<think>` that its template reads
    marked = {name: _each_text(value, by_others) for name, value in more.items()}
    marked["messages"] = [_each_text(each, by_others) for each in messages]
    for made, each in zip(marked["messages"], messages, strict=True):
        if each.get("role") == "assistant":
            made |= {name: by_model(each[name]) for name in OWN_WORDS if isinstance(each.get(name), str)}
    text = template.render(**marked)
    ids = tokens.encode_marked(text, mark)
    begun = tokens.first is None or ids[:1] == [tokens.first]
    return ids if begun else [cast(int, tokens.first), *ids]


def turn_ends(tokens: Tokens) -> frozenset[int]:
    """Tokens that end an answer in the model's chats: those named for it, and the one that its template writes after
    an answer.
    """
    control = tokens.control(tokens.chat_template or "")
    named = {number for text, number in control.items() if text in TURN_ENDS}
    answer = "The answer is 7431."
    messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    try:
        text = ChatTemplate(tokens.chat_template or "", tokens.specials).render(messages, add_generation_prompt=False)
    except ModelError:  # it wants a conversation of another form; those that are named must do
        return frozenset(named)
    after = text.rpartition(answer)[2].lstrip()
    written = [text for text in control if after.startswith(text)]
    return frozenset(named | {control[max(written, key=len)]} if written else named)


def _unused(text: str) -> str:
    """A character that a text has not."""
    return next(each for each in map(chr, range(0xF0000, 0xFFFFE)) if each not in text)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Messages or tools with every text changed, but for the names of fields and roles."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each if key == "role" else _each_text(each, change) for key, each in value.items()}
    return [_each_text(each, change) for each in value] if isinstance(value, list | tuple) else value


class _Worker:
    """The process that renders, begun when first asked; one render at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer; one that it did not live to give is an error too."""
        line = json.dumps(question, default=lambda value: f"<{type(value).__name__}>").encode() + b"\n"
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.close()  # something else ended it meanwhile
            process = self._process = self._process or _begin()
            try:
                answer = _exchange(process, line)
            except BaseException:
                self.close()
                raise
            if answer is None:
                self.close()
                return {"error": f"it takes more than {SECONDS:g} s, or more than {MEMORY_MIB} MiB"}
        found: dict[str, Any] = json.loads(answer)
        return found

    def forget(self) -> None:
        """Let go of the process in a fork, as it is the parent's."""
        self._lock, self._process = threading.Lock(), None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError), process:  # closes its pipes and waits
                pass


def _begin() -> subprocess.Popen[bytes]:
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
    answer, until = bytearray(), time.monotonic() + PATIENCE_S
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
