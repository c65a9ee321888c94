"""Requests for a regulated poem: checked for feasibility before the first character is written, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from corpus.line_index import LineIndex
from verse.prosody import COMMA, FREE, STARTS, STOP, Form, rhymes_at
from verse.readings import Readings, is_character, level_groups, rhymes, tones

import numpy as np

MARKS = COMMA + STOP
Place = tuple[int, int]  # line and character within it, both from 0


class Impossible(Exception):
    """No poem can meet the request; the message says why in one line."""


@dataclass(frozen=True)
class Plan:
    """A request that can be met, whichever of the open ways and rhymes the model takes."""

    form: Form
    fixed: dict[Place, str]  # requested characters, by place
    ways: tuple[int, ...]  # templates of the form that are still open
    groups: tuple[int, ...]  # rhyme groups that are still open
    keyword: str = ""
    spots: list[tuple[Place, tuple[int, ...]]] = field(default_factory=list)  # where it may go, and the ways then
    origin: dict[Place, str] = field(default_factory=dict)  # the option that requested a character


def plan(
    form: Form,
    tokens: Sequence[str],
    readings: Readings,
    *,
    start: str = "",
    acrostic: str = "",
    rhyme: str | None = None,
    keyword: str = "",
    index: LineIndex | None = None,
) -> Plan:
    """The plan for a poem that begins with `start`, whose lines begin with the characters of `acrostic`, that rhymes in
    the group `rhyme` and has `keyword` in a line; with `index`, none of its lines is in it. Raises Impossible."""
    fixed, origin = _fixed(form, start, acrostic)
    for mark in {form.mark(line) for line in range(form.lines)}:
        if mark not in tokens:
            raise Impossible(f"--form {form.short} needs the mark {mark}, which the model never saw")
    _check_lines(form, fixed, index)
    groups = tuple(range(len(level_groups()))) if rhyme is None else (level_groups().index(rhyme),)
    found = _narrowed(Plan(form, fixed, tuple(range(len(STARTS))), groups, origin=origin), tokens, readings, rhyme)
    if not keyword or _stands(form, fixed, keyword):
        return found
    return _with_keyword(replace(found, keyword=keyword), tokens, readings, rhyme, index)


def find_rhyme(text: str) -> str:
    """The level group that `text` names: 東, 一東 or 上平聲一東, or any character with exactly one level rhyme."""
    found = [group for group in level_groups() if text in (group, group[3:], group[-1])]
    if not found and len(text) == 1:
        found = sorted(rhymes(text), key=level_groups().index)
        if not found:
            why = "is 仄, and regulated verse rhymes level" if tones(text) else "is in no group of the 平水韻"
            raise ValueError(f"{text} {why}")
        if len(found) > 1:
            raise ValueError(f"{text} has more than one rhyme: name one of {', '.join(group[-1] for group in found)}")
    if not found:
        raise ValueError(f"expected one of {''.join(group[-1] for group in level_groups())}, got {text!r}")
    return found[0]


def _fixed(form: Form, start: str, acrostic: str) -> tuple[dict[Place, str], dict[Place, str]]:
    """The requested characters, and the option that requested each."""
    fixed, origin = {}, {}
    line = column = 0
    for character in start:
        if line == form.lines:
            raise Impossible(f"--start is longer than a poem of {form.short}: {form.lines} lines of {form.width}")
        if character in MARKS:
            ended = line - (column == 0)
            if column or not line or character != form.mark(ended):
                raise Impossible(
                    f"--start has {character} after {line * form.width + column} characters, where {form.short} has no "
                    "such mark"
                )
            continue
        if not is_character(character):
            raise Impossible(f"--start has {character}, where {form.short} needs a Chinese character")
        fixed[line, column], origin[line, column] = character, "--start"
        line, column = (line, column + 1) if column + 1 < form.width else (line + 1, 0)
    if acrostic and len(acrostic) != form.lines:
        raise Impossible(f"--acrostic needs {form.lines} characters for {form.short}, one a line; got {len(acrostic)}")
    for line, character in enumerate(acrostic):
        if not is_character(character):
            raise Impossible(f"--acrostic has {character}, where a line needs a Chinese character")
        if fixed.get((line, 0), character) != character:
            raise Impossible(f"--start and --acrostic ask for {fixed[line, 0]} and {character} in the same place")
        fixed[line, 0] = character
        origin.setdefault((line, 0), "--acrostic")
    return fixed, origin


def _check_lines(form: Form, fixed: dict[Place, str], index: LineIndex | None) -> None:
    """Lines that are requested in full must differ, and must not be in `index`."""
    seen = set()
    for line in range(form.lines):
        text = "".join(fixed.get((line, column), " ") for column in range(form.width))
        if " " in text:
            continue
        if text in seen:
            raise Impossible(f"the line {text} is asked for twice, but no poem repeats a line")
        if index is not None and text in index:
            raise Impossible(f"the line {text} is asked for but is in the training corpus (--no-copy)")
        seen.add(text)


def _narrowed(asked: Plan, tokens: Sequence[str], readings: Readings, rhyme: str | None) -> Plan:
    """The plan with only the ways and rhyme groups that are possible; raises Impossible if there are none."""
    templates = asked.form.templates()
    clashes = {way: _clash(templates[way], asked.fixed) for way in asked.ways}
    ways = tuple(way for way in asked.ways if clashes[way] is None)
    if not ways:
        places = sorted({clash for clash in clashes.values() if clash is not None})
        text = ", ".join(_describe(asked, place) for place in places)
        raise Impossible(f"no tone pattern of {asked.form.short} has room for {text}")
    open_groups = {way: _groups(asked, templates[way], tokens, readings) for way in ways}
    ways = tuple(way for way in ways if open_groups[way])
    if not ways:
        raise Impossible(_why_no_rhyme(asked, rhyme))
    groups = tuple(sorted(set().union(*(open_groups[way] for way in ways))))
    return replace(asked, ways=ways, groups=groups)


def _why_no_rhyme(asked: Plan, rhyme: str | None) -> str:
    """Why no rhyme group has the endings that the lines need."""
    endings = {place: asked.fixed[place] for place in sorted(asked.fixed) if place[1] == asked.form.width - 1}
    for place, character in endings.items():
        if rhyme and place[0] % 2 and rhyme not in rhymes(character):
            return f"{character} ({asked.origin.get(place, '--keyword')}) does not rhyme in {rhyme}"
    what = f"in {rhyme}" if rhyme else "in any one group"
    beside = f" that has {'、'.join(endings.values())} at line ends" if endings else ""
    return f"the model knows too few characters that rhyme {what} for a poem of {asked.form.short}{beside}"


def _clash(template: list[str], fixed: dict[Place, str]) -> Place | None:
    """The place of the first fixed character that does not fit the template."""
    for (line, column), character in sorted(fixed.items()):
        if template[line][column] != FREE and template[line][column] not in tones(character):
            return line, column
    return None


def _describe(asked: Plan, place: Place) -> str:
    character = asked.fixed[place]
    sound = tones(character)
    tone = f"only {''.join(sound)}" if sound else "without a known tone"
    option = asked.origin.get(place, "--keyword")
    return f"{character} ({option}; {tone}) as character {place[1] + 1} of line {place[0] + 1}"


def _groups(asked: Plan, template: list[str], tokens: Sequence[str], readings: Readings) -> set[int]:
    """The rhyme groups that can give every line a different ending, so that no two lines are the same."""
    last = asked.form.width - 1
    fixed = {line: asked.fixed[line, last] for line in range(asked.form.lines) if (line, last) in asked.fixed}
    unused = np.array([token not in fixed.values() for token in tokens], bool)
    rhyming = [line for line in range(asked.form.lines) if rhymes_at(template, line)]
    wanted = sum(line not in fixed for line in rhyming)
    others = asked.form.lines - len(fixed) - wanted
    oblique = readings.oblique & unused
    found = set()
    for group in asked.groups:
        name, rhyme = level_groups()[group], readings.rhymes[group] & unused
        fits = all(name in rhymes(fixed[line]) for line in rhyming if line in fixed)
        # Hall's condition: then distinct endings exist, whichever character is read in which way
        enough = rhyme.sum() >= wanted and oblique.sum() >= others and (rhyme | oblique).sum() >= wanted + others
        if fits and enough:
            found.add(group)
    return found


def _stands(form: Form, fixed: dict[Place, str], keyword: str) -> bool:
    lines = ["".join(fixed.get((line, column), " ") for column in range(form.width)) for line in range(form.lines)]
    return any(keyword in line for line in lines)


def _with_keyword(
    asked: Plan, tokens: Sequence[str], readings: Readings, rhyme: str | None, index: LineIndex | None
) -> Plan:
    """The plan with the places where the keyword may go; at a line's end only if nowhere else is possible."""
    form, keyword = asked.form, asked.keyword
    if not all(map(is_character, keyword)) or len(keyword) > form.width:
        raise Impossible(f"--keyword must be 1 to {form.width} Chinese characters for {form.short}, got {keyword!r}")
    templates, endings, reason = form.templates(), [], ""
    for line in range(form.lines):
        for column in range(form.width - len(keyword) + 1):
            places = {(line, column + at): character for at, character in enumerate(keyword)}
            if any(asked.fixed.get(place, character) != character for place, character in places.items()):
                continue
            fixed = {**asked.fixed, **places}
            ways = tuple(way for way in asked.ways if _clash(templates[way], fixed) is None)
            if column + len(keyword) < form.width and ways:
                asked.spots.append(((line, column), ways))
            elif ways:
                endings.append(fixed)
    if asked.spots:
        return asked
    for fixed in endings:
        try:
            _check_lines(form, fixed, index)
            return _narrowed(replace(asked, fixed=fixed), tokens, readings, rhyme)
        except Impossible as error:
            reason = f": {error}"
    sound = "、".join(f"{c} {''.join(sorted(tones(c))) or '?'}" for c in keyword)
    raise Impossible(f"--keyword {keyword} ({sound}) fits nowhere in {form.short} with the other requests{reason}")
