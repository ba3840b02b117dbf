"""Meshed-Memory: conformance, the paper's size, its slots, and decoding as the public code decodes."""

import json
from pathlib import Path

import pytest
import torch
from conformance import CHECKS, Case
from safetensors.torch import load_file

from patchword.convert.meshed_memory import from_reference
from patchword.decode import BeamOptions, beam_search, greedy
from patchword.errors import ConfigError, ModelError
from patchword.models.captioners.meshed_memory import MeshedMemoryConfig, MeshedMemoryTransformer
from patchword.types import SpecialIds, VisualFeatures

KITS = Path(__file__).parents[2] / "kits" / "m2"
SMALL = MeshedMemoryConfig(
    width=16, heads=2, hidden=24, encoder_layers=2, decoder_layers=2, slots=3, dropout=0, max_positions=8
)
CASE = Case(lambda: MeshedMemoryTransformer(SMALL, 6, 12), 6, 12)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check):
    check(CASE)


def test_the_papers_size():
    with torch.device("meta"):
        model = MeshedMemoryTransformer(MeshedMemoryConfig(), 2048, 10201)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(38.44e6, rel=1e-3)


def test_without_slots_the_encoder_has_nothing_but_regions():
    torch.manual_seed(0)
    model = MeshedMemoryTransformer(SMALL.model_copy(update={"slots": 0}), 6, 12).eval()
    features = VisualFeatures(torch.randn(1, 4, 6))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        model.encode_levels(VisualFeatures(features.grid_BNC[:, order])),
        model.encode_levels(features)[:, :, order],
    )  # regions have no order


def kit_model():
    kit, options = (
        load_file(KITS / "m2_b3_t7_d64.safetensors"),
        json.loads((KITS / "m2_b3_t7_d64.json").read_text()),
    )
    ids = options["special_ids"]
    model = from_reference(kit, options)
    return (
        kit,
        model,
        model.encode(VisualFeatures(kit["regions"])),
        SpecialIds(ids["pad"], ids["bos"], ids["eos"], ids["unk"]),
    )


def test_greedy_ids_of_the_public_code():
    kit, model, memory, special = kit_model()
    found = greedy(model, memory, special, max_length=12, forbid_unknown=False)
    for row, length in enumerate(kit["greedy_len"].tolist()):
        assert found.lengths_BK[row, 0] == length
        assert found.tokens_BKT[row, 0, :length].tolist() == kit["greedy_tokens"][row, :length].tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_beams_of_the_public_code(beams):
    kit, model, memory, special = kit_model()
    found = beam_search(
        model, memory, special, beams, max_length=12, options=BeamOptions(n_best=beams, forbid_unknown=False)
    )
    tokens_BKT = kit["beam_tokens"] if beams == 3 else kit["beam1_tokens"][:, None]
    scores_BKT = kit["beam_logprobs"] if beams == 3 else kit["beam1_logprobs"][:, None]
    for row in range(3):
        for beam in range(beams):
            length = int(found.lengths_BK[row, beam])
            assert found.tokens_BKT[row, beam, :length].tolist() == tokens_BKT[row, beam, :length].tolist()
            assert length == 12 or tokens_BKT[row, beam, length - 1] == special.end
            expected = scores_BKT[row, beam].sum().item()
            assert found.log_probabilities_BK[row, beam].item() == pytest.approx(expected, abs=1e-4)


def test_a_caption_beyond_the_positions_is_refused():
    model = CASE.build()
    memory = model.encode(VisualFeatures(torch.randn(1, 4, 6)))
    with pytest.raises(ModelError, match="a caption of 9 tokens does not fit: the model has positions for 8"):
        model.decode(torch.ones(1, 9, dtype=torch.long), torch.tensor([9]), memory)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="width 16 cannot be cut into 3 heads"):
        MeshedMemoryTransformer(SMALL.model_copy(update={"heads": 3}), 6, 12)
