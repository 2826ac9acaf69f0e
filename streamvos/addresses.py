"""Addresses without their secrets, fit for error messages, names and logs.

Cameras take user names and passwords in many places of a URL: before the host, as query parameters, as
`name=value` within the path, and as the stream key that ends an RTMP path. What remains identifies the
camera.

    >>> redact("rtsp://admin:secret@10.0.0.5:554/Streaming/101?token=abc")
    'rtsp://***@10.0.0.5:554/Streaming/101?***'
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_URL = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)$", re.DOTALL)


_CAMERA = "camera:"  # may stand before a URL

STANDARD_INPUT = "-"
"""The source that is read from the standard input."""


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


def file_of(source: str) -> str | None:
    """The path that a source names, of a file, folder, glob or device; None if it names none.

    >>> file_of("camera:/dev/video0"), file_of("file:///home/a/my%20clip.mp4"), file_of("rtsp://10.0.0.5/a")
    ('/dev/video0', '/home/a/my clip.mp4', None)
    """
    place = source.removeprefix(_CAMERA)
    if place == STANDARD_INPUT or place == "synthetic" or place.startswith("synthetic:"):
        return None
    if scheme_of(place) == "file":
        match = re.match(r"file://(localhost)?(?=/)", place, re.IGNORECASE)
        return None if match is None else unquote(place[match.end() :])
    if is_url(place) or (place != source and place.isdecimal()):
        return None
    return place


def escape_password(url: str) -> str:
    """The address with "/", "?" and "#" in its user and password escaped, as FFmpeg needs them.

    Cameras allow them, and users copy them. The address is changed only where reading it as it stands gives
    no host: the text after the first ":" is no port, and an "@" follows.

    >>> escape_password("rtsp://admin:pa#ss/w@10.0.0.5:554/stream")
    'rtsp://admin:pa%23ss%2Fw@10.0.0.5:554/stream'
    """
    match = _URL.match(url)
    if match is None:
        return url
    scheme, rest = match["scheme"], match["rest"]
    authority, found, after = _split_at_first(rest, "/?#")
    user, colon, port = authority.partition(":")
    if not found or "@" in authority or "@" not in after or not colon or user.startswith("["):
        return url
    if port.isdecimal() or not port:
        return url
    secret, _, place = rest.rpartition("@")
    for character, escaped in (("/", "%2F"), ("?", "%3F"), ("#", "%23")):
        secret = secret.replace(character, escaped)
    return f"{scheme}://{secret}@{place}"


def _hide_values(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}=***" if equals else part


def _split_at_first(text: str, characters: str) -> tuple[str, str, str]:
    """Like str.partition, at the first of several characters."""
    match = re.search(f"[{re.escape(characters)}]", text)
    if match is None:
        return text, "", ""
    return text[: match.start()], match[0], text[match.end() :]
