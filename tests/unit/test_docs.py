"""The documents are true: commands, options, settings, files and links that they name exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from streamproc.cli import cli
from streamproc.services.service import PORTS
from streamproc.settings import PREFIX, Settings, known_keys

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("deploy", "models", "schemas", "streamproc", "tests")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), ROOT / "media" / "README.md"]
    + [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")]
)
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
README = TEXTS["README.md"]
MAX_README_LINES = 200
MAX_LINE = 100
# Options of docker and kubectl that the documents name, and the one that each command has.
FOREIGN_OPTIONS = {"--help", "--scale", "--profile", "--build", "--index", "--ignore-not-found"}
# Variables that are no settings: the file's place, the tests', and one that the text warns of.
FOREIGN_VARIABLES = {"STREAMPROC_CONFIG", "STREAMPROC_MATCHER_PORT"}

each_document = pytest.mark.parametrize("name", TEXTS)


def code_lines(text: str) -> list[str]:
    """All lines of a document's code blocks, with continued lines joined and no comments."""
    joined = text.replace("\\\n", " ")
    lines = [line[4:] for line in joined.splitlines() if line.startswith("    ")]
    return [re.sub(r"\s#.*", "", line).removeprefix("$ ") for line in lines]


def code_spans(text: str) -> list[str]:
    """All texts between backticks outside of code blocks, in one line each."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def shown_commands(text: str) -> list[str]:
    """Every `streamproc ...` that a document shows, in a code block (there through docker too)."""
    lines = [line for line in code_lines(text) if "streamproc " in line]
    found = [line for line in lines if line.startswith("streamproc ")]
    in_containers = [line for line in lines if line.startswith("docker compose exec")]
    return found + [line[line.index("streamproc ") :] for line in in_containers]


def every_command() -> dict[str, click.Command]:
    """All commands by what one types, those of groups too."""
    found: dict[str, click.Command] = {}
    for name, command in cli.commands.items():
        if not isinstance(command, click.Group):
            found[name] = command
            continue
        for inner_name, inner in command.commands.items():
            found[f"{name} {inner_name}"] = inner
    return found


def options_of(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by the flags that one types."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {flag: option for option in options for flag in (*option.opts, *option.secondary_opts)}


def parse(line: str) -> None:
    """Parse a command line as `streamproc` would, without running it; raises click.UsageError."""
    words = [word for word in shlex.split(line)[1:] if word != "--help"]
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        inner = command.commands.get(name)
        if inner is None:
            raise click.UsageError(f"no command is called {name!r}")
        command = inner
    if not isinstance(command, click.Group):
        command.make_context(command.name, words)


def slug(heading: str) -> str:
    """The name by which GitHub links to a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.strip().replace(" ", "-")


def settings_table():
    """The script that makes the tables of settings, as a module."""
    path = ROOT / "deploy" / "settings_table.py"
    spec = importlib.util.spec_from_file_location("settings_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def described(key: str) -> tuple[str, object]:
    """What `settings.py` says of a setting, and its default."""
    *sections, leaf = key.split(".")
    model = Settings
    for section in sections:
        model = model.model_fields[section].annotation
    field = model.model_fields[leaf]
    return field.description or "", field.get_default()


def test_the_readme_is_short() -> None:
    """Whoever reads the README through has read at most 200 lines."""
    assert len(README.splitlines()) <= MAX_README_LINES


@each_document
def test_lines_are_short(name) -> None:
    """No line is longer than 100 characters, apart from tables and the targets of links."""
    lines = [line for line in TEXTS[name].splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(re.sub(r"\]\([^)]*\)", "]", line)) > MAX_LINE] == []


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    """What `deploy/settings_table.py --write` makes is in the document already."""
    module = settings_table()
    text = TEXTS["deploy/README.md"]
    for name, table in module.tables().items():
        assert module.put_into(text, name, table) == text, "run deploy/settings_table.py --write"
    assert all(f"`{key}`" in text for key in known_keys())


@pytest.mark.parametrize("key", known_keys())
def test_a_setting_is_described_and_its_options_exist_with_its_default(key) -> None:
    """A setting says what it means; the help of its option says the same default."""
    text, default = described(key)
    assert text.endswith("."), "a description is a sentence"
    for flag in re.findall(r"--[a-z-]+", text):
        options = [
            (name, options_of(command)[flag])
            for name, command in every_command().items()
            if flag in options_of(command)
        ]
        assert options, f"no command has {flag}"
        for name, option in options:
            assert says_default(option.help or "", name, text, default), f"{name} {flag}"


def says_default(help_text: str, command: str, description: str, default: object) -> bool:
    """Whether the "[default: ...]" of a help text is a setting's default; True without one."""
    found = re.search(r"\[default: (.+)\]", help_text)
    if found is None:
        return True
    said = found[1]
    if command in PORTS and default is None and said.isdigit():
        return int(said) == PORTS[command] and said in description
    if default is None:
        return said in description.replace("`", "")
    if isinstance(default, int | float):
        return float(said) == default
    return said == (", ".join(default) if isinstance(default, tuple) else str(default))


@pytest.mark.parametrize("name", sorted(every_command()))
def test_a_command_is_described_in_its_help_and_shown_in_a_document(name) -> None:
    """Each command and each of its options has a help text, and a document shows the command."""
    command = every_command()[name]
    assert any(f"streamproc {name}" in text for text in TEXTS.values())
    assert command.help
    assert [flag for flag, option in options_of(command).items() if not option.help] == []


@each_document
def test_a_command_shown_can_be_typed(name) -> None:
    """The parser of the command line takes every `streamproc` command of a code block."""
    for line in shown_commands(TEXTS[name]):
        try:
            parse(line)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")


@each_document
def test_a_command_named_in_a_sentence_exists(name) -> None:
    """So it does for `streamproc` commands between backticks, where arguments may be missing."""
    for span in code_spans(TEXTS[name]):
        if not span.startswith("streamproc "):
            continue
        try:
            parse(span)
        except click.MissingParameter:
            continue
        except click.UsageError as error:
            pytest.fail(f"{span}: {error.format_message()}")


@each_document
def test_an_option_named_exists(name) -> None:
    """An option between backticks is one of streamproc's, of a script's here, or of docker's."""
    known = set(FOREIGN_OPTIONS)
    for command in every_command().values():
        known |= set(options_of(command))
    for folder in ("models", "deploy", "tests/benchmarks"):
        for script in (ROOT / folder).glob("*.py"):
            known |= set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    named = set()
    for span in code_spans(TEXTS[name]):
        named |= set(re.findall(r"(?<!\S)--[a-z][a-z-]+", span))
    assert named - known == set()


@each_document
def test_a_script_shown_exists_and_has_its_options(name) -> None:
    """`python path/to/script.py --option` names a script that is here, and an option of its."""
    spans = code_spans(TEXTS[name]) + code_lines(TEXTS[name])
    for span in spans:
        found = re.search(r"\bpython (\S+\.py)(.*)", span)
        if found is None:
            continue
        script = ROOT / found[1]
        assert script.is_file(), span
        content = script.read_text(encoding="utf-8")
        for option in re.findall(r"(?<!\S)--[a-z-]+", found[2]):
            assert f'"{option}"' in content, span


@each_document
def test_a_make_target_named_exists(name) -> None:
    """Every `make target` of a document is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for span in code_spans(TEXTS[name]) + code_lines(TEXTS[name]):
        found = re.fullmatch(r"make ([a-z-]+)\s*", span)
        assert found is None or re.search(rf"^{found[1]}:", makefile, re.MULTILINE), span


@each_document
def test_a_variable_or_setting_named_exists(name) -> None:
    """`STREAMPROC_…` and `section.key` between backticks are settings."""
    keys = set(known_keys())
    variables = {PREFIX + key.upper().replace(".", "__") for key in keys} | FOREIGN_VARIABLES
    named = set(re.findall(rf"{PREFIX}[A-Z][A-Z_]*[A-Z]", TEXTS[name]))
    assert {each for each in named - variables if not each.startswith(f"{PREFIX}TEST_")} == set()
    sections = {key.partition(".")[0] for key in keys if "." in key}
    for span in code_spans(TEXTS[name]):
        found = re.match(r"([a-z_]+)\.[a-z_.]+(?=$|[:=])", span)
        if found and found[1] in sections and "." + found[0].rpartition(".")[2] not in SUFFIXES:
            assert found[0] in keys, span


SUFFIXES = (".py", ".md", ".json", ".yaml", ".yml", ".svg", ".npz", ".npy", ".onnx")


@each_document
def test_a_link_leads_somewhere(name) -> None:
    """A relative link leads to a file or folder, and to a heading in it where it names one."""
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (folder / file).resolve() if file else ROOT / name
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


@each_document
def test_a_file_named_exists(name) -> None:
    """A path between backticks that begins with a folder of this repository leads to a file."""
    for span in code_spans(TEXTS[name]):
        first = span.partition("/")[0]
        if first in FOLDERS and re.fullmatch(r"[\w./-]+", span):
            assert (ROOT / span).exists(), span
        elif span.endswith(".py") and re.fullmatch(r"[\w/]+\.py", span):
            places = (ROOT, (ROOT / name).parent, ROOT / "streamproc")
            assert any((place / span).is_file() for place in places), span


def test_where_the_next_change_goes_names_what_is_there() -> None:
    """Each function, class or field in that section of DESIGN.md is in the file beside it."""
    section = TEXTS["streamproc/DESIGN.md"].partition("## Where the next change goes")[2]
    rows = re.findall(r"^\| `(\S+\.\w+)` \| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    assert len(rows) > len(PORTS)
    for file, what in rows:
        content = (ROOT / "streamproc" / file).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", what):
            leaf = name.rpartition(".")[2]
            defined = rf"^\s*(async def |def |class |function )?{leaf}\b"
            assert re.search(defined, content, re.MULTILINE), f"{file}: {name}"


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(tmp_path) -> None:
    """The output that the README shows below the demo's command is what it prints today."""
    shown = README.partition("    $ streamproc replay tests/sample/sample.mp4 --out demo-out\n")[2]
    expected = [line[4:] for line in shown.partition("\n\n")[0].splitlines()]
    command = ["-m", "streamproc", "replay", "tests/sample/sample.mp4", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    printed = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert [line.replace(str(tmp_path), "demo-out") for line in printed] == expected
