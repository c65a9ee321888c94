"""Learn to write like a text, one character after the other.

    python examples/char_lstm.py input.txt

Two LSTMs read the text as `batch_size` streams at once, `steps` characters at a time. Backpropagation is truncated: each
chunk starts from the state that the one before it ended with, but no gradient flows back into that one.
"""

import argparse
import time

import numpy as np

import minidl


class CharLSTM(minidl.Layer):
    """Embedding, LSTMs with dropout after each, and a projection to the next character's logits."""

    def __init__(self, vocabulary_size, hidden_size, layers, dropout, backend, rng):
        where = {"backend": backend, "rng": rng}
        self.embedding = minidl.Embedding(vocabulary_size, hidden_size // 4, **where)
        sizes = [hidden_size // 4] + [hidden_size] * layers
        self.lstms = [minidl.LSTM(*pair, **where) for pair in zip(sizes, sizes[1:])]
        self.dropouts = [minidl.Dropout(dropout, rng=rng) for _ in self.lstms]
        self.head = minidl.LinearCrossEntropy(hidden_size, vocabulary_size, **where)
        for lstm in self.lstms:
            lstm.bias.data[hidden_size : 2 * hidden_size] = 1  # forget gates start open

    def forward_backward(self, x, targets, states):
        """The loss in nats a character, and the states after the chunk; adds the gradient to every parameter's."""
        h, embedding_cache = self.embedding.forward(x.data, x)
        caches, after = [], []
        for lstm, dropout, state in zip(self.lstms, self.dropouts, states):
            h, lstm_cache = lstm.forward(h, x, state)
            h, dropout_cache = dropout.forward(h, x)
            caches.append((lstm_cache, dropout_cache))
            after.append(lstm_cache.state)
        loss, dh = self.head.forward_backward(h, targets.data)
        for lstm, dropout, (lstm_cache, dropout_cache) in zip(self.lstms[::-1], self.dropouts[::-1], caches[::-1]):
            dh = lstm.backward(dropout.backward(dh, dropout_cache), lstm_cache)
        self.embedding.backward(dh, embedding_cache)
        return loss, after

    def loss(self, x, targets, states):
        h, after = self.embedding(x.data, x), []
        for lstm, state in zip(self.lstms, states):
            h, cache = lstm.forward(h, x, state)
            after.append(cache.state)
        return self.head(h, targets.data), after

    def write(self, start, length, temperature, rng):
        """`start` and `length` ids more."""
        ids, states = list(start), [None] * len(self.lstms)
        for n in range(len(start) + length - 1):
            h = self.embedding(np.array(ids[n : n + 1]))
            for layer, lstm in enumerate(self.lstms):
                states[layer] = lstm.step(h, states[layer])
                h = states[layer][0]
            if n + 1 == len(ids):
                ids.append(int(minidl.sample(self.head.logits(h), temperature, rng=rng)[0]))
        return ids


def chunks(ids, streams, steps, backend, offset=0):
    """Inputs and targets, the next characters, of `streams` equal parts of the text, `steps` characters at a time."""
    length = (len(ids) - 1 - offset) // streams
    starts = offset + length * np.arange(streams)
    for at in range(0, length, steps):
        lengths = np.full(streams, min(steps, length - at))
        yield tuple(minidl.pack_rows(ids, starts + at + shift, lengths, backend) for shift in (0, 1))


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--wd", type=float, default=0.01)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    text = open(args.text, encoding="utf-8").read()
    characters = sorted(set(text))
    ids = np.array([characters.index(c) for c in text], np.int32)
    train, validation = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
    rng = np.random.default_rng(args.seed)
    model = CharLSTM(len(characters), args.hidden_size, args.layers, args.dropout, args.backend, rng)
    optimizer = minidl.AdamW(model.parameters(), args.lr, weight_decay=args.wd)
    per = -(-((len(train) - 1) // args.batch_size) // args.steps)
    schedule = minidl.OneCycle(optimizer, args.lr, args.epochs * per)
    print(sum(p.data.size for p in model.parameters()), "weights", per, "steps an epoch")
    start = time.perf_counter()
    for epoch in range(args.epochs):
        states, total, n = [None] * args.layers, 0.0, 0
        for x, targets in chunks(train, args.batch_size, args.steps, args.backend, int(rng.integers(args.steps))):
            loss, states = model.forward_backward(x._replace(step=schedule.steps), targets, states)
            minidl.clip_grad_norm(model.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss; n += 1
        vstates, nats, count = [None] * args.layers, 0.0, 0
        for x, targets in chunks(validation, 20, 128, args.backend):
            loss, vstates = model.loss(x, targets, vstates)
            nats += float(loss) * len(x.data); count += len(x.data)
        print(f"epoch {epoch+1} train {float(total)/n:.4f} val {nats/count:.4f} {time.perf_counter()-start:.0f} s", flush=True)
    print("".join(characters[i] for i in model.write([characters.index("\n")], 300, 0.8, rng)))


main()
