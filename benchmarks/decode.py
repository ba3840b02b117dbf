"""Compares our beam search on one core with transformers' `generate` and with bare matrix products.

    python benchmarks/decode.py [--repeats 3] [--tokens 196 49] [--prototypes 1024] [--m2] [--torchs-product]

All run in the same process and size: width 512, 3 layers, 8 heads, 10,000 words, fp32, 32 pictures with a
given encoder output, 5 beams, 20 forced steps. The numbers are CPU seconds, the best of the repeats, which
alternate. `floor` is every weight matrix times the rows of a beam, 20 times, and nothing else, by torch's
product and by ours. `--m2` adds Meshed-Memory at the paper's size: 20 pictures of 50 regions, 5 beams, 20
steps. `--torchs-product` lets torch choose the library of the products (see `layers/linear.py`), as on
processors where MKL is fast.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput

from patchword.decode import beam_search
from patchword.layers import linear
from patchword.layers.prototypes import PrototypeConfig
from patchword.models.captioners.caption_transformer import CaptionTransformer, CaptionTransformerConfig
from patchword.models.captioners.meshed_memory import MeshedMemoryConfig, MeshedMemoryTransformer
from patchword.types import SpecialIds, VisualFeatures

WIDTH, LAYERS, HEADS, HIDDEN, WORDS = 512, 3, 8, 2048, 10_000
PICTURES, BEAMS, STEPS = 32, 5, 20
SPECIAL = SpecialIds(pad=0, start=1, end=2, unknown=3)


class Endless(nn.Module):
    """A captioner that never produces the end token, so that every search takes all its steps."""

    def __init__(self, captioner: nn.Module) -> None:
        super().__init__()
        self.captioner = captioner
        self.start = captioner.start

    def step(self, tokens_R, memory, state, trace=False):
        """As the captioner's step, with the end token's logit far below all others."""
        logits_RV, state, seen = self.captioner.step(tokens_R, memory, state, trace)
        logits_RV[:, SPECIAL.end] = -1e9
        return logits_RV, state, seen


def ours(tokens: int, prototypes: int) -> Callable[[], object]:
    """Returns a search of our caption transformer.

    Projecting keys and values counts as part of the search, as in transformers' first step.
    """
    memory = PrototypeConfig(count=prototypes) if prototypes else None
    config = CaptionTransformerConfig(
        width=WIDTH,
        heads=HEADS,
        hidden=HIDDEN,
        encoder_layers=0,
        decoder_layers=LAYERS,
        dropout=0,
        memory=memory,
    )
    captioner = CaptionTransformer(config, WIDTH, WORDS).eval()
    if prototypes:
        nn.init.normal_(captioner.memory.keys_LMC)
        nn.init.normal_(captioner.memory.values_LMC)
        captioner.memory.live_LM.fill_(True)
    features = VisualFeatures(torch.randn(PICTURES, tokens, WIDTH))
    return lambda: beam_search(Endless(captioner), captioner.encode(features), SPECIAL, BEAMS, STEPS)


def theirs(tokens: int) -> Callable[[], object]:
    """Returns a search of a VisionEncoderDecoderModel of the same size."""
    sizes = dict(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=HIDDEN
    )
    decoder = BertConfig(
        vocab_size=WORDS, is_decoder=True, add_cross_attention=True, max_position_embeddings=64, **sizes
    )
    encoder = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS, intermediate_size=64
    )
    model = VisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    ).eval()
    given = BaseModelOutput(last_hidden_state=torch.randn(PICTURES, tokens, WIDTH))
    options = dict(
        num_beams=BEAMS, min_new_tokens=STEPS, max_new_tokens=STEPS, do_sample=False, use_cache=True
    )
    ids = dict(decoder_start_token_id=SPECIAL.start, eos_token_id=SPECIAL.end, pad_token_id=SPECIAL.pad)
    start = torch.full((PICTURES, 1), SPECIAL.start)
    return lambda: model.generate(
        decoder_input_ids=start, encoder_outputs=BaseModelOutput(given.last_hidden_state), **options, **ids
    )


def floor(rows: int, product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[], object]:
    """Returns the products of a decoder's weights with the rows, and nothing else."""
    layer = [
        (WIDTH, 3 * WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, HIDDEN),
        (HIDDEN, WIDTH),
    ]
    shapes = layer * LAYERS + [(WIDTH, WORDS)]
    weights = [torch.randn(outputs, inputs) for inputs, outputs in shapes]
    rows_of = {inputs: torch.randn(rows, inputs) for inputs, _ in shapes}

    def products() -> None:
        for _ in range(STEPS):
            for weight in weights:
                product(rows_of[weight.shape[1]], weight)

    return products


def meshed() -> Callable[[], object]:
    """Returns a search of Meshed-Memory at the paper's size."""
    captioner = MeshedMemoryTransformer(MeshedMemoryConfig(), 2048, 10_201).eval()
    features = VisualFeatures(torch.randn(20, 50, 2048))
    return lambda: beam_search(Endless(captioner), captioner.encode(features), SPECIAL, BEAMS, STEPS)


def best_seconds(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Runs the calls in turns and returns the best CPU seconds of each."""
    best = dict.fromkeys(work, float("inf"))
    with torch.no_grad():
        for _ in range(repeats):
            for name, call in work.items():
                begin = time.process_time()
                call()
                best[name] = min(best[name], time.process_time() - begin)
    return best


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[196, 49])
    parser.add_argument("--prototypes", type=int, default=1024)
    parser.add_argument("--m2", action="store_true", help="also Meshed-Memory at the paper's size")
    parser.add_argument(
        "--torchs-product", action="store_true", help="products by the library that torch chooses"
    )
    chosen = parser.parse_args()
    if chosen.torchs_product:
        linear.mkl_is_slow = lambda: False
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, CPU seconds, best of {chosen.repeats}")
    for tokens in chosen.tokens:
        work = {
            "generate": theirs(tokens),
            "ours": ours(tokens, 0),
            "with memory": ours(tokens, chosen.prototypes),
        }
        work |= {
            "floor": floor(PICTURES * BEAMS, functional.linear),
            "greedy floor": floor(PICTURES, functional.linear),
        }
        if linear.mkl_is_slow():
            work |= {
                "our floor": floor(PICTURES * BEAMS, linear.linear),
                "our greedy floor": floor(PICTURES, linear.linear),
            }
        seconds = best_seconds(work, chosen.repeats)
        print(f"\n{tokens} tokens, {PICTURES} pictures, {BEAMS} beams, {STEPS} steps")
        for name, found in seconds.items():
            print(
                f"  {name:18s}{found:8.2f} s {PICTURES / found:8.1f} captions/s   "
                f"{seconds['generate'] / found:5.2f} x generate"
            )
    if chosen.m2:
        print(
            "\nMeshed-Memory, 20 pictures of 50 regions: "
            f"{best_seconds({'m2': meshed()}, chosen.repeats)['m2']:.2f} s"
        )


if __name__ == "__main__":
    main()
