"""Measures what a trained caption transformer loses when a part of it is removed or damaged.

    python benchmarks/controls.py MODEL --data dataset_flickr8k.json --images DIR --split val

Nothing is trained. Prototypes are removed, shuffled or replaced by random ones; words of the codebook are
exchanged; region alignment is skipped. `--features STORE` takes from a store what a frozen tower made of the
pictures. It prints the scores of each control, and its difference in CIDEr from
the intact model with a 95 % interval (paired bootstrap over pictures).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from patchword.data.captions import CaptionData, FeatureInputs
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.store import Store
from patchword.layers.codebook import ConceptAssignment
from patchword.log import progress
from patchword.metrics.bootstrap import compare
from patchword.metrics.reporting import Settings, evaluate
from patchword.models.captioners.caption_transformer import CaptionTransformer
from patchword.tasks.caption.load import load
from patchword.tasks.caption.model import CaptioningModel

Control = tuple[str, Callable[[], None]]


def controls(captioner: CaptionTransformer, seed: int) -> Iterator[Control]:
    """Yields the name of each control and a function that applies it to a freshly loaded captioner."""
    generator = torch.Generator().manual_seed(seed)
    yield "as trained", lambda: None
    memory = captioner.memory
    if memory is not None:
        live_LM = memory.live_LM

        def shuffle_values() -> None:
            for layer, live_M in enumerate(live_LM):
                rows = live_M.nonzero()[:, 0]
                memory.values_LMC[layer, rows] = memory.values_LMC[
                    layer, rows[torch.randperm(len(rows), generator=generator)]
                ]

        def randomise() -> None:
            for layer, live_M in enumerate(live_LM):
                for table_LMC in (memory.keys_LMC, memory.values_LMC):
                    rows_MC = table_LMC[layer, live_M]
                    noise_MC = torch.randn(rows_MC.shape, generator=generator)
                    table_LMC[layer, live_M] = rows_MC.mean(dim=0) + rows_MC.std(dim=0) * noise_MC

        yield "prototypes removed", lambda: memory.set_log_bias(-math.inf)
        yield "prototypes: values shuffled among keys", shuffle_values
        yield "prototypes: random, same mean and spread", randomise
    alignment = captioner.region_alignment
    if alignment is not None:
        assign = alignment.assign

        def exchange() -> None:
            words_WE = alignment.codebook.embeddings_WE
            other_W = torch.randperm(len(words_WE), generator=generator)
            alignment.assign = lambda features: ConceptAssignment(
                found := assign(features).concepts_BN, words_WE[other_W[found]]
            )

        def skip() -> None:
            alignment.layers = torch.nn.ModuleList()

        yield "codebook: words exchanged", exchange
        yield "region alignment skipped", skip


def captions_of(
    model: CaptioningModel, images: Path, records: list, features: Path | None, batch: int = 50
) -> dict[str, str]:
    """Returns captions by image id."""
    captions: dict[str, str] = {}
    if features is not None:
        inputs = FeatureInputs(Store.open(features), False)
        selection = CaptionData.build(records, model.vocabulary, inputs, 20)
        for entries in selection.plan(batch, 1, False, None):
            given = selection.batch(entries, None)
            said = model.caption_features(model.model.features(given.inputs), trace=False)
            captions |= {
                str(image): caption.text for image, caption in zip(given.image_ids, said, strict=True)
            }
        return captions
    for first in range(0, len(records), batch):
        part = records[first : first + batch]
        said = model.caption([images / record.file for record in part], trace=False, batch=batch)
        captions |= {str(record.image_id): caption.text for record, caption in zip(part, said, strict=True)}
    return captions


def measure(
    model: Annotated[str, typer.Argument(help="A caption transformer: shipped name or folder.")],
    data: Annotated[Path, typer.Option(help="Annotations.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "val",
    metrics: Annotated[str, typer.Option(help="Metrics, by name.")] = "bleu,rouge,cider",
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    features: Annotated[Path | None, typer.Option(help="Feature store of the model's frozen tower.")] = None,
) -> None:
    """Print the table of all controls."""
    records = split_records(read_captions(data), split)
    references = {str(record.image_id): list(record.captions) for record in records}
    settings = Settings.of(metrics, "ptb", False, False)
    names = [name for name, _ in controls(load(model, "cpu").model.captioner, seed)]
    table = Table("control", "Bleu_4", "ROUGE_L", "CIDEr", "difference in CIDEr", "95 % interval", "p")
    untouched = None
    with progress() as bar:
        task = bar.add_task("controls", total=len(names), status="")
        for name in names:
            loaded = load(model, "cpu")
            with torch.no_grad():
                dict(controls(loaded.model.captioner, seed))[name]()
            result = evaluate(references, captions_of(loaded, images, records, features), settings)
            values = [
                f"{result.report.scores[metric].value * 100:.1f}" for metric in ("Bleu_4", "ROUGE_L", "CIDEr")
            ]
            if untouched is None:
                untouched = result
                table.add_row(name, *values, "", "", "")
            else:
                found = compare(
                    (untouched.overlap, untouched.report.counts), (result.overlap, result.report.counts)
                )["CIDEr"]
                low, high = found.interval
                table.add_row(
                    name,
                    *values,
                    f"{found.value * 100:+.1f}",
                    f"{low * 100:+.1f} to {high * 100:+.1f}",
                    f"{found.p:.3f}",
                )
            bar.update(task, advance=1)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(measure)
