"""Compares speed and memory of our Show, Attend and Tell with a literal implementation.

    python benchmarks/captioners.py [--threads 2] [--repeats 5]

The size is the one usually taught: grids of 14 x 14 patches with 2048 channels, a decoder of width 512, and
9,490 words. There are two tasks: a training step on 32 captions of 20 words (forward, both losses, backward,
Adam; the encoder is frozen), and a beam search of width 5 for 5 pictures over 20 steps. Every measurement
runs in its own process and gives CPU seconds (median of the repeats) and peak resident memory.

"Literal" is the same decoder written as its equations read, and as public implementations run it: the grid is
projected again at every word, the context is a sum over products as large as the grid, the search processes
one picture at a time with the grid copied for every beam, and Adam is torch's default (ours is its fused
one).

PUBLISHED holds the figures of the widely taught public code on two quiet cores. To compare with them on a
busy or slower machine, the last column divides our time by the slowdown of a matrix product (calibration now
/ calibration on a quiet core).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.decode import beam_search
from patchword.losses import caption_cross_entropy, doubly_stochastic
from patchword.models.captioners.show_attend_tell import ShowAttendTell, ShowAttendTellConfig
from patchword.types import SpecialIds, VisualFeatures

PUBLISHED = {"train": 7.4, "beam": 3.9}
QUIET_CALIBRATION = 0.150
"""CPU seconds of the calibration on one quiet core (Intel Xeon, 2.5 GHz)."""
PATCHES, CHANNELS, WIDTH, VOCABULARY = 196, 2048, 512, 9490
CAPTIONS, WORDS, PICTURES, BEAMS = 32, 20, 5, 5
SPECIAL = SpecialIds(pad=0, start=1, end=2, unknown=3)


class Literal(nn.Module):
    """The decoder's equations, computed word by word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.patch_map = nn.Linear(CHANNELS, WIDTH)
        self.state_map = nn.Linear(WIDTH, WIDTH)
        self.score = nn.Linear(WIDTH, 1)
        self.gate = nn.Linear(WIDTH, CHANNELS)
        self.cell = nn.LSTMCell(WIDTH + CHANNELS, WIDTH)
        self.first_hidden = nn.Linear(CHANNELS, WIDTH)
        self.first_cell = nn.Linear(CHANNELS, WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.words = nn.Linear(WIDTH, VOCABULARY)

    def begin(self, grid_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the initial hidden state and cell."""
        mean_BC = grid_BNC.mean(dim=1)
        return self.first_hidden(mean_BC), self.first_cell(mean_BC)

    def word(
        self, tokens_B: Tensor, grid_BNC: Tensor, hidden_BS: Tensor, cell_BS: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns logits, attention, hidden state and cell after one word."""
        sums_BNA = self.patch_map(grid_BNC) + self.state_map(hidden_BS)[:, None]
        weights_BN = self.score(torch.relu(sums_BNA)).squeeze(2).softmax(dim=1)
        context_BC = (grid_BNC * weights_BN[..., None]).sum(dim=1)
        context_BC = torch.sigmoid(self.gate(hidden_BS)) * context_BC
        hidden_BS, cell_BS = self.cell(
            torch.cat([self.embedding(tokens_B), context_BC], dim=1), (hidden_BS, cell_BS)
        )
        return self.words(self.dropout(hidden_BS)), weights_BN, hidden_BS, cell_BS

    def forward(self, tokens_BT: Tensor, grid_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (B, T, V) and attention (B, T, N) under teacher forcing."""
        hidden_BS, cell_BS = self.begin(grid_BNC)
        logits_BTV = torch.zeros(*tokens_BT.shape, VOCABULARY)
        attention_BTN = torch.zeros(*tokens_BT.shape, PATCHES)
        for step, tokens_B in enumerate(tokens_BT.unbind(dim=1)):
            logits_BTV[:, step], attention_BTN[:, step], hidden_BS, cell_BS = self.word(
                tokens_B, grid_BNC, hidden_BS, cell_BS
            )
        return logits_BTV, attention_BTN

    @torch.no_grad()
    def search(self, grid_1NC: Tensor) -> Tensor:
        """Beam search for one picture; no hypothesis ends, so that the number of steps is fixed."""
        grid_KNC = grid_1NC.expand(BEAMS, -1, -1).contiguous()
        hidden_KS, cell_KS = self.begin(grid_KNC)
        tokens_KT = torch.full((BEAMS, 1), SPECIAL.start)
        totals_K1 = torch.zeros(BEAMS, 1)
        for step in range(WORDS):
            logits_KV, _, hidden_KS, cell_KS = self.word(tokens_KT[:, -1], grid_KNC, hidden_KS, cell_KS)
            candidates_KV = totals_K1 + logits_KV.log_softmax(dim=1)
            totals_K, places_K = (candidates_KV[0] if step == 0 else candidates_KV.flatten()).topk(BEAMS)
            rows_K = places_K // VOCABULARY
            totals_K1 = totals_K[:, None]
            grid_KNC, hidden_KS, cell_KS = grid_KNC[rows_K], hidden_KS[rows_K], cell_KS[rows_K]
            tokens_KT = torch.cat([tokens_KT[rows_K], places_K[:, None] % VOCABULARY], dim=1)
        return tokens_KT[0]


def ours() -> ShowAttendTell:
    """Our decoder with the choices of the public code."""
    config = ShowAttendTellConfig(scoring="relu", gate="vector", output="linear", initial="linear")
    captioner = ShowAttendTell(config, CHANNELS, VOCABULARY)
    with torch.no_grad():
        # no hypothesis ends, so that the number of steps is fixed
        captioner.output.words.bias[SPECIAL.end] = -99
    return captioner


def train_ours():
    """Returns a training step of our decoder."""
    captioner = ours()
    optimizer = torch.optim.Adam(captioner.parameters(), lr=4e-4, fused=True)
    grid_BNC, tokens_BT, targets_BT, lengths_B = _batch()

    def step() -> None:
        decoded = captioner.decode(
            tokens_BT, lengths_B, captioner.encode(VisualFeatures(grid_BNC)), trace=True
        )
        words, count = caption_cross_entropy(decoded.logits_BTV, targets_BT, SPECIAL.pad)
        gaps, captions = doubly_stochastic(decoded.trace.attention_BTN, lengths_B, mean_over_patches=True)
        optimizer.zero_grad()
        (words / count + gaps / captions).backward()
        optimizer.step()

    return step


def train_literal():
    """Returns a training step of the literal decoder."""
    decoder = Literal()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=4e-4)
    grid_BNC, tokens_BT, targets_BT, _ = _batch()

    def step() -> None:
        logits_BTV, attention_BTN = decoder(tokens_BT, grid_BNC)
        loss = (
            F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
            + (1 - attention_BTN.sum(dim=1)).square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def beam_ours():
    """Returns a beam search of our decoder."""
    captioner, grid_BNC = ours().eval(), torch.rand(PICTURES, PATCHES, CHANNELS)

    def search() -> None:
        with torch.no_grad():
            memory = captioner.encode(VisualFeatures(grid_BNC))
        beam_search(captioner, memory, SPECIAL, BEAMS, WORDS)

    return search


def beam_literal():
    """Returns a beam search of the literal decoder."""
    decoder, grid_BNC = Literal().eval(), torch.rand(PICTURES, PATCHES, CHANNELS)
    return lambda: [decoder.search(grid_1NC) for grid_1NC in grid_BNC.split(1)]


def calibration():
    """Returns a matrix product, to calibrate the machine."""
    factors = torch.rand(2, 2048, 2048)
    return lambda: factors[0] @ factors[1]


CASES = {
    "calibration": calibration,
    "train_ours": train_ours,
    "train_literal": train_literal,
    "beam_ours": beam_ours,
    "beam_literal": beam_literal,
}


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens_BT, targets_BT = torch.randint(4, VOCABULARY, (2, CAPTIONS, WORDS))
    return torch.rand(CAPTIONS, PATCHES, CHANNELS), tokens_BT, targets_BT, torch.full((CAPTIONS,), WORDS)


def measure(case: str, threads: int, repeats: int) -> dict[str, float]:
    """Runs one case: median CPU seconds and peak resident MiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    task = CASES[case]()
    task()
    seconds = []
    for _ in range(repeats):
        before = time.process_time()
        task()
        seconds.append(time.process_time() - before)
    return {
        "seconds": statistics.median(seconds),
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Runs every case in its own process and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", choices=CASES, help="measure this one here and print it as JSON")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.threads, options.repeats)))
        return
    found = {}
    for case in CASES:
        command = [
            sys.executable,
            __file__,
            "--case",
            case,
            "--threads",
            str(options.threads),
            "--repeats",
            str(options.repeats),
        ]
        found[case] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    slower = found["calibration"]["seconds"] / QUIET_CALIBRATION
    print(
        f"torch {torch.__version__}, {options.threads} threads; a matrix product takes {slower:.2f} times "
        "what it takes on a quiet core"
    )
    columns = f"{'ours':>10}{'literal':>10}{'ratio':>8}{'published':>11}{'ours quiet / published':>24}"
    columns += f"{'ours MiB':>10}{'literal MiB':>13}"
    print(f"{'task':8}{columns}")
    for task, published in PUBLISHED.items():
        mine, literal = found[f"{task}_ours"], found[f"{task}_literal"]
        print(
            f"{task:8}{mine['seconds']:8.2f} s{literal['seconds']:8.2f} "
            f"s{mine['seconds'] / literal['seconds']:8.2f}{published:9.1f} s"
            f"{mine['seconds'] / slower / published:24.2f}"
            f"{mine['mebibytes']:10.0f}{literal['mebibytes']:13.0f}"
        )


if __name__ == "__main__":
    main()
