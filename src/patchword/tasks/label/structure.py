"""Structure search for prompt fusion: one network of all structures is trained, then structures are ranked
under a budget.

rows and stored tokens -> supernet, a drawn structure per step -> evolution on held-out rows -> the chosen
structure as a configuration

Everything that was scored is in structures.jsonl; an interrupted search goes on from it. `structure.toml`
trains as it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.config import override, read_toml, validate, write_toml
from patchword.data.labels import LabelBatch
from patchword.errors import ConfigError
from patchword.files import write_text
from patchword.log import progress
from patchword.models.fusion.prompt_fusion import FusionTokens, PromptFusion, PromptFusionConfig, label_loss
from patchword.models.fusion.prompt_search import PromptSupernet, SearchSpace, saved_bytes, trained_parameters
from patchword.reports.figures import cost_figure
from patchword.tasks.label.evolution import Evolution, EvolutionConfig, StructureScore, key_of
from patchword.tasks.label.objective import labelled
from patchword.tasks.label.rows import LabelRows
from patchword.tasks.label.settings import LabelSections, PromptFusionSection
from patchword.tasks.label.train import where
from patchword.tasks.label.validate import scores_on
from patchword.train.claim import claimed
from patchword.train.loop import Run
from patchword.train.recipe import Recipe, Validation
from patchword.train.step import Shares


class StructureRun(LabelSections, frozen=True):
    """The configuration of a search: that of a training, with a space in place of a structure.

    `stage` trains the supernet.
    """

    task: Literal["structure"] = "structure"
    model: PromptFusionSection = Field(PromptFusionSection(), description="not read: the search finds it")
    prompt_search: SearchSpace = SearchSpace()
    evolution: EvolutionConfig = EvolutionConfig()
    cost: Literal["parameters", "memory"] = Field(
        "parameters",
        description="what the budget limits: trained parameters, or bytes that a training step of 8 rows "
        "keeps",
    )
    budget: float = Field(gt=0, description="largest cost of a structure, in parameters or bytes")
    scored_rows: int = Field(0, ge=0, description="held-out rows that a structure is scored on; 0: all")
    final: tuple[dict[str, Any], ...] = Field(
        (), description="stages that structure.toml trains the chosen structure with; absent: `stage`"
    )


class SupernetLabelling(nn.Module):
    """The supernet and the loss of one drawn structure per step."""

    def __init__(self, supernet: PromptSupernet, space: SearchSpace, several: bool) -> None:
        super().__init__()
        self.model, self.space, self.several = supernet, space, several

    def forward(self, batch: LabelBatch, shares: Shares) -> dict[str, Tensor]:
        # The loop seeds torch's generator by the step: the draw is the same in a resumed run, and in every
        # process.
        drawn = self.space.draw(
            self.model.whole.config.classes, random.Random(int(torch.randint(2**31, (1,))))
        )
        return labelled(self.model(drawn, _stored(batch)), batch, self.several, shares)


def _stored(batch: LabelBatch) -> FusionTokens:
    """The tokens of a batch; a search always stores them."""
    assert batch.tokens is not None
    return FusionTokens(*batch.tokens)


class SupernetTraining:
    """The network of all structures and the rows it learns from."""

    def __init__(self, run: StructureRun) -> None:
        if not run.data.stores_tokens:
            raise ConfigError(
                "a search runs on stored tokens: set data.cache_tokens = true, or name a store in "
                "data.features"
            )
        self.run = run
        self.rows = LabelRows(run, (True, True), max(run.prompt_search.fused_layers))
        torch.manual_seed(run.seed)
        self.model = PromptSupernet(
            run.prompt_search, len(self.rows.labels), self.rows.towers.vision, self.rows.towers.text
        )

    def recipe(self) -> Recipe:
        """The training of the network, as the loop runs it."""
        return Recipe(
            model=self.model,
            stages=self.run.stage,
            plan=self.rows.plan,
            batch=self.rows.batch,
            objective=self.objective,
            save=self.save,
            load=lambda source: checkpoint.load_weights(self.model, source),
            validate=self.validate,
            names=where,
            facts=self.rows.data_facts(),
        )

    def objective(self, stage: int) -> nn.Module:
        """The loss of one drawn structure per step."""
        return SupernetLabelling(self.model, self.run.prompt_search, self.rows.train.several)

    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """The largest structure: whether the network still learns.

        It selects nothing: the last epoch is the best.
        """
        scores = self.score(self.model.whole.config, accelerator.device)
        return Validation(float(epoch), {"scores": scores}, measure="epoch")

    @torch.inference_mode()
    def score(self, structure: PromptFusionConfig, device: torch.device) -> dict[str, float]:
        """Scores of one structure with the supernet's weights, on the held-out rows."""
        self.model.eval()
        rows = self.rows.selection
        if self.run.scored_rows:
            rows = rows.first(self.run.scored_rows)
        return scores_on(rows, self.rows.labels, lambda batch: self.model(structure, _stored(batch)), device)

    def save(self, folder: Path) -> None:
        """The weights; structures are cut out of them later."""
        facts = ModelFacts(name="A supernet of prompt structures")
        checkpoint.write_model(folder, "supernet", None, facts, self.model.state_dict(), None)


class StructureSearchResult(NamedTuple):
    """What a search gave: structures best first, and the files that it wrote."""

    ranked: list[StructureScore]
    toml: Path
    plot: Path


def search_structure(
    config: Path, overrides: Sequence[str], resume: bool, device: str | None
) -> StructureSearchResult:
    """Train the supernet, rank structures, and write structures.jsonl, structure.toml and search.png to the
    run folder.

    Raises:
        ConfigError: a wrong setting, a run folder that is in use, or no structure within the budget.
    """
    run = validate(override(read_toml(config), overrides), StructureRun, str(config))
    folder = Path(run.out)
    accelerator = Accelerator(
        mixed_precision="bf16" if run.precision == "bf16" else "no", cpu=device == "cpu"
    )
    with claimed(folder, run, resume, accelerator.is_main_process) as begin:
        training = SupernetTraining(run)
        training.model.to(accelerator.device)
        begin()
        loop = Run(training.recipe(), folder, accelerator, run.seed, run.checkpoint_steps, run.log_steps)
        if resume:
            loop.resume()
        loop.train()
        ranked = _ranked(run, training, folder / "structures.jsonl", accelerator.device)
        return _results(run, ranked, folder)


def _results(run: StructureRun, ranked: list[StructureScore], folder: Path) -> StructureSearchResult:
    """The best structure as a configuration, and all of them in a plot."""
    toml, plot = folder / "structure.toml", folder / "search.png"
    write_text(toml, _as_config(run, ranked[0]))
    chosen = min(range(len(ranked)), key=lambda i: (-ranked[i].score, ranked[i].cost))
    names = {"parameters": "trained parameters", "memory": "bytes kept by a step of 8 rows"}
    costs, scores = [scored.cost for scored in ranked], [scored.score for scored in ranked]
    cost_figure(costs, scores, chosen, names[run.cost], "score on held-out rows", plot)
    return StructureSearchResult(ranked, toml, plot)


def _ranked(
    run: StructureRun, training: SupernetTraining, path: Path, device: torch.device
) -> list[StructureScore]:
    """All structures that were scored, best first; each is a line of the file as soon as it is known."""
    known = _already(path)
    total = run.evolution.population * (run.evolution.generations + 1)
    classes = len(training.rows.labels)
    with progress() as bar, open(path, "a", encoding="utf-8") as file:
        task = bar.add_task("structures", total=total, status="")
        best = [-1.0]

        def on_scored(generation: int, scored: StructureScore) -> None:
            if key_of(scored.structure) not in known:
                row = {"generation": generation, "score": scored.score, "cost": scored.cost}
                file.write(json.dumps({**row, "structure": json.loads(key_of(scored.structure))}) + "\n")
                file.flush()
            best[0] = max(best[0], scored.score)
            bar.update(task, advance=1, status=f"generation {generation}, best {best[0]:.4f}")

        def score(structure: PromptFusionConfig) -> float:
            return training.score(structure, device)["micro_F1"]

        cost = _cost(run, training)
        evolution = Evolution(run.prompt_search, classes, score, cost, run.budget, run.evolution)
        return evolution.run(run.seed, known, on_scored)


def _already(path: Path) -> dict[str, float]:
    """Scores of an interrupted search by structure; a line that was cut off is taken out of the file, and
    will be scored again.
    """
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}}")]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return {key_of(PromptFusionConfig.model_validate(row["structure"])): row["score"] for row in rows}


def _cost(run: StructureRun, training: SupernetTraining) -> Callable[[PromptFusionConfig], float]:
    """Trained parameters, or the bytes that autograd keeps in a step of 8 rows from the stored tokens."""
    towers = training.rows.towers
    if run.cost == "parameters":
        return lambda structure: float(trained_parameters(structure, towers.vision.width, towers.text.width))
    batch = training.rows.train.batch(training.rows.train.places[:8].tolist(), None)

    def kept(structure: PromptFusionConfig) -> float:
        model = PromptFusion(structure, towers.vision, towers.text)
        return float(
            saved_bytes(
                model,
                lambda: label_loss(model.fuse(_stored(batch)), batch.labels, training.rows.train.several),
            )
        )

    return kept


def _as_config(run: StructureRun, best: StructureScore) -> str:
    """The training of the chosen structure as TOML."""
    values = run.model_dump(mode="json", exclude_none=True)
    for name in ("prompt_search", "evolution", "cost", "budget", "scored_rows", "final", "model"):
        values.pop(name, None)
    values |= {"task": "label", "out": f"{run.out}/trained", "model": json.loads(key_of(best.structure))}
    if run.final:
        values["stage"] = list(run.final)
    head = f"# Structure found by `patchword structure`: score {best.score:.4f} with the supernet's weights, cost {best.cost:,.0f}.\n"  # noqa: E501
    return head + write_toml(values)
