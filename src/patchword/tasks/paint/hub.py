"""Published pipelines of diffusers (`hub:ID`) under the flags of `patchword paint`.

What is standard there stays theirs: tokenizers, text encoders, autoencoder, scheduler. Which word lies where
is read from the cross-attention of the U-Net: softmax(Q K^T scale) of every block, from its own Q and K (Tang
et al. 2023, "What the DAAM", arXiv 2210.04885), whatever kernel the pipeline computes it with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.checkpoints.facts import ModelFacts
from patchword.errors import ConfigError, DataError, MissingExtra, ModelError
from patchword.hub import find_published
from patchword.tasks.paint.families import TokenChoice, texts_of

GUIDANCE, STEPS = 7.5, 25


class PipelinePainter:
    """A text-to-image pipeline with the interface of `tasks/paint/paint.py`.

    Attributes:
        facts: its name and the commit that it was read from.
    """

    usual_steps: int | None = STEPS

    def __init__(self, pipeline: Any, facts: ModelFacts, device: torch.device) -> None:
        self.pipeline, self.facts, self.device = pipeline.to(device), facts, device
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def identity(self) -> str:
        """The commit that it was read from, or the name of its folder."""
        return next(iter(self.facts.sources.values()), self.facts.name)

    @property
    def model(self) -> nn.Module:
        """What denoises."""
        found = getattr(self.pipeline, "unet", None) or getattr(self.pipeline, "transformer", None)
        if found is None:
            raise ModelError(f"{self.facts.name} has neither a unet nor a transformer: it paints nothing")
        return found

    def __repr__(self) -> str:
        return f"<PipelinePainter {self.facts.name}: {type(self.pipeline).__name__}, on {self.device}>"

    def remarks(self, text: str) -> list[str]:
        """Says what of a prompt is beyond the pipeline's text encoder."""
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        if tokenizer is None:
            return []
        limit = int(tokenizer.model_max_length)
        length = len(tokenizer(text, truncation=False)["input_ids"])
        if length <= limit:
            return []
        return [
            f"the prompt has {length} tokens with start and end and the model reads {limit}: the last "
            f"{length - limit} are left out"
        ]

    def check(self, text: str) -> None:
        """Raises DataError for an empty prompt."""
        if not text.strip():
            raise DataError('the prompt is empty: say what to paint, such as "a lighthouse at dusk"')

    @torch.inference_mode()
    def paint(
        self,
        prompt: str | Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int | None = None,
        percentile: float | None = None,
        tokens: TokenChoice | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Pictures, uint8 (n, H, W, 3); see `PaintingModel.paint`.

        Raises ConfigError for a guidance below 1, which pipelines do not have, for a percentile, and for a
        choice of tokens.
        """
        prompts = texts_of(prompt, seeds)
        for one in dict.fromkeys(prompts):
            self.check(one)
        if guidance is not None and guidance < 1:
            raise ConfigError(f"guidance is {guidance:g}: pipelines of diffusers are guided from 1 on")
        if percentile is not None:
            raise ConfigError("pipelines of diffusers bound their pictures themselves: leave out --threshold")
        if tokens is not None:
            raise ConfigError(
                "pipelines of diffusers write no tokens: leave temperature, top_k and top_p out"
            )
        sources = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]

        def after_step(pipeline: Any, step: int, time: Any, found: dict[str, Any]) -> dict[str, Any]:
            watch()
            return found

        made = self.pipeline(
            prompt=prompts,
            generator=sources,
            guidance_scale=GUIDANCE if guidance is None else guidance,
            num_inference_steps=STEPS if steps is None else steps,
            callback_on_step_end=after_step,
            output_type="np",
        ).images
        return np.rint(np.asarray(made) * 255).astype(np.uint8)

    def explain(
        self, prompt: str, seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Pictures, words, and where each word lies; see `PaintingModel.explain`.

        Raises DataError for a pipeline without cross-attention from a U-Net to words.
        """
        found = [module for name, module in self.model.named_modules() if name.endswith("attn2")]
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        if not found or tokenizer is None:
            raise DataError(
                f"{type(self.pipeline).__name__} has no cross-attention from a U-Net to words: it cannot say "
                "which word lies where; leave out --explain"
            )
        with _watched(found) as total:
            pixels = self.paint(prompt, seeds, guidance, steps)
        ids = tokenizer(prompt, truncation=True)["input_ids"]
        words, owners = _words(tokenizer.convert_ids_to_tokens(ids))
        map_BLhw = torch.stack(total["maps"]).sum(0)[-len(seeds) :]  # guidance puts the text second
        shares = map_BLhw / map_BLhw.sum(1, keepdim=True).clamp(min=1e-12)
        merged = torch.zeros(len(seeds), len(words), *shares.shape[2:])
        for token, word in enumerate(owners):
            merged[:, word] += shares[:, token].float().cpu()
        return pixels, words, merged.numpy()


@contextmanager
def _watched(attentions: Sequence[nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """While it is on, every cross-attention adds its map (B, L, h, w) to "maps", enlarged to the largest side
    that was seen first; heads are averaged."""
    total: dict[str, list[Tensor]] = {"maps": []}
    side = 0
    handles = []

    def watch(attention: nn.Module) -> None:
        seen: dict[str, Tensor] = {}

        def after_queries(module: nn.Module, given: Any, queries: Tensor) -> None:
            seen["queries"] = queries

        def after_keys(module: nn.Module, given: Any, keys: Tensor) -> None:
            nonlocal side
            heads, scale = attention.heads, attention.scale
            q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (seen["queries"], keys))
            weights_BHNL = (q.float() @ k.float().transpose(-2, -1) * scale).softmax(-1)
            mean_BLN = weights_BHNL.mean(1).transpose(1, 2)
            own = round(mean_BLN.shape[2] ** 0.5)
            if own * own != mean_BLN.shape[2]:
                raise DataError("--explain needs square pictures: leave it out")
            side = max(side, own)
            map_BLhw = F.interpolate(mean_BLN.unflatten(2, (own, own)), (side, side), mode="bilinear")
            if total["maps"] and total["maps"][0].shape == map_BLhw.shape:
                total["maps"][0] += map_BLhw  # one sum, however many steps and blocks there are
            elif total["maps"]:
                total["maps"][0] = F.interpolate(total["maps"][0], (side, side), mode="bilinear") + map_BLhw
            else:
                total["maps"].append(map_BLhw)

        handles.append(attention.to_q.register_forward_hook(after_queries))
        handles.append(attention.to_k.register_forward_hook(after_keys))

    for attention in attentions:
        watch(attention)
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def _words(tokens: Sequence[str]) -> tuple[list[str], list[int]]:
    """Pieces of CLIP's tokenizer as words, and for each piece the word that it belongs to; pieces of other
    tokenizers stay as they are."""
    words: list[str] = []
    owners: list[int] = []
    marked = any(token.endswith("</w>") for token in tokens)  # CLIP marks the last piece of a word
    whole = True
    for token in tokens:
        if whole:
            words.append("")
        words[-1] += token.removesuffix("</w>")
        owners.append(len(words) - 1)
        whole = not marked or token.endswith("</w>") or token.startswith("<|")
    return words, owners


def load_pipeline(source: str, revision: str | None, device: torch.device) -> PipelinePainter:
    """A text-to-image pipeline from a folder or the hub; weights are read from safetensors files only.

    Raises MissingExtra where diffusers is not installed, ModelError where it cannot be had or paints nothing
    from text.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingExtra("hub:ID paints with diffusers: pip install 'patchword[paint]'") from error
    found = find_published(source, revision, "model_index.json")
    where = {"revision": found.commit, "local_files_only": found.local}
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, use_safetensors=True, **where)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"diffusers gives no pipeline for {source!r} ({said}): expected a text-to-image pipeline with "
            "safetensors weights"
        ) from error
    if not hasattr(pipeline, "tokenizer") or not (
        hasattr(pipeline, "unet") or hasattr(pipeline, "transformer")
    ):
        raise ModelError(
            f"{source!r} is a {type(pipeline).__name__}, which paints nothing from text: name a "
            "text-to-image "
            "pipeline"
        )
    facts = ModelFacts(
        name=source,
        description=f"{type(pipeline).__name__} of diffusers",
        sources={} if found.commit is None else {source: found.commit},
    )
    return PipelinePainter(pipeline, facts, device)
