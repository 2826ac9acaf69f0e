"""Addresses without their secrets, fit for error messages, names and logs.

Cameras take user names and passwords in many places of a URL: before the host, as query parameters, as
`name=value` within the path, and as the stream key that ends an RTMP path. What remains identifies the
camera.

    >>> redact("rtsp://admin:secret@10.0.0.5:554/Streaming/101?token=abc")
    'rtsp://***@10.0.0.5:554/Streaming/101?***'
"""

from __future__ import annotations

import re

_URL = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)$", re.DOTALL)


_CAMERA = "camera:"  # may stand before a URL


def is_url(text: str) -> bool:
    """Whether `text` begins with a scheme and "://"."""
    return _URL.match(text) is not None


def scheme_of(url: str) -> str:
    """The scheme in lower case, "" if there is none."""
    match = _URL.match(url)
    return match["scheme"].lower() if match else ""


def redact(url: str) -> str:
    """The address without user, password, query, fragment, and anything that looks like a key.

    It removes too much rather than too little: passwords with an unescaped "/", "#" or "@" are found by the
    last "@" of the whole address. Other text is returned unchanged.
    """
    if url.startswith(_CAMERA):
        return _CAMERA + redact(url.removeprefix(_CAMERA))
    match = _URL.match(url)
    if match is None:
        return url
    scheme, rest = match["scheme"], match["rest"]
    shown = ""
    if "@" in rest:
        rest = rest.rpartition("@")[2]
        shown = "***@"
    rest, query, _ = _split_at_first(rest, "?#")
    host, slash, path = _split_at_first(rest, "/;")
    if scheme.lower().startswith("rtmp") and path:
        path = "***"  # application and stream key
    else:
        path = "/".join(_hide_values(part) for part in path.split("/"))
    return f"{scheme}://{shown}{host}{slash}{path}" + (f"{query}***" if query else "")


def host_of(url: str) -> str:
    """Host name or address without port, user and password; "" if there is none."""
    match = _URL.match(url)
    if match is None:
        return ""
    rest = match["rest"].rpartition("@")[2]
    host = _split_at_first(rest, "/?#;")[0]
    if host.startswith("["):  # IPv6
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _hide_values(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}=***" if equals else part


def _split_at_first(text: str, characters: str) -> tuple[str, str, str]:
    """Like str.partition, at the first of several characters."""
    match = re.search(f"[{re.escape(characters)}]", text)
    if match is None:
        return text, "", ""
    return text[: match.start()], match[0], text[match.end() :]
