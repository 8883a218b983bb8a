"""Makes the tables of settings in `deploy/README.md` from `streamproc/settings.py`.

`python deploy/settings_table.py` prints them, and `--write` puts them into the document. A test
compares the two.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from streamproc.settings import Settings, known_keys

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

DOCUMENT = Path(__file__).with_name("README.md")
# What replay reads as well; the other settings are the stream's alone.
SHARED_SECTIONS = ("clustering", "detector", "tracker", "limits")


def tables() -> dict[str, str]:
    """Return both tables in Markdown, by the name that their markers have in the document."""
    keys = known_keys()
    shared = [key for key in keys if _is_shared(key)]
    return {
        "shared-settings": _table(shared),
        "stream-settings": _table([key for key in keys if key not in shared]),
    }


def put_into(text: str, name: str, table: str) -> str:
    """Return the document's text with what stands between the markers of `name` replaced."""
    begin = f"<!-- {name}: made by deploy/settings_table.py -->\n"
    end = f"<!-- end of {name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"expected the lines {begin.strip()} and {end} in {DOCUMENT.name}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _is_shared(key: str) -> bool:
    section, _, _ = key.rpartition(".")
    if section:
        return section in SHARED_SECTIONS
    return key not in {"bootstrap", "media_root"}


def _table(keys: list[str]) -> str:
    rows = [f"| `{key}` | {_written(_default(key))} | {_field(key).description} |" for key in keys]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""])


def _field(key: str) -> FieldInfo:
    """Return what `settings.py` says of a dotted key."""
    *sections, leaf = key.split(".")
    model: type[BaseModel] = Settings
    for section in sections:
        nested = model.model_fields[section].annotation
        assert isinstance(nested, type)
        assert issubclass(nested, BaseModel)
        model = nested
    return model.model_fields[leaf]


def _default(key: str) -> object:
    return _field(key).get_default()


def _written(value: object) -> str:
    """Return a default as one writes it in the settings file."""
    if value is None or value in ("", ()):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    return f"`{value}`" if isinstance(value, Path) else str(value)


def main() -> None:
    """Print the tables, or write them into the document."""
    if "--write" not in sys.argv[1:]:
        print("\n".join(tables().values()))
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in tables().items():
        text = put_into(text, name, table)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
