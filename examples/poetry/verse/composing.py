"""Writing regulated poems: the model proposes, the rules forbid, and of many candidates the likeliest is kept.

Candidates for one poem are written side by side. At each place a candidate draws from the model among what the rules
allow (see rules.py), so that every one of them keeps the form. What the rules forbade is not lost from sight: a
candidate weighs as much as the share of the model's probability that was allowed to it, and at every line's end the
candidates are drawn anew by their weights (a particle filter). So they come out as the model's own poems of that form
would, not as poems that were bent into it. The most probable one is the poem.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from corpus.line_index import LineIndex
from corpus.vocabulary import BEGIN, END, Vocabulary
from model import PoemModel
from verse.plans import Impossible, Plan
from verse.readings import Readings
from verse.rules import Rules

import numpy as np

import minidl
from minidl.backend import Rng
from minidl.kernels.cpu import threads

CANDIDATES = 8  # for each poem: more are more probable, but plainer and slower
KEYWORD_CANDIDATES = 24  # a keyword may stand in many places
TINY = 1e-25  # of probability: what single precision still tells apart
LEAST_SHARE = -1000.0
FAR = 1e6  # below every log-probability


class Poem(NamedTuple):
    """A poem, its log-probability at temperature 1 (marks and the end included), and where its keyword was put."""

    text: str
    log_probability: float
    spot: int = -1


class Choice(NamedTuple):
    """How a character is chosen from logits; see minidl.sample."""

    argmax: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def draw(self, logits: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """An id for each row of `logits` (B, V) among those `allowed`, and the logarithm of what share of the
        probability at this temperature was allowed."""
        weights = self.scaled(logits)
        weights -= weights.max(axis=1, keepdims=True)
        np.exp(weights, out=weights)
        total = weights.sum(axis=1)
        weights *= allowed
        cumulative = weights.cumsum(axis=1)
        mass = cumulative[:, -1]
        with np.errstate(divide="ignore"):
            share = np.log(mass / total)
        if self.argmax or self.top_k is not None or self.top_p is not None or mass.min() < TINY:
            return self._careful(np.where(allowed, logits, np.float32(-np.inf)), rng), share
        # As minidl.sample does it, but in single precision: half the time of a step would go into double.
        draws = np.minimum(rng.random(len(mass), np.float32) * mass, np.nextafter(mass, np.float32(0)))
        return (cumulative > draws[:, None]).argmax(axis=1).astype(np.int32), share

    def _careful(self, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An id for each row of `scores` (B, V), where -inf forbids one, however improbable the others are."""
        if self.argmax:
            return scores.argmax(axis=1).astype(np.int32)
        return minidl.sample(scores, self.temperature, self.top_k, self.top_p, rng).astype(np.int32)

    def scaled(self, logits: np.ndarray) -> np.ndarray:
        """Logits whose softmax is what is drawn from; a tiny temperature must not make them infinite."""
        return logits * np.float32(1 if self.argmax else 1 / max(self.temperature, 1e-6))


def compose(
    model: PoemModel,
    vocabulary: Vocabulary,
    readings: Readings,
    plan: Plan,
    count: int,
    *,
    choice: Choice,
    candidates: int | None = None,
    index: LineIndex | None = None,
    no_copy: bool = False,
    rng: Rng = None,
) -> list[Poem]:
    """`count` poems after `plan`, each the likeliest of its own `candidates`.

    A candidate with a line that stands in `index` is taken only if all have one. With `no_copy` such a line is
    forbidden. That alone can leave a candidate without anything to put at the end of a line; others take its place, and
    Impossible is raised if a poem has none left.
    """
    candidates = candidates or (KEYWORD_CANDIDATES if plan.spots else CANDIDATES)
    task = partial(_compose, model, vocabulary, readings, plan, count, choice, candidates, index, no_copy, rng)
    # In `run` BLAS is held to one thread: steps of this size gain nothing from more, and lose much on a busy machine.
    return threads.run([task])[0]


def _compose(
    model: PoemModel,
    vocabulary: Vocabulary,
    readings: Readings,
    plan: Plan,
    count: int,
    choice: Choice,
    candidates: int,
    index: LineIndex | None,
    no_copy: bool,
    rng: Rng,
) -> list[Poem]:
    rng = np.random.default_rng(rng)
    candidates = 1 if choice.argmax else candidates  # they would all be the same
    rows = count * candidates
    spots = rng.integers(1 if choice.argmax else len(plan.spots), size=rows) if plan.spots else np.full(rows, -1)
    writer = _Writer(
        model, vocabulary, Rules(plan, vocabulary, readings, spots, index if no_copy else None), choice, rng
    )
    for line in range(plan.form.lines):
        for column in range(plan.form.width):
            writer.character((line, column))
        writer.mark(vocabulary.ids[plan.form.mark(line)])
        writer.rules.end_line()
        if line + 1 < plan.form.lines:
            writer.keep(_drawn_anew(writer.weights, candidates, rng))
    writer.mark(vocabulary.ids[END])
    scores = np.where(np.isfinite(writer.weights), writer.log_probability, -np.inf).reshape(count, candidates)
    best = scores.argmax(axis=1) + np.arange(count) * candidates
    if not np.isfinite(scores.max(axis=1)).all():
        raise Impossible("--no-copy leaves nothing to end a line with: every line as asked stands in the corpus")
    texts = [vocabulary.decode(tokens) for tokens in writer.tokens]
    if index is not None and not no_copy:
        new = np.array([not index.copied(text) for text in texts]).reshape(count, candidates)
        best = np.where(new, scores, scores - FAR).argmax(axis=1) + np.arange(count) * candidates
    return [Poem(texts[row], float(writer.log_probability[row]), int(writer.rules.spots[row])) for row in best]


class _Writer:
    """The candidates so far: their tokens, the model's state, and what they weigh."""

    def __init__(
        self, model: PoemModel, vocabulary: Vocabulary, rules: Rules, choice: Choice, rng: np.random.Generator
    ) -> None:
        self.model, self.rules, self.choice, self.rng = model, rules, choice, rng
        rows = len(rules.ways)
        self.end = vocabulary.ids[END]
        self.tokens = np.zeros((rows, 0), np.int32)
        self.begun = BEGIN in vocabulary  # else the first character itself is the beginning, and was asked for
        self.latest = np.full(rows, vocabulary.ids.get(BEGIN, 0), np.int32)
        self.state: Any = None
        self.log_probability = np.zeros(rows)
        self.weights = np.zeros(rows)  # in logarithms, since the candidates were last drawn anew

    def character(self, place: tuple[int, int]) -> None:
        """One more character of the line."""
        allowed, forced = self.rules.allowed(place), self.rules.forced(place)
        if not self.begun:
            tokens = forced.astype(np.int32)
            self.begun = True
        else:
            # Keywords come early in one candidate and late in another: they are not paid for until the end.
            paid = (forced < 0) | (place in self.rules.plan.fixed)
            tokens = self._draw(self._logits(), allowed, paid)
        self._append(tokens)
        self.rules.advance(place, tokens)

    def mark(self, token: int) -> None:
        """The mark that ends a line, or the end of the poem."""
        logits = self._logits()
        tokens = np.full(len(logits), token, np.int32)
        self.weights += _log_softmax_of(self.choice.scaled(logits), tokens)
        self.log_probability += _log_softmax_of(logits, tokens)
        self._append(tokens)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these candidates, all of the same weight."""
        self.tokens, self.latest, self.log_probability = (
            self.tokens[rows],
            self.latest[rows],
            self.log_probability[rows],
        )
        self.weights = np.where(np.isneginf(self.weights[rows]), -np.inf, 0.0)  # what is lost stays so
        self.rules.keep(rows)
        self.state = _taken(self.state, rows)

    def _logits(self) -> np.ndarray:
        logits, self.state = self.model.next_logits(self.latest, self.state)
        return minidl.to_host(logits)

    def _draw(self, logits: np.ndarray, allowed: np.ndarray, paid: np.ndarray) -> np.ndarray:
        """A token for each row, from those that are allowed; a row without any weighs nothing from here on."""
        lost = ~allowed.any(axis=1)
        allowed[lost, self.end] = True
        tokens, shares = self.choice.draw(logits, allowed, self.rng)
        shares = np.maximum(shares, LEAST_SHARE)  # improbable is not yet impossible
        self.weights += np.where(lost, -np.inf, np.where(paid, shares, 0.0))
        self.log_probability += _log_softmax_of(logits, tokens)
        return tokens

    def _append(self, tokens: np.ndarray) -> None:
        self.latest = tokens
        self.tokens = np.concatenate([self.tokens, tokens[:, None]], axis=1)


def _taken(state: Any, rows: np.ndarray) -> Any:
    """These rows of a model's state: arrays, or tuples of them."""
    if state is None:
        return None
    return tuple(_taken(part, rows) for part in state) if isinstance(state, (tuple, list)) else state[rows]


def _drawn_anew(weights: np.ndarray, candidates: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of candidates in proportion to their weights, among those for the same poem; systematic resampling."""
    groups = weights.reshape(-1, candidates)
    top = groups.max(axis=1, keepdims=True)
    shares = np.exp(groups - np.where(np.isfinite(top), top, 0))
    shares[~np.isfinite(top[:, 0])] = 1  # all are lost, and stay so
    cumulative = np.cumsum(shares, axis=1) / shares.sum(axis=1, keepdims=True)
    points = (np.arange(candidates) + rng.random((len(groups), 1))) / candidates
    chosen = (points[:, :, None] > cumulative[:, None, :-1]).sum(axis=2)
    return (chosen + np.arange(len(groups))[:, None] * candidates).ravel()


def _log_softmax_of(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The log-probability of a token in each row."""
    weights = logits - logits.max(axis=1, keepdims=True)
    rows = np.arange(len(tokens))
    chosen = weights[rows, tokens]
    return chosen - np.log(np.exp(weights, out=weights).sum(axis=1))
