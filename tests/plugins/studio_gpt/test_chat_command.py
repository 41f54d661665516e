"""`studio chat` as a person meets it: a pipe, a terminal, Ctrl-C, and a model that cannot chat."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import studio
import studio_gpt
from tests import forkserver

PLUGIN = str(Path(studio_gpt.__file__).parent)
GREEDY = ["--temperature", "0", "--max-tokens", "6"]


def command(*words: str) -> list[str]:
    return ["-m", "studio", "--plugin", PLUGIN, "--device", "cpu", "chat", *words]


def talk(said: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = forkserver.run(command(*words), input=said)
    assert done.returncode == code, done.stderr
    return done


def test_the_model_is_told_what_was_said(model: str) -> None:
    done = talk("hello\n\nand then\n/nothing\n/new\nhello\n/quit\nnot read\n", "--model", model, *GREEDY)
    with studio.Studio(plugins=[PLUGIN], device="cpu") as host:
        more: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 6}
        first = host.generate("text", prompt="hello", chat=True, **more).text
        plain = host.generate("text", prompt="u:hello|a:", **more).text
        second = host.generate("text", prompt="and then", chat=True, turns=["hello", first.strip()], **more).text
    assert first == plain, "the template's text, and nothing in front of it"
    assert done.stdout == f"{first}\n{second}\n{first}\n"
    assert "unknown command `/nothing`; `/new` starts a new conversation, `/quit` exits" in done.stderr


def test_a_turn_that_fails_is_told_and_taken_back(model: str) -> None:
    done = talk("x" * 3000 + "\nhello\n", "--model", model, *GREEDY, "--quiet", code=1)
    assert done.stderr.startswith("error: `prompt` has ")
    assert done.stdout == talk("hello\n", "--model", model, *GREEDY, "-q").stdout


def test_a_byte_order_mark_and_carriage_returns_are_not_said(model: str) -> None:
    words = ["--model", model, *GREEDY, "-q"]
    assert talk("\ufeffhello\r\nagain\r\n", *words).stdout == talk("hello\nagain\n", *words).stdout


def test_without_a_model_each_message_is_answered_by_itself_and_it_says_what_answers() -> None:
    words = ["--temperature", "0", "--max-tokens", "12"]
    done = talk("a loyal pet that barks\na red fruit\na red fruit\n", *words)
    alone = talk("a red fruit\n", *words, "-q")
    assert done.stdout.splitlines()[1:] == 2 * alone.stdout.splitlines()
    assert "for a chat model run `studio models pull smollm2`" in done.stderr
    assert done.stderr.count("earlier turns are ignored") == 1, "it is told once"
    assert alone.stderr == ""


def test_closed_standard_input_is_the_end() -> None:
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, *command("-q")]
    done = subprocess.run(closed, capture_output=True, text=True, check=False, timeout=500)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_cannot_chat_is_one_error(checkpoints: Any) -> None:
    folder, _ = checkpoints("llama")
    done = talk("hello\n", "--model", str(folder), code=1)
    assert "error: the model has no chat template" in done.stderr
    missing = talk("", "--model", "smollm2", code=1)
    assert "the model `smollm2` is not downloaded\nhint: `studio models pull smollm2` downloads it" in missing.stderr
    assert "no model, file or folder is called `smolm2`" in talk("", "--model", "smolm2", code=2).stderr


def test_its_help_speaks_of_chats_only() -> None:
    told = forkserver.run([*command(), "--help"]).stdout
    assert "--system" in told
    assert not [each for each in ("with `chat`", "--literal", "--turns", "--prompt ") if each in told]


def test_ctrl_c_stops_the_answer_and_not_the_program(model: str, tokenizer: Any) -> None:
    """On a terminal: an answer of 400 tokens is stopped, another is asked for, and Ctrl-D ends it."""
    ours, theirs = pty.openpty()
    like_a_prompt = [token for text, token in tokenizer.get_vocab().items() if ">" in text]
    never = json.dumps(dict.fromkeys([1, *like_a_prompt], -100))
    words = ["--model", model, "--temperature", "3", "--max-tokens", "400", "--seed", "1", "--logit-bias", never]
    environment = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, *command(*words)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # the terminal becomes its own, Ctrl-C too
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            read_until(ours, b"> ")
            os.write(ours, b"hello\n")
            read_until(ours, b"loading")
            time.sleep(1.0)
            os.write(ours, b"\x03")
            read_until(ours, b"> ")
            time.sleep(
                0.5
            )  # Python misses a Ctrl-C between the prompt and its first wait for a key (until the next key)
            os.write(ours, b"\x03")  # at the prompt it takes back the line
            read_until(ours, b"> ")
            os.write(ours, b"\x04")
            assert process.wait(500) == 0
        finally:
            process.kill()  # else leaving the block would wait for one that hangs
    os.close(ours)


def read_until(terminal: int, what: bytes, patience: float = 300.0) -> bytes:
    seen, until = b"", time.monotonic() + patience
    while what not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
        assert ready, seen
        seen += os.read(terminal, 1 << 16)
    return seen
