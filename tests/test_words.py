"""The pages: links lead somewhere, commands exist, sentences and README are short, figures are those measured."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from unveil.cli.main import app

PAGES = ["README.md", "REPORT.md", *(f"docs/{path.name}" for path in Path("docs").glob("*.md"))]
LONGEST_SENTENCE = 25  # words
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def read(repository: Path, page: str) -> str:
    return (repository / page).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """Those that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(repository: Path, page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", read(repository, page))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (repository / page).parent / name if name else repository / page
        known = file.exists() and (not anchor or anchor in anchors(file.read_text(encoding="utf-8")))
        broken += [] if known else [target]
    assert not broken


def commands(text: str) -> Iterator[list[str]]:
    """The words after `unveil` in blocks and spans of code."""
    for block in [*CODE.findall(text), *re.findall(r"`([^`\n]+)`", text)]:
        for found in re.findall(r"(?:^|[|;&]\s*)unveil ([^\n#|;&]+)", block, re.MULTILINE):
            yield found.split()


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(repository: Path, page: str) -> None:
    for words in commands(read(repository, page)):
        here = get_command(app)
        for word in words:
            known = getattr(here, "commands", None)
            if known is None:
                break
            if word.startswith("-"):
                assert word in {name for parameter in here.params for name in parameter.opts} | {"--help"}, words
                break
            assert word in known, words
            here = known[word]
        options = {name for parameter in here.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, words


def sentences(text: str) -> Iterator[str]:
    """The prose of a page, without code, tables, headings and pictures."""
    lines = [line for line in CODE.sub("", text).splitlines() if not re.match(r"\||#|!\[", line)]
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(re.sub(r"^((\d+\.|-) |$)", ". ", line) for line in lines))
    yield from re.split(r"[.:?!](?=\s|\*|$)", prose)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/demo-card.md"])
def test_sentences_are_short(repository: Path, page: str) -> None:
    long = [sentence for sentence in sentences(read(repository, page)) if len(sentence.split()) > LONGEST_SENTENCE]
    assert not long


def test_the_readme_is_short(repository: Path) -> None:
    assert len(read(repository, "README.md").splitlines()) <= 200


def test_the_readme_has_the_demos_figures(repository: Path) -> None:
    found = json.loads(read(repository, "metrics/evaluate.json"))
    rows = {line.split("|")[1].strip(" `"): line for line in read(repository, "README.md").splitlines() if "|" in line}
    distance, name = rows["fd_efficientnet_lite0"], "fd_efficientnet_lite0"
    for key in ("", "_low", "_high", "_floor", "_noise"):
        assert f"{found[name + key]:.3g}" in distance, name + key
    for row in (("precision", "recall"), ("density", "coverage")):
        for metric in row:
            for end in ("", "_floor"):
                said = [float(number) for number in re.findall(r"[\d.]+", rows[", ".join(row)])]
                assert any(abs(number - found[f"{metric}_efficientnet_lite0{end}"]) < 6e-4 for number in said), metric
