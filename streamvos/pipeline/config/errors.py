"""What is wrong with a pipeline.toml, in one line: where, what came, what was expected, what was meant.

pipeline.toml: [[streams]] "front": unknown key "sorce"; did you mean "source"? (docs/pipeline.md)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from streamvos.addresses import is_url, redact

Location = tuple[int | str, ...]
Tables = Mapping[Location, type[BaseModel]]
"""Path of a table, with "*" for numbers in arrays and names that users choose -> its model."""

_RANK = {"extra_forbidden": 0, "missing": 2}  # a mistyped key is both; the first says more
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "an array",
    "path_type": "a path",
    "model_type": "a table",
    "dict_type": "a table",
}
_WORDS = {
    "Input should be ": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "'": '"',
}


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
    location, kind = tuple(first["loc"]), first["type"]
    last = len(location) - (kind in _RANK)  # the key that is unknown or missing is no place of its own
    end = next(n for n in range(last, -1, -1) if _path(location[:n]) in tables)
    if kind == "extra_forbidden":
        said = _unknown(str(location[-1]), _path(location[:-1]), tables)
    elif location == ("streams",) and (kind == "missing" or isinstance(first["input"], Mapping)):
        said = "there is no stream; add a [[streams]] table with a name and a source"
        if kind != "missing":
            said = (
                "one table came, expected an array of them; write [[streams]] with two brackets on each side"
            )
    elif kind == "missing":
        said = f'the key "{location[-1]}" is missing'
    elif kind == "value_error":  # one of ours, which says everything itself
        said = first["msg"].removeprefix("Value error, ")
    else:
        said = f"{_expected(first['msg'], kind)}, got {_shown(first['input'])}"
        choices = str(first.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
        said += _meant(str(first["input"]), [word.strip("'") for word in choices], "; ")
    place = " ".join(filter(None, (_table(location[:end], values), *map(str, location[end:last][:1]))))
    more = "" if len(found) == 1 else f"; {len(found) - 1} more wrong"
    return f"{where}: {place}{': ' if place else ''}{said} (docs/pipeline.md{more})"


def _unknown(key: str, table: Location, tables: Tables) -> str:
    known = list(tables[table].model_fields)
    if meant := _meant(key, known, "; "):
        return f'unknown key "{key}"{meant}'
    elsewhere = [path for path in tables if key in tables[path].model_fields]
    if elsewhere:
        names: dict[Location, str] = {
            (): "the top of the file, before every table",
            ("streams", "*"): "[[streams]]",
        }
        name = "a sink of [[streams]]" if "sinks" in elsewhere[0] else f"[{'.'.join(map(str, elsewhere[0]))}]"
        return f'unknown key "{key}" here; it belongs in {names.get(elsewhere[0], name)}'
    return f'unknown key "{key}"; expected one of {", ".join(known)}'


def _meant(word: str, words: Sequence[str], before: str) -> str:
    found = difflib.get_close_matches(word.lower(), words, n=1)
    return f'{before}did you mean "{found[0]}"?' if found else ""


def _expected(message: str, kind: str) -> str:
    for word, better in _WORDS.items():
        message = message.replace(word, better)
    return f"expected {_EXPECTED.get(kind, message)}"


def _path(location: Location) -> Location:
    """The path of a table as `Tables` has it."""
    named = location[:1] == ("remote",)
    return tuple("*" if isinstance(one, int) or (named and n == 1) else one for n, one in enumerate(location))


def _table(location: Location, values: Any) -> str:
    """The table's name for people; nothing at the top level."""
    if location[:1] != ("streams",):
        return f"[{'.'.join(map(str, location))}]" if location else ""
    (_, number, *rest), stream = location, values["streams"][location[1]]
    name = stream.get("name") if isinstance(stream, Mapping) else None
    text = f"[[streams]] {_shown(name) if isinstance(name, str) else f'no. {int(number) + 1}'}"
    if rest:
        sink = stream["sinks"][rest[1]]
        kind = sink.get("kind") if isinstance(sink, Mapping) else None
        text += f", sink {int(rest[1]) + 1}" + (f' ("{kind}")' if isinstance(kind, str) else "")
    return text


def _shown(value: Any) -> str:
    """A value as TOML would have it, shortened and without credentials."""
    if isinstance(value, str):
        text = redact(value) if is_url(value) else value
        return f'"{text if len(text) <= 80 else text[:77] + "..."}"'
    if isinstance(value, bool):
        return str(value).lower()
    return (
        "a table"
        if isinstance(value, Mapping)
        else "an array"
        if isinstance(value, Sequence)
        else str(value)[:80]
    )
