"""Write poems with a trained PyTorch model: examples/poetry/generate.py as a PyTorch user would write it.

    python benchmarks/torch_generate.py --model poems.pt

generate.py measures minidl's program against this one. The file holds {"tokens": [...], "weights": state_dict}.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

State = tuple[torch.Tensor, torch.Tensor] | None
BEGIN, END, UNKNOWN = "<begin>", "<end>", "<unknown>"


class PoemModel(nn.Module):
    """ids -> embedding -> LSTM -> logits over the vocabulary."""

    def __init__(self, vocabulary_size: int, embedding_size: int = 128, hidden_size: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.lstm: nn.Module = nn.LSTM(embedding_size, hidden_size)
        self.head = nn.Linear(hidden_size, vocabulary_size)

    def next_logits(self, ids: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """From the latest ids (B,) and the state to the logits (B, V) of the next ones."""
        h, state = self.lstm(self.embedding(ids)[None], state)
        return self.head(h[0]), state


class CellModel(PoemModel):
    """The same with nn.LSTMCell, which is faster at single steps; it takes nn.LSTM's weights under other names."""

    def __init__(self, vocabulary_size: int, embedding_size: int = 128, hidden_size: int = 256) -> None:
        super().__init__(vocabulary_size, embedding_size, hidden_size)
        self.lstm = nn.LSTMCell(embedding_size, hidden_size)

    def next_logits(self, ids: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        h, c = self.lstm(self.embedding(ids), state)
        return self.head(h), (h, c)


@torch.inference_mode()
def write_poems(
    model: PoemModel, tokens: Sequence[str], count: int, max_length: int, temperature: float, argmax: bool = False
) -> list[str]:
    """`count` poems side by side; each ends at the end mark or at `max_length` characters."""
    begin, end, unknown = (tokens.index(mark) for mark in (BEGIN, END, UNKNOWN))
    never = [begin, unknown]
    latest, state = torch.full((count,), begin), None
    ended = torch.zeros(count, dtype=torch.bool)
    written = []
    for _ in range(max_length):
        logits, state = model.next_logits(latest, state)
        logits[:, never] = -torch.inf
        scores = torch.softmax(logits / temperature, 1)
        latest = scores.argmax(1) if argmax else torch.multinomial(scores, 1)[:, 0]
        written.append(latest)
        ended |= latest == end
        if ended.all():
            break
    poems = []
    for ids in torch.stack(written, 1).tolist():
        length = ids.index(end) if end in ids else len(ids)
        poems.append("".join(tokens[index] for index in ids[:length]))
    return poems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a .pt file")
    parser.add_argument("--count", type=int, default=1, help="how many poems, one a line (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.7, help="below 1 plainer, above 1 wilder (default: 0.7)")
    parser.add_argument("--max-length", type=int, default=49, help="most characters in a poem (default: 49)")
    args = parser.parse_args()
    if args.count < 1 or args.max_length < 1 or not args.temperature > 0:
        parser.error("--count and --max-length must be at least 1, and --temperature above 0")
    try:
        file = torch.load(args.model, weights_only=True)
        model = PoemModel(len(file["tokens"]))
        model.load_state_dict(file["weights"])
    except Exception as error:  # an OSError, or whatever PyTorch raises for another kind of file
        parser.error(f"--model {args.model} is not a model of this program ({type(error).__name__})")
    print("\n".join(write_poems(model, file["tokens"], args.count, args.max_length, args.temperature)), flush=True)


if __name__ == "__main__":
    main()
