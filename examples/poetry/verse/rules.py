"""The rules of a regulated poem as masks over the vocabulary, for many candidates side by side.

Every candidate keeps its options open: the ways through the poem that its tones still allow, and the rhyme groups. A
character is allowed if it leaves at least one of them open, and enough endings for the lines to come; so no candidate
ever reaches a place where nothing fits. Only --no-copy can cause that (see composing.py).

No two lines end in the same character. This is stricter than the form, and keeps lines from being repeated. No
character occurs a third time while others fit, so that a weak model does not go round in circles.
"""

from __future__ import annotations

from corpus.line_index import LineIndex, begin, extend, token_codes
from corpus.vocabulary import Vocabulary
from verse.plans import Place, Plan
from verse.prosody import FREE, rhymes_at
from verse.readings import LEVEL, OBLIQUE, Readings, level_groups

import numpy as np

TWICE = 2  # a character that occurs this often in a poem is not taken again if another fits
NEEDS = {FREE: 1, LEVEL: 2, OBLIQUE: 4}  # bits: what the open ways need at a place


class Rules:
    """What `rows` candidates for the same plan may write at each place.

    Call `allowed` and `advance` in turn for the characters of every line and `end_line` at its mark; `keep` selects
    the candidates to continue with, some of them several times.
    """

    def __init__(
        self,
        plan: Plan,
        vocabulary: Vocabulary,
        readings: Readings,
        spots: np.ndarray | None = None,
        index: LineIndex | None = None,
    ) -> None:
        """`spots` (rows,) are indices into plan.spots, one per candidate; None means one row without a keyword."""
        self.plan, self.ids, self.readings, self.index = plan, vocabulary.ids, readings, index
        rows = 1 if spots is None else len(spots)
        self.spots = np.full(rows, -1) if spots is None or not plan.spots else spots
        templates = plan.form.templates()
        self.needs = np.array([[[NEEDS[tone] for tone in line] for line in way] for way in templates])  # (4, L, W)
        self.rhymed = np.array([rhymes_at(way, 0) for way in templates])
        self.ways = np.zeros((rows, len(templates)), bool)
        for row, spot in enumerate(self.spots):
            self.ways[row, list(plan.ways if spot < 0 else plan.spots[spot][1])] = True
        self.groups = np.zeros((rows, len(level_groups())), bool)
        self.groups[:, list(plan.groups)] = True
        self.classes = _classes(readings)
        self.rhymes = readings.rhymes.astype(np.float32)  # (G, V)

        width, lines = plan.form.width, plan.form.lines
        self.endings = {line: plan.fixed[line, width - 1] for line in range(lines) if (line, width - 1) in plan.fixed}
        self.used = np.zeros((rows, len(vocabulary)), bool)  # endings that are taken
        self.used[:, [self.ids[character] for character in self.endings.values()]] = True
        unused = ~self.used[0]
        self.rhyming_left = np.tile((readings.rhymes & unused).sum(axis=1), (rows, 1))  # (rows, G)
        self.oblique_left = np.full(rows, (readings.oblique & unused).sum())
        self.times = np.zeros(self.used.shape, np.int8)  # how often each token occurs in the poem
        self.line = np.full((rows, width), -1)  # the current line
        self.found = np.zeros(rows, bool)  # candidates that already contain the keyword
        self.codes = token_codes(vocabulary.tokens)
        self.before = begin(rows)

    def forced(self, place: Place) -> np.ndarray:
        """The token requested at a place, in each row; -1 where there is none."""
        fixed = self.plan.fixed.get(place)
        tokens = np.full(len(self.ways), -1 if fixed is None else self.ids[fixed])
        if fixed is None:
            for spot, ((line, column), _) in enumerate(self.plan.spots):
                if line == place[0] and 0 <= place[1] - column < len(self.plan.keyword):
                    token = self.ids[self.plan.keyword[place[1] - column]]
                    tokens[(self.spots == spot) & ~self.found] = token
        return tokens

    def allowed(self, place: Place) -> np.ndarray:
        """The tokens (rows, V) that are allowed at a place."""
        line, column = place
        forced = self.forced(place)
        if (forced >= 0).all():
            tokens = np.zeros(self.used.shape, bool)
        elif column == self.plan.form.width - 1:
            tokens = self._endings(line)
        else:
            tokens = self.classes[np.bitwise_or.reduce(self.ways * self.needs[:, line, column], axis=1)]
            fresh = tokens & (self.times < TWICE)
            tokens = np.where(fresh.any(axis=1, keepdims=True), fresh, tokens)
        rows = np.flatnonzero(forced >= 0)
        tokens[rows] = False
        tokens[rows, forced[rows]] = True
        if column == self.plan.form.width - 1 and self.index is not None:
            self.index.forbid_endings(tokens, self.before, self.codes)
        return tokens

    def reason(self, place: Place) -> str:
        """The rule that binds the first candidate at a place, in a few words."""
        line, column = place
        if self.forced(place)[0] >= 0:
            return "asked for"
        needs = np.bitwise_or.reduce(self.ways[0] * self.needs[:, line, column])
        if column < self.plan.form.width - 1:
            return "free" if needs & NEEDS[FREE] else "".join(t for t in (LEVEL, OBLIQUE) if needs & NEEDS[t])
        names = [name[-1] for name, is_open in zip(level_groups(), self.groups[0], strict=True) if is_open]
        rhyme = f"rhyme {''.join(names)}" if len(names) <= 3 else "rhyme"
        here = [(rhyme, self._rhymes_here(line)[0]), (OBLIQUE, self._oblique_here(line)[0])]
        return " or ".join(text for text, is_open in here if is_open)

    def advance(self, place: Place, tokens: np.ndarray) -> None:
        """Record the tokens (rows,) that were written at a place; each must have been allowed."""
        line, column = place
        needs, readings = self.needs[:, line, column], self.readings
        fits = (needs == NEEDS[FREE]) | ((needs == NEEDS[LEVEL]) & readings.level[tokens][:, None])
        fits |= (needs == NEEDS[OBLIQUE]) & readings.oblique[tokens][:, None]
        self.ways &= fits
        self.line[:, column] = tokens
        self.times[np.arange(len(tokens)), tokens] += 1
        self.before = extend(self.before, self.codes[tokens])
        if column == self.plan.form.width - 1:
            self._end(line, tokens)

    def end_line(self) -> None:
        """The line has its mark: begin the next line."""
        keyword = [self.ids[character] for character in self.plan.keyword]
        for at in range(self.line.shape[1] - len(keyword) + 1 if keyword else 0):
            self.found |= (self.line[:, at : at + len(keyword)] == keyword).all(axis=1)
        self.line[:] = -1
        self.before = begin(len(self.ways))

    def keep(self, rows: np.ndarray) -> None:
        """Continue with these candidates, once a line has ended."""
        for name in ("spots", "ways", "groups", "used", "rhyming_left", "oblique_left"):
            setattr(self, name, getattr(self, name)[rows])
        for name in ("times", "found"):
            setattr(self, name, getattr(self, name)[rows])

    def _wanted(self, line: int) -> tuple[int, int]:
        """How many endings are still needed after this line: rhyming ones, and oblique ones."""
        lines = [later for later in range(line + 1, self.plan.form.lines) if later not in self.endings]
        rhyming = sum(later % 2 for later in lines)
        return rhyming, len(lines) - rhyming

    def _after_rhyme(self, line: int) -> tuple[np.ndarray, np.ndarray]:
        """Groups (rows, G) that can spare a rhyme here, and rows where it must not use up an oblique ending."""
        rhyming, others = self._wanted(line)
        open_groups = self.groups & (self.rhyming_left > rhyming)
        return open_groups, self.oblique_left <= others

    def _after_oblique(self, line: int) -> tuple[np.ndarray, np.ndarray]:
        """Groups (rows, G) that allow an oblique ending here, and those of them that cannot spare a rhyme for it."""
        rhyming, others = self._wanted(line)
        open_groups = self.groups & (self.oblique_left > others)[:, None]
        return open_groups, open_groups & (self.rhyming_left == rhyming)

    def _endings(self, line: int) -> np.ndarray:
        """The tokens (rows, V) that may end a line."""
        rhyme = self._rhymes_here(line)
        tokens = np.zeros(self.used.shape, bool)
        if rhyme.any():
            open_groups, scarce = self._after_rhyme(line)
            tokens |= ((open_groups & rhyme[:, None]).astype(np.float32) @ self.rhymes) > 0
            tokens &= ~(scarce[:, None] & self.readings.oblique)
        oblique = self._oblique_here(line)
        if oblique.any():
            open_groups, tight = self._after_oblique(line)
            loose = oblique & (open_groups & ~tight).any(axis=1)
            tokens |= loose[:, None] & self.readings.oblique
            rows = np.flatnonzero(oblique & ~loose)
            spared = (tight[rows].astype(np.float32) @ (1 - self.rhymes)) > 0
            tokens[rows] |= spared & self.readings.oblique
        return tokens & ~self.used

    def _rhymes_here(self, line: int) -> np.ndarray:
        """Rows in which this line may rhyme."""
        return (self.ways & self.rhymed).any(axis=1) if line == 0 else np.full(len(self.ways), bool(line % 2))

    def _oblique_here(self, line: int) -> np.ndarray:
        """Rows in which this line may end oblique."""
        return (self.ways & ~self.rhymed).any(axis=1) if line == 0 else np.full(len(self.ways), not line % 2)

    def _end(self, line: int, tokens: np.ndarray) -> None:
        """A line ended in `tokens`: decide whether the first line rhymes, and keep the groups that stay open."""
        oblique = self._oblique_here(line) & self.readings.oblique[tokens]
        after_rhyme, _ = self._after_rhyme(line)
        after_oblique, tight = self._after_oblique(line)
        theirs = self.readings.rhymes[:, tokens].T  # (rows, G)
        after_oblique &= ~(tight & theirs)
        after_rhyme &= theirs
        fixed = line in self.endings
        if fixed:  # it was counted as taken from the start, and is known to fit
            after_oblique, after_rhyme = self.groups, self.groups & theirs
        if line == 0:  # reading it as oblique where possible leaves the rhyme open
            self.ways &= np.where(oblique[:, None], ~self.rhymed, self.rhymed)
        self.groups = np.where(oblique[:, None], after_oblique, after_rhyme)
        if not fixed:
            rows = np.arange(len(tokens))
            self.used[rows, tokens] = True
            self.rhyming_left -= theirs
            self.oblique_left -= self.readings.oblique[tokens]


def _classes(readings: Readings) -> np.ndarray:
    """(8, V): the tokens that are allowed where the open ways together have this set of `NEEDS`."""
    return np.array(
        [
            (readings.characters & bool(needs & NEEDS[FREE]))
            | (readings.level & bool(needs & NEEDS[LEVEL]))
            | (readings.oblique & bool(needs & NEEDS[OBLIQUE]))
            for needs in range(8)
        ]
    )
