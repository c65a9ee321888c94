"""Writing regulated poems: the model proposes, the rules forbid, and the likeliest of many candidates is kept.

The candidates for a poem are written side by side. At each place a candidate samples from the model among the
characters that the rules allow (see rules.py), so every candidate keeps the form. A candidate's weight is the share of
the model's probability that was allowed, and at the end of each line the candidates are resampled by weight (a particle
filter). The results are therefore distributed like the model's own poems of that form, not like poems forced into it.
The most probable candidate is the poem.
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

CANDIDATES = 8  # per poem: more give more probable poems, but plainer and slower ones
KEYWORD_CANDIDATES = 24  # a keyword can go in many places
TINY = 1e-25  # a probability that single precision still resolves
LEAST_SHARE = -1000.0
FAR = 1e6  # more than any difference of log-probabilities


class Poem(NamedTuple):
    """A poem, its log-probability at temperature 1 (punctuation and end included), and where its keyword is."""

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
        """An allowed id for each row of `logits` (B, V), and the log of the share of the probability at this
        temperature that was allowed."""
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
        # Like minidl.sample, but in single precision: double would take half of the step's time.
        draws = np.minimum(rng.random(len(mass), np.float32) * mass, np.nextafter(mass, np.float32(0)))
        return (cumulative > draws[:, None]).argmax(axis=1).astype(np.int32), share

    def _careful(self, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An id for each row of `scores` (B, V), where -inf means forbidden; the rest may be very improbable."""
        if self.argmax:
            return scores.argmax(axis=1).astype(np.int32)
        return minidl.sample(scores, self.temperature, self.top_k, self.top_p, rng).astype(np.int32)

    def scaled(self, logits: np.ndarray) -> np.ndarray:
        """The logits whose softmax is sampled; a tiny temperature must not make them infinite."""
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
    """`count` poems that follow `plan`, each the likeliest of its own `candidates`.

    A candidate with a line from `index` is chosen only if all have one. With `no_copy` such lines are forbidden, which
    can leave a candidate with no character to end a line with; other candidates then replace it, and Impossible is
    raised if a poem has none left.
    """
    candidates = candidates or (KEYWORD_CANDIDATES if plan.spots else CANDIDATES)
    task = partial(_compose, model, vocabulary, readings, plan, count, choice, candidates, index, no_copy, rng)
    # `run` limits BLAS to one thread: steps this small gain nothing from more, and lose a lot on a busy machine.
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
            writer.keep(_resampled(writer.weights, candidates, rng))
    writer.mark(vocabulary.ids[END])
    scores = np.where(np.isfinite(writer.weights), writer.log_probability, -np.inf).reshape(count, candidates)
    best = scores.argmax(axis=1) + np.arange(count) * candidates
    if not np.isfinite(scores.max(axis=1)).all():
        raise Impossible("--no-copy leaves nothing to end a line with: every line that fits is in the corpus")
    texts = [vocabulary.decode(tokens) for tokens in writer.tokens]
    if index is not None and not no_copy:
        new = np.array([not index.copied(text) for text in texts]).reshape(count, candidates)
        best = np.where(new, scores, scores - FAR).argmax(axis=1) + np.arange(count) * candidates
    return [Poem(texts[row], float(writer.log_probability[row]), int(writer.rules.spots[row])) for row in best]


class _Writer:
    """The candidates so far: their tokens, the model's state, and their weights."""

    def __init__(
        self, model: PoemModel, vocabulary: Vocabulary, rules: Rules, choice: Choice, rng: np.random.Generator
    ) -> None:
        self.model, self.rules, self.choice, self.rng = model, rules, choice, rng
        rows = len(rules.ways)
        self.end = vocabulary.ids[END]
        self.tokens = np.zeros((rows, 0), np.int32)
        self.begun = BEGIN in vocabulary  # otherwise the poem starts with a requested first character
        self.latest = np.full(rows, vocabulary.ids.get(BEGIN, 0), np.int32)
        self.state: Any = None
        self.log_probability = np.zeros(rows)
        self.weights = np.zeros(rows)  # logarithms, since the last resampling

    def character(self, place: tuple[int, int]) -> None:
        """Add a character to the line."""
        allowed, forced = self.rules.allowed(place), self.rules.forced(place)
        if not self.begun:
            tokens = forced.astype(np.int32)
            self.begun = True
        else:
            # Keywords come early in one candidate and late in another: only the final choice counts them.
            paid = (forced < 0) | (place in self.rules.plan.fixed)
            tokens = self._draw(self._logits(), allowed, paid)
        self._append(tokens)
        self.rules.advance(place, tokens)

    def mark(self, token: int) -> None:
        """Add the mark that ends a line, or the end of the poem."""
        logits = self._logits()
        tokens = np.full(len(logits), token, np.int32)
        self.weights += _log_softmax_of(self.choice.scaled(logits), tokens)
        self.log_probability += _log_softmax_of(logits, tokens)
        self._append(tokens)

    def keep(self, rows: np.ndarray) -> None:
        """Continue with these candidates, all with the same weight."""
        self.tokens, self.latest, self.log_probability = (
            self.tokens[rows],
            self.latest[rows],
            self.log_probability[rows],
        )
        self.weights = np.where(np.isneginf(self.weights[rows]), -np.inf, 0.0)  # a lost candidate stays lost
        self.rules.keep(rows)
        self.state = _taken(self.state, rows)

    def _logits(self) -> np.ndarray:
        logits, self.state = self.model.next_logits(self.latest, self.state)
        return minidl.to_host(logits)

    def _draw(self, logits: np.ndarray, allowed: np.ndarray, paid: np.ndarray) -> np.ndarray:
        """An allowed token for each row; a row without one has zero weight from here on."""
        lost = ~allowed.any(axis=1)
        allowed[lost, self.end] = True
        tokens, shares = self.choice.draw(logits, allowed, self.rng)
        shares = np.maximum(shares, LEAST_SHARE)  # improbable is not impossible
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


def _resampled(weights: np.ndarray, candidates: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of candidates, resampled by weight within each poem (systematic resampling)."""
    groups = weights.reshape(-1, candidates)
    top = groups.max(axis=1, keepdims=True)
    shares = np.exp(groups - np.where(np.isfinite(top), top, 0))
    shares[~np.isfinite(top[:, 0])] = 1  # all are lost and stay lost
    cumulative = np.cumsum(shares, axis=1) / shares.sum(axis=1, keepdims=True)
    points = (np.arange(candidates) + rng.random((len(groups), 1))) / candidates
    chosen = (points[:, :, None] > cumulative[:, None, :-1]).sum(axis=2)
    return (chosen + np.arange(len(groups))[:, None] * candidates).ravel()


def _log_softmax_of(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The log-probability of each row's token."""
    weights = logits - logits.max(axis=1, keepdims=True)
    rows = np.arange(len(tokens))
    chosen = weights[rows, tokens]
    return chosen - np.log(np.exp(weights, out=weights).sum(axis=1))
