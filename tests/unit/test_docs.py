"""The README is true: every flag, setting, file and command that it names exists, and none is missing."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from streamproc.cli import cli
from streamproc.settings import LimitSettings, Settings, known_keys

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def every_command() -> dict[str, click.Command]:
    """All commands by what one types, those of groups too."""
    found: dict[str, click.Command] = {}
    for name, command in cli.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {sub}": other for sub, other in inner.items()} or {name: command}
    return found


PAGE = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(every_command()))
def test_every_command_and_flag_is_described_in_its_help_and_the_command_in_the_readme(
    name,
) -> None:
    command = every_command()[name]
    assert f"streamproc {name}" in README + PAGE
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_every_flag_that_the_readme_names_exists() -> None:
    flags = {
        flag
        for command in every_command().values()
        for parameter in command.params
        for flag in parameter.opts
    }
    others = {"--help"} | {
        "--clip",
        "--figures-only",
        "--scale",
        "--profile",
        "--build",
        "--bootstrap-server",
        "--topic",
        "--index",
    }  # of scripts, and docker's
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - others
    assert named <= flags, named - flags


@pytest.mark.parametrize("key", known_keys())
def test_every_setting_is_in_the_readmes_table(key) -> None:
    section, _, leaf = key.rpartition(".")
    assert f"`{key}`" in README or (section == "limits" and f"`.{leaf}`" in README)


def test_the_readmes_defaults_are_the_codes() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \|", README, re.MULTILINE)
    checked = 0
    for key, written in rows:
        value: object = Settings()
        for part in key.split("."):
            value = getattr(value, part, None)
        if isinstance(value, bool):
            assert written.strip() == str(value).lower(), key
        elif isinstance(value, int | float) and not isinstance(value, BaseModel):
            assert float(written) == value, key
        else:
            continue
        checked += 1
    assert checked >= 8
    for value in (field.default for field in LimitSettings.model_fields.values()):
        assert str(int(value)) in README or f"{value // 2**30} GiB" in README


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_benchmarks_named_exist() -> None:
    for path in re.findall(r"tests/benchmarks/[a-z_]+\.py", README):
        assert (ROOT / path).is_file(), path
