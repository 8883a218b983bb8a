"""What may be shown of values that come from outside: short, on one line, without secrets.

Logs, error texts, dead letters' reasons, progress events and `run.json` show them through this.
"""

from __future__ import annotations

import re

_MAX_URI = 200  # characters
_MAX_VALUE = 60  # characters


def shown(uri: str) -> str:
    """The URI for logs and error texts: one short line, without a password or a signed query."""
    text = re.sub(r"//[^/?#]*@", "//…@", uri)
    text = re.sub(r"(?s)\?.*", "?…", text)
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    if len(text) <= _MAX_URI:
        return text
    return f"{text[: _MAX_URI // 2]}…{text[-_MAX_URI // 2 :]}"


def shown_value(value: object) -> str:
    """A value that breaks a rule, for the text that says so; of what holds others only its kind."""
    if isinstance(value, str):
        return f"{shown(value)!r:.{_MAX_VALUE}}"
    if isinstance(value, (int, float)) or value is None:
        return f"{value!r:.{_MAX_VALUE}}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"a value of type {type(value).__name__}"


def without_password(uri: str) -> str:
    """The URI that may go to others: without the user name and password of the host."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1", uri)
