"""Compares our patch-word alignment head with a literal implementation of the equations.

    python benchmarks/alignment.py                         # the table; about four minutes on two cores
    python benchmarks/alignment.py --bf16                  # how bfloat16 products change the ranking
    python benchmarks/alignment.py --all-pairs 1000 5000   # a complete evaluation of random features

Features are random, at the scale of the paper: width 512, 196 patches and a class token, keep 0.5, 39
aggregated tokens. CPU seconds are those of one process with one thread; each row runs in its own process, and
peak memory is its high-water mark. The literal implementation loops over the captions and computes the same
numbers (the first lines of output show the difference). It is written from the equations and is not anybody's
code.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional

from patchword.layers.all_pairs import all_pairs, ragged
from patchword.losses import hinge_loss
from patchword.models.pairs.patch_slimming import PatchSlimming, PatchSlimmingConfig

WIDTH, PATCHES, KEEP = 512, 196, 0.5


def literal(head: PatchSlimming, tokens_Ind: Tensor, captions_JLd: Tensor, lengths_J: list[int]) -> Tensor:
    """Returns the similarities (I, J) by the equations as they stand.

    For each caption it sorts, gathers, aggregates, fuses, normalises and aligns.
    """
    class_I1d, patches_INd = tokens_Ind[:, :1], tokens_Ind[:, 1:]
    kept = math.ceil(patches_INd.shape[1] * KEEP)
    unit_INd = functional.normalize(patches_INd, dim=-1)
    saliency_IN = (
        (unit_INd * functional.normalize(patches_INd.mean(dim=1, keepdim=True), dim=-1)).sum(dim=-1).detach()
    )
    columns = []
    for caption_Ld, length in zip(captions_JLd, lengths_J, strict=True):
        words_Ld = caption_Ld[:length]
        relevance_IN = (unit_INd @ functional.normalize(words_Ld.mean(dim=0), dim=-1)).detach()
        scores_IN, order_IN = (saliency_IN + relevance_IN).sort(dim=1, descending=True)
        ordered_INd = patches_INd.gather(1, order_IN[..., None].expand(-1, -1, WIDTH))
        kept_Ikd, dropped_Ird = ordered_INd[:, :kept], ordered_INd[:, kept:]
        mixes_ICk = head.aggregation(kept_Ikd).softmax(dim=-1)
        fused_I1d = scores_IN[:, kept:].softmax(dim=-1)[:, None] @ dropped_Ird
        tokens_IPd = functional.normalize(
            torch.cat([class_I1d, mixes_ICk @ kept_Ikd, fused_I1d], dim=1), dim=-1
        )
        scores_ILP = functional.leaky_relu(
            functional.normalize(words_Ld, dim=-1) @ tokens_IPd.transpose(1, 2), 0.1
        )
        columns.append(scores_ILP.amax(dim=2).mean(dim=1) + scores_ILP.amax(dim=1).mean(dim=1))
    return torch.stack(columns, dim=1)


def material(images: int, captions: int, words: int) -> tuple[PatchSlimming, Tensor, Tensor, Tensor]:
    """Returns head, image tokens, caption tokens and lengths, the longest caption first.

    Lengths are uniform within a third of `words`.
    """
    torch.manual_seed(0)
    head = PatchSlimming(PatchSlimmingConfig(width=WIDTH, keep=KEEP, aggregated=39))
    spread = words // 3
    lengths_J = torch.randint(words - spread, words + spread + 1, (captions,)).sort(descending=True).values
    return (
        head,
        torch.randn(images, 1 + PATCHES, WIDTH),
        torch.randn(captions, int(lengths_J.max()), WIDTH),
        lengths_J,
    )


def training_step(ours: bool, words: int) -> dict[str, float]:
    """Measures one step of 64 pictures and 64 captions: CPU seconds, loss and gradient."""
    head, images, captions, lengths = material(64, 64, words)
    images.requires_grad_()
    captions.requires_grad_()
    start = time.process_time()
    similarities = (
        head(images, captions, lengths, True) if ours else literal(head, images, captions, lengths.tolist())
    )
    loss = hinge_loss(similarities, torch.arange(64), 0.2, True)
    between = time.process_time()
    loss.backward()
    end = time.process_time()
    checksum = float(images.grad.abs().sum() + captions.grad.abs().sum())
    return {
        "forward": between - start,
        "backward": end - between,
        "cpu": end - start,
        "loss": float(loss.detach()),
        "gradient": checksum,
    }


def evaluation(ours: bool, words: int) -> dict[str, float]:
    """Measures all pairs of cached pictures and captions: CPU seconds and pairs per second."""
    # The public protocol compares in shards of 256 pictures, and the baseline's cost per pair depends on the
    # shard, so the baseline keeps this size.
    head, images, captions, lengths = material(*((64, 640) if ours else (256, 8)), words)
    head.eval()
    image_cache = ragged([(images, torch.full((len(images),), 1 + PATCHES))])
    caption_cache = ragged([(captions, lengths)])
    start = time.process_time()
    if ours:
        result = all_pairs(head, image_cache, caption_cache, True, torch.device("cpu"))
    else:
        with torch.no_grad():
            result = literal(head, images, captions, lengths.tolist())
    seconds = time.process_time() - start
    return {"cpu": seconds, "pairs": result.numel(), "pairs_per_cpu_second": result.numel() / seconds}


def bf16() -> None:
    """Prints how often bfloat16 products change the first result of a caption or a picture.

    Captions are noisy words of their picture.
    """
    head, images, _, _ = material(100, 1, 12)
    head.eval()
    words = functional.normalize(
        images[:, 1:].repeat_interleave(5, dim=0)[:, :12] + 6 * torch.randn(500, 12, WIDTH), dim=-1
    )
    caches = ragged([(images, torch.full((100,), 1 + PATCHES))]), ragged([(words, torch.full((500,), 12))])
    exact = all_pairs(head, *caches, True, torch.device("cpu"))
    rounded = all_pairs(head, *caches, True, torch.device("cpu"), product_dtype=torch.bfloat16)
    own = torch.arange(500) // 5
    recall = [float((s.argmax(dim=0) == own).float().mean()) * 100 for s in (exact, rounded)]
    print(
        "bfloat16 products, 100 pictures x 500 captions: largest difference "
        f"{float((exact - rounded).abs().max()):.1e}"
    )
    print(
        "  first picture of a caption changes for "
        f"{float((exact.argmax(0) != rounded.argmax(0)).float().mean()):.2%}"
    )
    print(
        "  first caption of a picture changes for "
        f"{float((exact.argmax(1) != rounded.argmax(1)).float().mean()):.2%}"
    )
    print(f"  text-to-image R@1 {recall[0]:.1f} exact, {recall[1]:.1f} with bfloat16")


def whole(images: int, captions: int) -> None:
    """Runs a complete evaluation and prints its time and peak memory."""
    head, tokens, _, _ = material(images, 1, 12)
    head.eval()
    lengths = torch.randint(8, 20, (captions,))
    image_cache = ragged([(tokens, torch.full((images,), 1 + PATCHES))])
    caption_cache = ragged([(torch.randn(len(some), 20, WIDTH), some) for some in lengths.split(500)])
    del tokens
    start, cpu = time.perf_counter(), time.process_time()

    done = 0

    def tell(pairs: int) -> None:
        nonlocal done
        done += pairs
        if done // 500_000 > (done - pairs) // 500_000:
            print(f"  {done} of {images * captions} pairs, {time.perf_counter() - start:.0f} s", flush=True)

    all_pairs(head, image_cache, caption_cache, True, torch.device("cpu"), progress=tell)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    pairs = images * captions
    print(
        f"{pairs} pairs: {wall:.0f} s, {cpu:.0f} CPU seconds, {pairs / cpu:.0f} pairs per CPU second, peak "
        f"{peak():.0f} MiB"
    )


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(what: str, ours: bool, words: int) -> dict[str, float]:
    """Runs one measurement in its own process, so that peaks do not add up."""
    line = [sys.executable, __file__, "--measure", what, "ours" if ours else "literal", str(words)]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def table(repeats: int) -> None:
    """Prints the table of all measurements."""
    print(f"torch {torch.__version__}, one thread, medians of {repeats}; ratios are ours / literal")
    for words in (16, 30):
        rows = {}
        for ours in (False, True):
            runs = sorted((apart("train", ours, words) for _ in range(repeats)), key=lambda run: run["cpu"])
            rows[ours] = runs[len(runs) // 2]
            print(
                f"train 64x64, ~{words} words, {'ours   ' if ours else 'literal'}: {rows[ours]['cpu']:.2f} "
                "CPU s "
                f"({rows[ours]['forward']:.2f} + {rows[ours]['backward']:.2f}), peak "
                f"{rows[ours]['peak']:.0f} MiB, "
                f"loss {rows[ours]['loss']:.6f}, |gradient| {rows[ours]['gradient']:.4f}"
            )
        time_ratio, memory_ratio = (rows[True][name] / rows[False][name] for name in ("cpu", "peak"))
        print(f"  ratio: {time_ratio:.2f} of the time, {memory_ratio:.2f} of the memory")
        for ours in (False, True):
            runs = sorted(
                (apart("evaluate", ours, words) for _ in range(repeats)),
                key=lambda run: run["cpu"] / run["pairs"],
            )
            rows[ours] = runs[len(runs) // 2]
            print(
                f"all pairs, ~{words} words, {'ours   ' if ours else 'literal'}: "
                f"{rows[ours]['pairs_per_cpu_second']:.0f} pairs per CPU "
                f"second, peak {rows[ours]['peak']:.0f} MiB"
            )
        print(
            f"  ratio: {rows[True]['pairs_per_cpu_second'] / rows[False]['pairs_per_cpu_second']:.1f} times "
            "the pairs"
        )


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--all-pairs", nargs=2, type=int, metavar=("IMAGES", "CAPTIONS"))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(1)
        what, who, words = options.measure
        result = (training_step if what == "train" else evaluation)(who == "ours", int(words))
        print(json.dumps({**result, "peak": peak()}))
    elif options.bf16:
        bf16()
    elif options.all_pairs:
        whole(*options.all_pairs)
    else:
        table(options.repeats)


if __name__ == "__main__":
    main()
