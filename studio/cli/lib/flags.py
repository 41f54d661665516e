"""CLI flags from input fields: options, positional arguments and help are generated from an `Inputs` class.

Values are passed on as text; only `Inputs.parse` validates them.

A required input may be given as an option or as a positional argument. Positional arguments are assigned to required
inputs in order; a list gets all the remaining ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import click

from studio.inputs import Flag

WORDS = "words"  # the click name of the positional words
_SAID_BY_METAVAR = re.compile(
    r"^(?:a whole number|a finite number|text|true or false|a JSON value|the path of a file with .+)"
    r"(?: from| of)? ?"
)
_LIST = re.compile(r"^a list(?: of (?P<count>.+?))?, each (?P<each>.+)$")
_NO_DEFAULT: tuple[Any, ...] = (None, "", [], (), {})
_PREFIX = "input_"  # keeps the inputs' names apart from the command's own options


def parameters(flags: Sequence[Flag], taken: Collection[str] = ()) -> list[click.Parameter]:
    """The click parameters for `flags`; a flag with a `taken` name becomes `--input-NAME`. Aliases are accepted too,
    but not shown in the help.
    """
    made: list[click.Parameter] = [_option(flag, taken) for flag in flags]
    made += [_alias(name) for name in _alias_names(flags) if f"--{name.replace('_', '-')}" not in taken]
    required = [flag.name.upper() for flag in flags if flag.required]
    if required:
        words = click.Argument([WORDS], nargs=-1, metavar=" ".join(f"[{name}]" for name in required))
        made.insert(0, words)
    return made


def _option(flag: Flag, taken: Collection[str]) -> click.Option:
    spelling = f"--input{flag.option[1:]}" if flag.option in taken else flag.option
    name = _PREFIX + flag.name
    if flag.type == "bool" and not flag.multiple:
        return click.Option([f"{spelling}/--no{spelling[1:]}", name], default=None, help=_help(flag))
    metavar = {"int": "N", "float": "X", "media": "FILE"}.get(flag.type, "TEXT")
    return click.Option([spelling, name], metavar=metavar, multiple=flag.multiple, default=None, help=_help(flag))


def _alias_names(flags: Sequence[Flag]) -> list[str]:
    return [name for flag in flags for alias in flag.aliases for name in alias.names]


def _alias(name: str) -> click.Option:
    spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))  # scripts of diffusers have `_`
    return click.Option([*spellings, _PREFIX + name], default=None, hidden=True)


def _help(flag: Flag) -> str:
    """The help text, with the allowed range unless the metavar shows it, and the default, if any."""
    allowed = _LIST.sub(_repeatable, flag.range) if flag.multiple else _SAID_BY_METAVAR.sub("", flag.range)
    text = f"{flag.help} ({allowed})" if allowed else flag.help
    if flag.required:
        return f"{text}  [required]"
    if flag.default in _NO_DEFAULT:
        return text
    return f"{text}  [default: {_default(flag)}]"


def _repeatable(found: re.Match[str]) -> str:
    each = _SAID_BY_METAVAR.sub("", found["each"])
    return "repeatable" + (f", {found['count']}" if found["count"] else "") + (f"; each {each}" if each else "")


def _default(flag: Flag) -> str:
    """The default as a user would type it: `yes` or `no`, text unchanged, anything else as JSON."""
    if isinstance(flag.default, bool):
        return "yes" if flag.default else "no"
    return flag.default if isinstance(flag.default, str) else json.dumps(flag.default, ensure_ascii=False, default=str)


def values(flags: Sequence[Flag], given: dict[str, Any]) -> dict[str, Any]:
    """The inputs among click's parameters that were given, positional arguments included. Raises UsageError."""
    found: dict[str, Any] = {}
    for flag in flags:
        value = given[_PREFIX + flag.name]
        if value is not None and value != ():
            found[flag.name] = [_value(flag, each) for each in value] if flag.multiple else _value(flag, value)
    found |= {name: value for name in _alias_names(flags) if (value := given.get(_PREFIX + name)) is not None}
    words = list(given.get(WORDS) or ())
    for flag in flags:
        if words and flag.required and flag.name not in found:
            taken, words = (words, []) if flag.multiple else (words[:1], words[1:])
            found[flag.name] = [_value(flag, each) for each in taken] if flag.multiple else _value(flag, taken[0])
    if words:
        message = f"unexpected argument `{words[0]}`; put text with spaces in quotes"
        raise click.UsageError(message, click.get_current_context(silent=True))
    return found


def _value(flag: Flag, text: Any) -> Any:
    """The text unchanged; for inputs of any JSON type parsed as JSON, if it is valid JSON."""
    if flag.type != "json":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
