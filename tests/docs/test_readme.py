"""README.md and the pages in docs/: the README's code prints what it shows, and every command, path and link exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PROGRAM = re.compile(r"python examples/poetry/(\w+)\.py([^\n&]*)")


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of every block of code."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[tuple[str, str]]:
    """The poetry example's programs that its shell commands call, and their arguments."""
    return [match for language, block in blocks(page) if language == "sh" for match in PROGRAM.findall(block)]


def test_the_code_prints_what_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    parts = blocks(PAGES[0])
    place = [language for language, _ in parts].index("python")
    assert parts[place + 1][0] == "text"
    exec(compile(parts[place][1], "README.md", "exec"), {})
    assert capsys.readouterr().out == parts[place + 1][1]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_line_is_one_that_the_program_takes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program, arguments in commands(page):
        words = shlex.split(arguments.split("||")[0], comments=True)
        monkeypatch.setattr("sys.argv", [f"{program}.py", *words])
        importlib.import_module(program).parse_arguments()  # exits on an unknown argument


def test_some_page_shows_each_program() -> None:
    shown = {program for page in PAGES for program, _ in commands(page)}
    assert shown == {path.stem for path in (ROOT / "examples" / "poetry").glob("*.py")} - {"model"}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {page.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)}
    links |= {ROOT / path for path in re.findall(r"`((?:minidl|examples|tests|docs|benchmarks)/[\w./-]*)`", text)}
    assert [str(path) for path in sorted(links) if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_anchor_is_a_heading(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_two_commands_set_up_what_they_need() -> None:
    lines = [line for language, block in blocks(PAGES[0]) if language == "sh" for line in block.splitlines()]
    fresh = [line for line in lines if line.startswith("python3 -m venv .venv && .venv/bin/pip install")]
    assert len(fresh) == 2
    assert "examples/poetry/train.py" in fresh[0]
    assert fresh[1].endswith("-m pytest -n auto")


def test_the_readme_is_short_and_links_to_every_page() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 190
    reached, found = {PAGES[0]}, [PAGES[0]]
    while found:
        page = found.pop()
        for link in re.findall(r"\]\(([^)#:]+\.md)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if target not in reached:
                reached.add(target)
                found.append(target)
    assert {page.resolve() for page in PAGES} <= reached | {PAGES[0].resolve()}
