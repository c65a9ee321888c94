"""examples/char_lstm.py on torch.nn, as a PyTorch user would write it: the same model, chunks, optimizer and schedule.

python benchmarks/torch_char_lstm.py input.txt
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class CharLSTM(nn.Module):
    """From each character to the logits of the next one: embedding, LSTM, dropout, projection."""

    def __init__(self, characters, hidden_size, dropout):
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.lstm = nn.LSTM(64, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, characters)
        with torch.no_grad():
            self.lstm.bias_ih_l0[hidden_size : 2 * hidden_size] = 1

    def forward(self, inputs, targets, state):
        """The loss, and the state after the chunk."""
        y, state = self.lstm(self.embedding(inputs), state)
        logits = self.head(self.dropout(y))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), [part.detach() for part in state]

    @torch.no_grad()
    def write(self, ids, state, length):
        """Yield characters to follow `ids`, (1, 1), each drawn by its probability."""
        for _ in range(length):
            y, state = self.lstm(self.embedding(ids), state)
            ids = torch.multinomial(functional.softmax(self.head(y[0]) / 0.8, dim=-1), 1)
            yield ids.item()


def chunks(ids, streams, steps, device):
    """(inputs, targets), each (steps, streams); a target is the character that follows."""
    length = (len(ids) - 1) // streams
    inputs, targets = (ids[ahead : ahead + length * streams].view(streams, length).T.to(device) for ahead in (0, 1))
    for t in range(0, length, steps):
        yield inputs[t : t + steps], targets[t : t + steps]


def train(args):
    rng, start = np.random.default_rng(args.seed), time.perf_counter()
    torch.manual_seed(args.seed)
    characters, ids = np.unique(list(args.text.read_text(encoding="utf-8")), return_inverse=True)
    reading, held_out = torch.from_numpy(ids).split([len(ids) * 9 // 10, len(ids) - len(ids) * 9 // 10])
    model = CharLSTM(len(characters), args.hidden_size, args.dropout).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, fused=True)
    total = 1 + args.epochs * len(reading) // (args.batch_size * args.steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total + args.epochs, pct_start=0.1, final_div_factor=400, cycle_momentum=False
    )
    for epoch in range(args.epochs):
        losses, state = [], None
        model.train()
        for x, y in chunks(reading[rng.integers(args.steps) :], args.batch_size, args.steps, args.device):
            loss, state = model(x, y, state)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        validation, state = 0.0, None
        model.eval()
        with torch.no_grad():
            for x, y in chunks(held_out, 16, 256, args.device):
                loss, state = model(x, y, state)
                validation += loss.item() * x.numel() / (16 * ((len(held_out) - 1) // 16))
        training, seconds = torch.stack(losses).mean().item(), time.perf_counter() - start
        print(f"epoch {epoch + 1}: training {training:.3f}, validation {validation:.3f} nats/char, {seconds:.1f} s")
        written = model.write(y[-1:, -1:], [part[:, -1:].contiguous() for part in state], 300)
        print("".join(characters[id] for id in written), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("text", type=Path, help="a UTF-8 text file, ideally of a million characters")
    parser.add_argument("--device", default="cpu", help="cuda: an NVIDIA GPU")
    parser.add_argument("--epochs", type=int, default=14, help="passes over the text")
    parser.add_argument("--batch-size", type=int, default=128, help="streams read side by side")
    parser.add_argument("--steps", type=int, default=64, help="characters in a chunk")
    parser.add_argument("--hidden-size", type=int, default=256, help="units of the LSTM")
    parser.add_argument("--dropout", type=float, default=0.3, help="share of the units that a step drops")
    parser.add_argument("--lr", type=float, default=0.012, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    train(parser.parse_args())
