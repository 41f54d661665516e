"""Templates give what transformers makes of them; hostile ones cost two seconds at the most, and one clear error."""

from __future__ import annotations

import string
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.errors import ModelError
from studio.loaders import chat_template
from studio.loaders.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {
    "chatml": """\
{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
You answer briefly.<|im_end|>
    {% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{%- if enable_thinking is defined and enable_thinking is false %}
<think></think>
{%- endif %}
{% endif %}
""",
    "headers": """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set first = messages[0].content %}{%- set messages = messages[1:] %}
{%- else %}{%- set first = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + strftime_now('%Y')  + '\\n' + first + '<|eot_id|>' }}
{%- for tool in tools or [] %}{{- tool | tojson(indent=4) }}{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{%- continue %}{%- endif %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
    "inst": """\
{%- set ns = namespace(turn=0, system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set ns.system = message.content ~ '\\n\\n' -%}{%- continue -%}{%- endif -%}
    {%- if (message.role == 'user') != (ns.turn % 2 == 0) -%}
        {{ raise_exception('user and assistant must take turns') }}
    {%- endif -%}
    {%- set ns.turn = ns.turn + 1 -%}
    {%- if message.role == 'user' -%}
        {{ (bos_token if ns.turn == 1 else '') ~ '[INST] ' ~ (ns.system if loop.last else '') }}
        {{- message.content ~ ' [/INST]' }}
    {%- else -%}
        {% generation %}{{ ' ' ~ message.content ~ eos_token }}{% endgeneration %}
    {%- endif -%}
{%- endfor -%}
""",
    "everything": """\
{% macro show(value, depth=0) %}{{ '  ' * depth }}{% if value is mapping %}{% for k, v in value | dictsort %}{{ k }}:
{{ show(v, depth + 1) }}{% endfor %}{% else %}{{ value | tojson }}
{% endif %}{% endmacro %}
{% for m in messages if m.content is string %}{{ show(m) }}{{ m.content.split(' ')[-1] }}{{ loop.index0 }}
{%- if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{{ dict(a=1, b='é').items() | list }}{{ messages | map(attribute='role') | join('|') }}
{{ messages[::-1][0].content[:3] }}
""",
}
CHAT = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": " What is this? <b>{{ 1 + 1 }}</b> "},
    {"role": "assistant", "content": "Ein Apfel. 苹果 🍎"},
    {"role": "user", "content": "And\nthat?\n"},
]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"é": "<&>"}}}]


def letters() -> Any:
    """A tokenizer of transformers for words of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<s>", "</s>", *string.printable])}
    made = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


@pytest.fixture(scope="module")
def transformers_says() -> Any:
    tokenizer = letters()

    def render(template: str, messages: list[dict[str, Any]], **more: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **more))

    return render


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:], CHAT[1:2]], ids=["system", "plain", "one"])
@pytest.mark.parametrize(
    "more", [{"add_generation_prompt": True}, {"add_generation_prompt": False, "tools": TOOLS}], ids=["ask", "tools"]
)
def test_equals_transformers(transformers_says: Any, name: str, messages: Any, more: dict[str, Any]) -> None:
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    assert template.render(messages, **more) == transformers_says(TEMPLATES[name], messages, **more)


def test_further_variables(transformers_says: Any) -> None:
    more = {"add_generation_prompt": True, "enable_thinking": False}
    told = ChatTemplate(TEMPLATES["chatml"]).render(CHAT, **more)
    assert told == transformers_says(TEMPLATES["chatml"], CHAT, **more)
    assert told.endswith("<think></think>")


@settings(max_examples=40)
@given(contents=st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_goes_through_as_it_is(contents: list[str]) -> None:
    """Lone surrogates too, and nothing of a message is read as a template."""
    messages = [{"role": "user", "content": content} for content in contents]
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert template.render(messages) == "".join(f"[{content}]" for content in contents)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{% for m in messages %}", "line 1: Unexpected end of template"),
        ("a\n{{ nobody.name }}", "'nobody' is undefined"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ (''|attr('__class__')).__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ dict.mro() }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 'x' * 10**9 }}", "too much memory"),
        ("{{ '%0999999999d' % 1 }}", "too much memory"),
        ("{{ '{:0999999999}'.format(1) }}", "too much memory"),
        ("{{ 'a' | center(999999999) }}", "too much memory"),
        ("{{ [0] * 10**9 }}", "too much memory"),
        ("{{ 'x' * 5000000 }}", "more than 4,194,304 characters"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 4,194,304 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion is too deep"),
    ],
)
def test_refused_at_once(template: str, reason: str) -> None:
    with pytest.raises(ModelError, match="the chat template failed") as caught:
        ChatTemplate(template).render(CHAT)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set x = namespace(n=[1]) %}{% for i in range(64) %}{% set x.n = x.n + x.n %}{% endfor %}",
    ],
)
def test_endless_ones_are_ended(template: str) -> None:
    with pytest.raises(ModelError, match=r"more than 2 s|too much memory"):
        ChatTemplate(template).render(CHAT)
    assert ChatTemplate("{{ messages | length }}").render(CHAT) == "4", "the next one is rendered as before"


@pytest.mark.parametrize("template", ["{{ ''['__class__'] }}", "{{ '{0.__class__}'.format(1) }}", "{{ x.__class__ }}"])
def test_what_the_sandbox_hides_is_nothing(template: str) -> None:
    assert ChatTemplate(template).render(CHAT, x="a") in ("", "None")


def test_a_template_of_a_megabyte() -> None:
    with pytest.raises(ModelError, match="has 1,000,000 characters; the maximum is 262,144"):
        ChatTemplate("x" * 1_000_000)


def test_what_json_cannot_say() -> None:
    assert ChatTemplate("{{ messages[0].image }}").render([{"role": "user", "image": object()}]) == "<object>"


def test_the_process_can_open_nothing() -> None:
    """What a hole in jinja2's sandbox would meet: asked of the process itself."""
    ChatTemplate("{{ 1 }}").render(CHAT)
    process = chat_template._worker._process
    assert process is not None
    if not Path("/proc").is_dir():
        pytest.skip("the limits of a process are read from /proc")
    lines = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
    limits = {line[:25].strip(): line[25:].split() for line in lines}
    for name, most in (("Max open files", "3"), ("Max file size", "0"), ("Max address space", str(512 << 20))):
        assert limits[name][:2] == [most, most]


def test_several_threads_share_the_process() -> None:
    told: dict[int, str] = {}

    def ask(number: int) -> None:
        for _ in range(5):
            told[number] = ChatTemplate("{{ n }}").render(CHAT, n=number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {number: str(number) for number in range(4)}


def test_a_killed_process_is_replaced() -> None:
    ChatTemplate("{{ 1 }}").render(CHAT)
    process = chat_template._worker._process
    assert process is not None
    process.kill()
    process.wait()
    assert ChatTemplate("{{ 1 }}").render(CHAT) == "1"


def limited(template: str) -> Any:
    made = letters()
    made.chat_template = template
    chat_template.limit(made)
    return made


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("how", [{"tokenize": False}, {"add_generation_prompt": True}, {"tools": TOOLS}])
def test_a_limited_tokenizer_gives_what_an_unlimited_one_gives(name: str, how: dict[str, Any]) -> None:
    plain, made = letters(), limited(TEMPLATES[name])
    plain.chat_template = TEMPLATES[name]
    assert type(made).__name__ == type(plain).__name__
    assert isinstance(made, type(plain))
    for chat in (CHAT, [CHAT, CHAT[1:]]):
        assert made.apply_chat_template(chat, **how) == plain.apply_chat_template(chat, **how)
    assert CHAT[0] == {"role": "system", "content": "You are kind."}, "messages are not changed"


def test_what_a_pipeline_passes_reaches_the_template_of_a_limited_tokenizer() -> None:
    made = limited("{{ enable_thinking }} {{ messages[0].content[0].text }}")
    chat = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert made.apply_chat_template(chat, tokenize=False, enable_thinking=False) == "False hello"
    assert made.apply_chat_template(chat, None, None, "mine", tokenize=False) == "mine"


def test_a_limited_tokenizer_ends_an_endless_template() -> None:
    made = limited("{{ 10 ** (10 ** 10) }}")
    with pytest.raises(ModelError, match=r"more than 2 s|too much memory"):
        made.apply_chat_template(CHAT)


def test_a_tokenizer_without_a_template_stays_as_it_is() -> None:
    made = letters()
    kind = type(made)
    chat_template.limit(made)
    assert type(made) is kind
