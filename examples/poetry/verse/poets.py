"""generate.py's two ways of writing: by the rules of a form, or free verse."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from typing import Protocol

from corpus.line_index import LineIndex
from corpus.vocabulary import Vocabulary
from model import PoemModel
from verse import request, writing
from verse.composing import CANDIDATES, FAR, KEYWORD_CANDIDATES, Choice, Poem, compose
from verse.free_verse import MARKS, FreeVerse, no_mark_after
from verse.plans import Impossible, plan
from verse.readings import readings_of
from verse.rules import Rules
from verse.scoring import log_probabilities

import numpy as np

from minidl.kernels.cpu import threads

GROUP = 256  # poems written side by side; more take memory and are no faster
ROWS = 128  # candidates for poems of a form written side by side
FREE_CANDIDATES = 2  # for each poem of free verse, to prefer one that copies no line
FEW = 32  # up to this many poems side by side, one core is enough
LATEST_SPOT = 20  # where a keyword begins in free verse, in characters from the beginning


class Poet(Protocol):
    """Writes the requested poems, and can say afterwards what was forbidden."""

    model: PoemModel
    vocabulary: Vocabulary

    def poems(self) -> Iterator[list[Poem]]:
        """All poems, group by group; raises plans.Impossible if none can meet the request."""

    def referee(self, poem: Poem) -> Referee:
        """The rules for reading one poem again."""


class Referee(Protocol):
    """What was allowed at each place, for a poem that is read again."""

    def allowed(self) -> tuple[np.ndarray, str]:
        """The tokens (V,) that were allowed at the next place, and the reason in a few words."""

    def read(self, token: int) -> None:
        """Read the token at the next place and move past it."""


class Regulated:
    """Poems of a form with rules."""

    def __init__(self, args: Namespace, model: PoemModel, vocabulary: Vocabulary, index: LineIndex | None) -> None:
        self.args, self.model, self.vocabulary, self.index = args, model, vocabulary, index
        self.forbidden = index if args.no_copy else None
        self.readings = readings_of(vocabulary.tokens)
        self.plan = plan(
            args.form,
            vocabulary.tokens,
            self.readings,
            start=args.start,
            acrostic=args.acrostic,
            rhyme=args.rhyme,
            keyword=args.keyword,
            index=self.forbidden,
        )

    def poems(self) -> Iterator[list[Poem]]:
        args, rng = self.args, np.random.default_rng(self.args.seed)
        choice = Choice(args.argmax, args.temperature, args.top_k, args.top_p)
        group = max(1, ROWS // (KEYWORD_CANDIDATES if self.plan.spots else CANDIDATES))
        for written in range(0, args.count, group):
            count = min(group, args.count - written)
            yield compose(
                self.model,
                self.vocabulary,
                self.readings,
                self.plan,
                count,
                choice=choice,
                index=self.index,
                no_copy=args.no_copy,
                rng=rng,
            )

    def referee(self, poem: Poem) -> Referee:
        return RegulatedReferee(self, poem)


class RegulatedReferee:
    """Reads a poem of a form with rules again."""

    def __init__(self, poet: Regulated, poem: Poem) -> None:
        self.form, self.vocabulary = poet.plan.form, poet.vocabulary
        self.rules = Rules(poet.plan, poet.vocabulary, poet.readings, np.array([poem.spot]), poet.forbidden)
        self.place = 0

    def allowed(self) -> tuple[np.ndarray, str]:
        line, column = divmod(self.place, self.form.width + 1)
        if line < self.form.lines and column < self.form.width:
            return self.rules.allowed((line, column))[0], self.rules.reason((line, column))
        only = np.zeros(len(self.vocabulary), bool)
        only[self.vocabulary.ids[writing.END if line == self.form.lines else self.form.mark(line)]] = True
        return only, "end of the poem" if line == self.form.lines else "end of the line"

    def read(self, token: int) -> None:
        line, column = divmod(self.place, self.form.width + 1)
        if column < self.form.width and line < self.form.lines:
            self.rules.advance((line, column), np.array([token]))
        else:
            self.rules.end_line()
        self.place += 1


class Free:
    """Poems without a form, which repeat no line."""

    def __init__(self, args: Namespace, model: PoemModel, vocabulary: Vocabulary, index: LineIndex | None) -> None:
        self.args, self.model, self.vocabulary, self.index = args, model, vocabulary, index
        self.forbidden = index if args.no_copy else None
        request.check_start(args.start, self.forbidden)
        if any(character in MARKS for character in args.keyword):
            raise Impossible(f"--keyword must be a word without punctuation, got {args.keyword}")
        self.longest = max(args.max_length, len(args.start))
        last = self.longest - len(args.keyword)
        if args.keyword not in args.start and last < len(args.start):
            raise Impossible(
                f"--keyword {args.keyword} does not fit after --start in the {self.longest} characters of a poem "
                "(see --max-length)"
            )
        self.spots = (len(args.start), max(len(args.start), min(last, LATEST_SPOT)))

    def poems(self) -> Iterator[list[Poem]]:
        args, rng = self.args, np.random.default_rng(self.args.seed)
        each = KEYWORD_CANDIDATES if args.keyword else 1 if self.index is None or args.no_copy else FREE_CANDIDATES
        each = 1 if args.argmax else each  # they would all be the same
        group = max(1, GROUP // each)
        for written in range(0, args.count, group):
            count = min(group, args.count - written)
            last = self.spots[0] if args.argmax else self.spots[1]
            spots = rng.integers(self.spots[0], last + 1, count * each).tolist() if args.keyword else []
            write = partial(self._write, count * each, spots, rng)
            # `run` limits BLAS to one thread: for few poems, more only get in each other's way.
            texts = threads.run([write])[0] if count * each <= FEW else write()
            yield self._best(texts, each, spots)

    def _write(self, rows: int, spots: list[int], rng: np.random.Generator) -> list[str]:
        args = self.args
        return writing.write_poems(
            self.model,
            self.vocabulary,
            [args.start] * rows,
            self.longest,
            argmax=args.argmax,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            rules=FreeVerse(self.vocabulary, index=self.forbidden, keyword=args.keyword, spots=spots),
            rng=rng,
        )

    def _best(self, texts: list[str], each: int, spots: list[int]) -> list[Poem]:
        """Of every `each` poems, one that copies no line if possible; with a keyword, the likeliest that has it."""
        scores = [0.0] * len(texts)
        if self.args.keyword:
            scores = [float(np.nanmean(row)) for row in log_probabilities(self.model, self.vocabulary, texts)]
        if self.index is not None and each > 1:
            scores = [score - FAR * bool(self.index.copied(text)) for score, text in zip(scores, texts, strict=True)]
        kept = []
        for start in range(0, len(texts), each):
            rows = [row for row in range(start, start + each) if self.args.keyword in texts[row]]
            if not rows:
                raise Impossible(f"--keyword {self.args.keyword} fits nowhere: every line with it would be forbidden")
            rows = [row for row in rows if texts[row]]
            if not rows:
                why = "every line would be a copy (--no-copy)" if self.args.no_copy else "the model knows only marks"
                raise Impossible(f"nothing can be written: {why}")
            best = max(rows, key=scores.__getitem__)
            kept.append(Poem(texts[best], scores[best], spots[best] if spots else -1))
        return kept

    def referee(self, poem: Poem) -> Referee:
        return FreeReferee(self, poem)


class FreeReferee:
    """Reads a poem of free verse again."""

    def __init__(self, poet: Free, poem: Poem) -> None:
        self.start, self.longest, self.vocabulary = poet.args.start, poet.longest, poet.vocabulary
        self.rules = FreeVerse(poet.vocabulary, index=poet.forbidden, keyword=poet.args.keyword, spots=[poem.spot])
        self.read_so_far: list[int] = []

    def allowed(self) -> tuple[np.ndarray, str]:
        place = len(self.read_so_far)
        tokens = self.vocabulary.tokens
        if place < len(self.start):
            return np.array([token == self.start[place] for token in tokens]), "asked for"
        if place == self.longest:
            return np.array([token == writing.END for token in tokens]), "longest poem"
        scores = np.zeros((1, len(tokens)))
        scores[0, [mark for mark in self.vocabulary.marks if mark != self.vocabulary.ids[writing.END]]] = -np.inf
        self.rules.forbid(scores, [self.read_so_far], [self.longest])
        allowed = np.isfinite(scores[0])
        if allowed.sum() == 1:
            return allowed, "asked for"
        text = self.vocabulary.decode(self.read_so_far)
        if no_mark_after(text) and self.rules.marks.any():
            return allowed, "no mark"
        return allowed, "" if text else "not the end"

    def read(self, token: int) -> None:
        self.read_so_far.append(token)
