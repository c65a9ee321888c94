"""A character LSTM in one file: reads a text, learns to continue it, and after every epoch shows how it would.

    python examples/char_lstm.py input.txt

The text is cut into streams that are read side by side, a chunk of steps at a time. A chunk starts from the LSTM state
that the one before ended with, but no gradient flows back into that one: truncated backpropagation through time.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import minidl


class CharLSTM(minidl.Layer):
    """From each character to the logits of the next one: embedding, LSTM, dropout, projection."""

    def __init__(self, characters, hidden_size, dropout, backend, rng):
        self.embedding = minidl.Embedding(characters, 64, backend=backend, rng=rng)
        self.lstm = minidl.LSTM(64, hidden_size, backend=backend, rng=rng)
        self.dropout = minidl.Dropout(dropout, rng=rng)
        self.head = minidl.LinearCrossEntropy(hidden_size, characters, backend=backend, rng=rng)
        self.lstm.bias.data[hidden_size : 2 * hidden_size] = 1  # forget gates start open

    def forward_backward(self, inputs, targets, state):
        """The loss, and the state after the chunk; adds the loss's gradient to every parameter's."""
        x, embedding_cache = self.embedding.forward(inputs.data, inputs)
        y, lstm_cache = self.lstm.forward(x, inputs, state)
        h, dropout_cache = self.dropout.forward(y, inputs)
        loss, dh = self.head.forward_backward(h, targets.data)
        dy = self.dropout.backward(dh, dropout_cache)
        self.embedding.backward(self.lstm.backward(dy, lstm_cache), embedding_cache)
        return loss, lstm_cache.state

    def loss(self, inputs, targets, state):
        """The loss without dropout, and the state after the chunk."""
        y, cache = self.lstm.forward(self.embedding(inputs.data, inputs), inputs, state)
        return self.head(y, targets.data), cache.state

    def write(self, ids, state, length, rng):
        """Yield characters to follow `ids`, an array of one, each drawn by its probability."""
        for _ in range(length):
            state = self.lstm.step(self.embedding(ids), state)
            ids = minidl.sample(self.head.logits(state[0]), temperature=0.8, rng=rng)
            yield ids[0]


def chunks(ids, streams, steps, backend):
    """[inputs, targets] of all streams, `steps` characters at a time; a target is the character that follows."""
    length = (len(ids) - 1) // streams
    for t in range(0, length, steps):
        starts, lengths = t + length * np.arange(streams), np.full(streams, min(steps, length - t))
        yield [minidl.pack_rows(ids, starts + ahead, lengths, backend) for ahead in (0, 1)]


def train(args):
    rng, start = np.random.default_rng(args.seed), time.perf_counter()
    characters, ids = np.unique(list(args.text.read_text(encoding="utf-8")), return_inverse=True)
    if min(args.batch_size, args.steps) < 1 or len(ids) < 20 * max(args.batch_size, 16):
        raise ValueError(f"{len(ids)} characters are too few for {args.batch_size} streams, in chunks of {args.steps}")
    reading, held_out = np.split(ids.astype(np.int32), [len(ids) * 9 // 10])  # the last tenth is not learned
    model = CharLSTM(len(characters), args.hidden_size, args.dropout, args.backend, rng)
    optimizer = minidl.AdamW(model.parameters(), args.lr)
    schedule = minidl.OneCycle(optimizer, args.lr, 1 + args.epochs * len(reading) // (args.batch_size * args.steps))
    for epoch in range(args.epochs):
        losses, state = [], None
        for x, y in chunks(reading[rng.integers(args.steps) :], args.batch_size, args.steps, args.backend):
            loss, state = model.forward_backward(x._replace(step=schedule.steps), y, state)
            minidl.clip_grad_norm(optimizer.params, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss)
        validation, state = 0.0, None
        for x, y in chunks(held_out, 16, 256, args.backend):
            loss, state = model.loss(x, y, state)
            validation += float(loss) * len(x.data) / (16 * ((len(held_out) - 1) // 16))
        training, seconds = float(sum(losses)) / len(losses), time.perf_counter() - start
        print(f"epoch {epoch + 1}: training {training:.3f}, validation {validation:.3f} nats/char, {seconds:.1f} s")
        print("".join(characters[id] for id in model.write(y.data[-1:], [s[-1:] for s in state], 300, rng)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("text", type=Path, help="a UTF-8 text file, ideally of a million characters")
    parser.add_argument("--backend", default="numpy", choices=["numpy", "cupy"], help="cupy: an NVIDIA GPU")
    parser.add_argument("--epochs", type=int, default=14, help="passes over the text")
    parser.add_argument("--batch-size", type=int, default=128, help="streams read side by side")
    parser.add_argument("--steps", type=int, default=64, help="characters in a chunk")
    parser.add_argument("--hidden-size", type=int, default=256, help="units of the LSTM")
    parser.add_argument("--dropout", type=float, default=0.3, help="share of the units that a step drops")
    parser.add_argument("--lr", type=float, default=0.012, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    try:
        train(parser.parse_args())
    except (OSError, ValueError, minidl.BackendError) as error:
        parser.error(" ".join(str(error).split()))
