"""What is wrong with a pipeline.toml, in one line: where, what came, what was expected, what was meant.

    pipeline.toml: [[streams]] "front": unknown key "sorce"; did you mean "source"? (docs/pipeline.md)

Apart from `reading`, since it is only words.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from streamvos.addresses import is_url, redact

Location = tuple[int | str, ...]
Tables = Mapping[tuple[str, ...], type[BaseModel]]
"""Path of a table, without numbers of arrays and names that users choose -> its model."""

_WORDS = {
    "Input should be a valid string": "expected a text",
    "Input should be a valid integer": "expected a whole number",
    "Input should be a valid number": "expected a number",
    "Input should be a finite number": "expected a finite number",
    "Input should be a valid boolean": "expected true or false",
    "Input should be a valid tuple": "expected an array",
    "Input is not a valid path": "expected a path",
}
_OF_TABLES = ("value_error", "model_type", "model_attributes_type", "dict_type")
_RANK = {
    "extra_forbidden": 0,
    "missing": 2,
}  # a mistyped key is both unknown and missing; the first says more


def explain(error: ValidationError, values: Any, where: str, tables: Tables) -> str:
    """The first thing that is wrong, as one line.

    Args:
        error: of the model.
        values: that were checked.
        where: what they are called, such as the file's name.
        tables: the models, to know which keys there are.
    """
    found = sorted(error.errors(), key=lambda one: _RANK.get(one["type"], 1))
    first = found[0]
    location = tuple(first["loc"])
    kind, given = first["type"], first.get("input")
    if kind in ("extra_forbidden", "missing"):
        table, key, name = location[:-1], "", str(location[-1])
        said = _unknown(table, name, tables) if kind == "extra_forbidden" else _missing(table, name)
    else:
        is_whole = kind in _OF_TABLES and _plain(location) in tables
        table, key = (location, "") if is_whole else _split(location)
        said = _wrong(first, key, given)
    place = " ".join(filter(None, (_place(table, values), key)))
    more = "" if len(found) == 1 else f"; {len(found) - 1} more wrong"
    return f"{where}: {place}{': ' if place else ''}{said} (docs/pipeline.md{more})"


def shown(value: Any) -> str:
    """A value as TOML would have it, shortened and without credentials."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "an array"
    if isinstance(value, str):
        text = redact(value) if is_url(value) else value
        return f'"{text if len(text) <= 80 else text[:77] + "..."}"'
    return str(value)[:80]


def quoted(words: Sequence[str]) -> str:
    """A list of words for people."""
    return ", ".join(f'"{word}"' for word in words)


def nearest(word: str, words: Sequence[str]) -> str | None:
    """What was probably meant."""
    found = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return found[0] if found else None


def _unknown(table: Location, key: str, tables: Tables) -> str:
    known = _keys(tables, _plain(table))
    meant = nearest(key, known)
    if meant is not None:
        return f'unknown key "{key}"; did you mean "{meant}"?'
    elsewhere = [path for path in tables if path != _plain(table) and key in _keys(tables, path)]
    if elsewhere:
        return f'unknown key "{key}" here; it belongs into {_name(elsewhere[0])}'
    return f'unknown key "{key}"; expected one of {", ".join(known)}'


def _missing(table: Location, key: str) -> str:
    if not table and key == "streams":
        return "there is no stream; add a [[streams]] table with a name and a source"
    return f'the key "{key}" is missing'


def _wrong(error: Any, key: str, given: Any) -> str:
    if error["type"] == "value_error":  # one of ours, which says everything itself
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "tuple_type" and isinstance(given, Mapping) and key == "streams":
        return "one table came, expected an array of them; write [[streams]] with two brackets on each side"
    if error["type"] in _OF_TABLES:
        return f"expected a table, got {shown(given)}"
    expected = _WORDS.get(error["msg"]) or _expected(error["msg"])
    said = f"{expected}, got {shown(given)}"
    if error["type"] == "literal_error" and isinstance(given, str):
        choices = [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        meant = nearest(given, choices)
        said += f'; did you mean "{meant}"?' if meant else ""
    return said


def _expected(message: str) -> str:
    text = message.removeprefix("Input should be ")
    text = text.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    text = text.replace("greater than", "more than").replace("'", '"')
    return f"expected {text}" if text != message else message[:1].lower() + message[1:]


def _split(location: Location) -> tuple[Location, str]:
    """Table and key of a value; numbers behind the key are places in an array."""
    end = len(location)
    while end and isinstance(location[end - 1], int):
        end -= 1
    return location[: end - 1], str(location[end - 1]) if end else ""


def _place(table: Location, values: Any) -> str:
    """The table's name for people; nothing at the top level."""
    if not table:
        return ""
    if table[0] != "streams":
        return f"[{'.'.join(map(str, table))}]"
    number = table[1] if len(table) > 1 else 0
    assert isinstance(number, int)
    stream = _at(values, ("streams", number, "name"))
    name = f" {shown(stream)}" if isinstance(stream, str) else f" no. {number + 1}"
    if len(table) > 3 and table[2] == "sinks":
        assert isinstance(table[3], int)
        kind = _at(values, (*table[:4], "kind"))
        told = f' ("{kind}")' if isinstance(kind, str) else ""
        return f"[[streams]]{name}, sink {table[3] + 1}{told}"
    return f"[[streams]]{name}"


def _at(values: Any, location: Location) -> Any:
    for part in location:
        try:
            values = values[part]
        except (LookupError, TypeError):
            return None
    return values


def _plain(location: Location) -> tuple[str, ...]:
    """The path of a table as `Tables` has it."""
    parts = tuple(part for part in location if isinstance(part, str))
    return ("remote", "*") if len(parts) == 2 and parts[0] == "remote" else parts


def _keys(tables: Tables, path: tuple[str, ...]) -> list[str]:
    return list(tables[path].model_fields) if path in tables else []


def _name(path: tuple[str, ...]) -> str:
    if not path:
        return "the top of the file, before every table"
    if path == ("streams", "sinks"):
        return "a sink of [[streams]]"
    return "[[streams]]" if path == ("streams",) else f"[{'.'.join(path)}]"
