"""Training word vectors: its recipe, and the models that are counted instead of trained.

corpus -> ids -> (counts -> SVD) -> model; pictures -> tower -> picture vectors; both -> word vectors in a
folder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.config import override, read_toml, validate
from patchword.data.corpus import Corpus, count_pairs, encode_corpus, text_lines
from patchword.data.records import CaptionRecord
from patchword.errors import ConfigError, DataError
from patchword.files import file_digest, json_digest, text_digest, write_text
from patchword.lookup import look_up
from patchword.models.word_vectors.autoencoder import AutoencoderConfig, BimodalAutoencoder
from patchword.models.word_vectors.distributional import (
    DistributionalConfig,
    PairCounts,
    fuse,
    truncated_svd,
    weighted,
)
from patchword.models.word_vectors.grounded_space import GroundedSpace, GroundedSpaceConfig
from patchword.models.word_vectors.skip_gram import SkipGram, SkipGramConfig
from patchword.tasks.words.batches import AutoencoderRows, SentenceRows, SkipGramRows
from patchword.tasks.words.model import WordSettings, WordVectors
from patchword.tasks.words.objective import (
    AutoencoderObjective,
    GroundedObjective,
    SkipGramObjective,
    skip_gram_step,
)
from patchword.tasks.words.pictures import WordPictures, read_picture_texts, see_words
from patchword.tasks.words.settings import CountSettings, WordsRun
from patchword.tensors import read_tensors
from patchword.train.recipe import Recipe, Validation
from patchword.train.settings import StageSettings

_WHOLE = 64 * 2**20
"""Bytes up to which the content of a text file decides whether ids on disk are used again; beyond that its
size and time do."""


def train_words(
    config: Path, overrides: Sequence[str], resume: bool, device: str | None, command: str
) -> Path:
    """Train or count, and write the run folder; the word vectors are in its folder `best`.

    Raises what `tasks.start.start` raises, and DataError for a corpus or pictures that give no vectors.
    """
    values = override(read_toml(config), overrides)
    if values.get("task") != "words":
        raise ConfigError(f'{config}: task is {values.get("task")!r}, and word vectors are task = "words"')
    run = validate(values, WordsRun, str(config))
    if not isinstance(run.model, DistributionalConfig):
        folder: Path = look_up("tasks.start:start")(config, overrides, resume, False, device, command)
        return folder
    folder = Path(run.out)
    if (folder / "best").exists() and not resume:
        raise ConfigError(
            f"{folder} holds word vectors already: remove it, or choose another folder for `out`"
        )
    if folder.is_dir() and not resume and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} exists and is not empty: choose another folder for `out`, or go on with --resume"
        )
    if not (folder / "best").exists():
        counted(run, command).save(folder / "best")
        write_text(folder / "config.json", run.model_dump_json(indent=1))
    return folder


def words_recipe(run: WordsRun, folder: Path, command: str) -> Recipe:
    """The training of word vectors by steps, ready for its first one.

    Raises ConfigError for vectors that are counted, DataError.
    """
    if isinstance(run.model, DistributionalConfig):
        raise ConfigError(
            "distributional vectors are counted, not trained in steps: use `patchword words train`"
        )
    source = Source.read(run, folder / "corpus")
    parts = _PARTS[type(run.model)](run, source)
    wrapped = ModelAndBaseline(parts.model, parts.baseline)

    def save(target: Path) -> None:
        vectors = finished(run, source, parts.vectors(), command, wrapped)
        state = {f"training.{name}": tensor for name, tensor in wrapped.state_dict().items()}
        WordVectors(
            vectors.settings, vectors.words, {**vectors.tensors, **state}, vectors.pictures, vectors.facts
        ).write(target)

    return Recipe(
        model=wrapped,
        stages=run.stage,
        plan=parts.plan,
        batch=parts.batch,
        objective=parts.objective,
        save=save,
        load=lambda target: _load_state(wrapped, target),
        validate=_last_is_kept,
        names=lambda batch: [],
        facts={
            "words": len(source.corpus.words),
            "tokens": len(source.corpus.ids_P),
            "digest of the words": source.digest,
        },
        **parts.stepping,
    )


class ModelAndBaseline(nn.Module):
    """The model, and the same one without pictures beside it."""

    def __init__(self, model: nn.Module, baseline: nn.Module | None) -> None:
        super().__init__()
        self.model, self.baseline = model, baseline


def _load_state(wrapped: ModelAndBaseline, folder: Path) -> None:
    """Weights of a checkpoint, strict both ways."""
    tensors = read_tensors(folder / checkpoint.WEIGHTS)
    state = {name.removeprefix("training."): t for name, t in tensors.items() if name.startswith("training.")}
    wrapped.load_state_dict(state)


def _last_is_kept(stage: int, epoch: int, accelerator: Accelerator) -> Validation:
    """Nothing selects: the vectors of the last epoch are the result."""
    done = float(1000 * stage + epoch + 1)
    return Validation(done, {"scores": {}}, measure="epochs done")


class Source(NamedTuple):
    """Corpus and pictures of a run."""

    corpus: Corpus
    pictures: WordPictures | None
    records: list[CaptionRecord]
    digest: str

    @classmethod
    def read(cls, run: WordsRun, folder: Path) -> Source:
        """Count and encode the corpus into `folder`, and look at the pictures."""
        lines, key = _lines(run)
        settings = run.corpus
        key = json_digest([key, settings.splitter, settings.minimum_count, settings.most_words])
        corpus = encode_corpus(
            lines, folder, settings.splitter, settings.minimum_count, settings.most_words, key
        )
        pictures = None if run.pictures is None else see_words(corpus.words, run.pictures, run.seed)
        needs = isinstance(run.model, GroundedSpaceConfig) and run.pictures is not None
        records = read_picture_texts(Path(run.pictures.annotations)) if needs and run.pictures else []
        return cls(corpus, pictures, records, text_digest("\n".join(corpus.words)))


def _lines(run: WordsRun) -> tuple[Callable[[], Any], str]:
    """What gives the lines of the corpus anew, and what tells its content."""
    if run.corpus.captions is not None:
        path = Path(run.corpus.captions)
        captions = [caption for record in read_picture_texts(path) for caption in record.captions]
        return lambda: captions, text_digest("\n".join(captions))
    paths = [Path(name) for name in run.corpus.files]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such file; corpus.files names text files")
    facts = []
    for path in paths:
        stat = path.stat()
        facts.append(
            [str(path), file_digest(path) if stat.st_size <= _WHOLE else [stat.st_size, stat.st_mtime_ns]]
        )
    return lambda: text_lines(paths), json_digest(facts)


def text_vectors(corpus: Corpus, settings: CountSettings, seed: int) -> Tensor:
    """Counts near contexts, weighted, reduced by SVD: (W, T), of length one."""
    contexts = min(settings.contexts, len(corpus.words))
    pairs = count_pairs(corpus.ids_P, settings.window, contexts)
    counts = PairCounts(
        torch.from_numpy(pairs.rows_E),
        torch.from_numpy(pairs.columns_E),
        torch.from_numpy(pairs.counts_E.astype(np.float64)),
        (len(corpus.words), contexts),
    )
    matrix_WX = weighted(counts, settings.weighting)
    width = min(settings.width, *matrix_WX.shape)
    svd = truncated_svd(matrix_WX, width, torch.Generator().manual_seed(seed))
    # The square root of the singular values: with them whole, the first directions decide every cosine
    # (Levy et al. 2015, section 3.3).
    rows_WT = svd.left_WK * svd.singular_K.sqrt()
    return rows_WT / rows_WT.norm(dim=1, keepdim=True).clamp_min(1e-12)


def counted(run: WordsRun, command: str) -> WordVectors:
    """Word vectors that are counted and fused."""
    if not isinstance(run.model, DistributionalConfig):
        raise ConfigError(f"{run.model.kind} is trained in steps: it has no vectors that are only counted")
    source = Source.read(run, Path(run.out) / "corpus")
    vectors = {"text": text_vectors(source.corpus, run.counts, run.seed)}
    if source.pictures is not None:
        generator = torch.Generator().manual_seed(run.seed)
        vectors["fused"] = fuse(run.model, vectors["text"], source.pictures.words_WP, generator)
    return finished(run, source, vectors, command, None)


def finished(
    run: WordsRun, source: Source, vectors: dict[str, Tensor], command: str, trained: nn.Module | None
) -> WordVectors:
    """Vectors with what belongs to them: pictures, words, facts."""
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in vectors.items()}
    pictures: dict[str, Any] = {}
    seen = source.pictures
    if seen is not None:
        tensors |= {"picture": seen.words_WP, "bank": seen.pictures_FP}
        tensors["dispersion"] = torch.from_numpy(seen.dispersion_W).float()
        pictures = {
            "files": list(seen.files),
            "shown": [list(one) for one in seen.shown],
            "counts": seen.counts_W.tolist(),
        }
    settings = WordSettings(
        model=run.model,
        words=len(source.corpus.words),
        images=None if run.pictures is None else run.pictures.images,
    )
    text = run.corpus.captions or ", ".join(run.corpus.files)
    count = 0 if seen is None else int((seen.words_WP != 0).any(1).sum())
    facts = ModelFacts(
        name=Path(run.out).name,
        description=run.description or f"Word vectors ({run.model.kind}), trained with Patchword.",
        dataset=f"{Path(text).name}: {source.corpus.total:,} words; {count:,} words with pictures",
        licence=run.licence or "not stated",
        command=command,
        trained_parameters=None
        if trained is None
        else sum(p.numel() for p in trained.parameters() if p.requires_grad),
    )
    return WordVectors(settings, source.corpus.words, tensors, pictures, facts)


class Parts(NamedTuple):
    """What a kind of model brings to the recipe."""

    model: nn.Module
    baseline: nn.Module | None
    plan: Callable[[int, int], list[list[Any]]]
    batch: Callable[[int, list[Any], torch.Generator], Any]
    objective: Callable[[int], nn.Module]
    vectors: Callable[[], dict[str, Tensor]]
    stepping: dict[str, Any] = {}


def _skip_gram(run: WordsRun, source: Source) -> Parts:
    config = run.model
    assert isinstance(config, SkipGramConfig)
    training_WP = None if source.pictures is None else source.pictures.training_WP
    words = len(source.corpus.words)
    torch.manual_seed(run.seed)
    model = SkipGram(config, words, training_WP)
    baseline = None
    if run.baseline and config.variant != "text":
        torch.manual_seed(run.seed)
        baseline = SkipGram(config.model_copy(update={"variant": "text"}), words, None)
    rows = SkipGramRows(source.corpus, config, training_WP, run.words_per_batch, run.seed)

    def vectors() -> dict[str, Tensor]:
        own = model.words.weight
        found = {"text": own} if config.variant == "text" else {"fused": own}
        if baseline is not None:
            found["text"] = baseline.words.weight
        if config.variant != "text":
            found["imagined"] = model.towards_pictures(own)
        return found

    return Parts(
        model, baseline, rows.plan, rows.batch, lambda stage: SkipGramObjective(model, baseline), vectors,
        {"optimisers": sparse_adagrad, "step": skip_gram_step},
    )  # fmt: skip


def sparse_adagrad(model: nn.Module, stage: StageSettings) -> tuple[torch.optim.Optimizer, ...]:
    """Adagrad (Duchi et al. 2011), which moves only the rows of the words of a batch, rare words further than
    frequent ones."""
    rates = set(stage.learning_rates)
    if rates != {""}:
        raise ConfigError(
            f'skip_gram has one learning rate, under ""; found groups {", ".join(sorted(rates))}'
        )
    rate = stage.learning_rates[""]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    group = {"params": parameters, "lr": rate, "base_rate": rate, "group": "rest"}
    return (torch.optim.Adagrad([group]),)


def _autoencoder(run: WordsRun, source: Source) -> Parts:
    config = run.model
    assert isinstance(config, AutoencoderConfig) and source.pictures is not None
    text_WT = text_vectors(source.corpus, run.counts, run.seed) * run.counts.width**0.5
    picture_WP = source.pictures.training_WP * source.pictures.training_WP.shape[1] ** 0.5
    torch.manual_seed(run.seed)
    model = BimodalAutoencoder(config, text_WT.shape[1], picture_WP.shape[1], len(text_WT))
    rows = AutoencoderRows(text_WT, picture_WP, run.stage, run.seed)

    def vectors() -> dict[str, Tensor]:
        with torch.no_grad():
            code_WH = model(text_WT, picture_WP)
            # A code lies between 0 and 1: what all words have in common would decide the cosines.
            found = {"fused": code_WH - code_WH.mean(0)}
            if run.baseline:
                text_WH = model.text(text_WT)
                found["text"] = text_WH - text_WH.mean(0)
        return found

    def objective(stage: int) -> nn.Module:
        return AutoencoderObjective(model, layerwise=stage == 0)

    return Parts(model, None, rows.plan, rows.batch, objective, vectors)


def _grounded_space(run: WordsRun, source: Source) -> Parts:
    config = run.model
    assert isinstance(config, GroundedSpaceConfig) and source.pictures is not None
    words = len(source.corpus.words)
    torch.manual_seed(run.seed)
    model = GroundedSpace(config, words)
    baseline = None
    if run.baseline:
        torch.manual_seed(run.seed)
        baseline = GroundedSpace(
            config.model_copy(update={"cluster_weight": 0.0, "perceptual_weight": 0.0}), words
        )
    rows = SentenceRows(source.corpus.words, source.records, source.pictures.pictures_FP, run.stage, run.seed)

    def vectors() -> dict[str, Tensor]:
        with torch.no_grad():
            alone_W1 = torch.arange(words)[:, None].to(model.words.weight.device)
            found = {"fused": model.grounded(alone_W1)}
            if baseline is not None:
                found["text"] = baseline.encode(alone_W1)
        return found

    return Parts(
        model, baseline, rows.plan, rows.batch, lambda stage: GroundedObjective(model, baseline), vectors
    )


_PARTS: dict[type, Callable[[WordsRun, Source], Parts]] = {
    SkipGramConfig: _skip_gram,
    AutoencoderConfig: _autoencoder,
    GroundedSpaceConfig: _grounded_space,
}
