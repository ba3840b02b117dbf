"""The copy gate: conformance, probabilities that sum to one, words that no caption taught, what a trace says.

Vocabulary of 12: 0 to 3 special, 4 to 8 taught, 9 to 11 not ("horses" is among these).
"""

import pytest
import torch
from conformance import CHECKS, PATCHES, SPECIAL, Case, captions, full, made, pictures

from patchword.composed import build_captioner
from patchword.constrained import constrained_beam_search
from patchword.decode import beam_search, greedy, greedy_steps
from patchword.errors import ConfigError, ModelError
from patchword.layers.codebook import Codebook
from patchword.layers.copying import Copying
from patchword.layers.region_alignment import RegionAlignmentConfig
from patchword.models.captioners.caption_transformer import (
    CaptionTransformer,
    CaptionTransformerConfig,
    CopyingConfig,
)

C, V = 6, 12
IDS = torch.tensor([[4, 5], [10, 11], [6, -1]])
"""Words of the codebook: dog and dogs, horse and horses, which no caption taught, and sea."""
BASE = CaptionTransformerConfig(
    width=16, heads=2, hidden=24, encoder_layers=1, decoder_layers=2, dropout=0, max_positions=8,
    copying=CopyingConfig(words=2, width=4),
)  # fmt: skip


class FromGrid(CaptionTransformer):
    """Takes the grid itself for patches in the text space, so that features without such a field serve."""

    def encode(self, features):
        return super().encode(features._replace(aligned_BNE=features.grid_BNC))


def model_of(config=BASE, taught=9, spread=0.5):
    book = Codebook(["dog", "horse", "sea"], torch.randn(3, C), "words")
    sizes = config.copying.words, config.copying.width, config.width
    copying = Copying(*sizes, V, book, config.copying.hidden)
    model = FromGrid(config, C, V, book, copying)
    vectors_VE = torch.nn.functional.normalize(torch.randn(V, C), dim=-1)
    model.copying.set_words(vectors_VE, IDS, torch.arange(V) < taught)
    torch.nn.init.normal_(model.words.weight, std=spread)
    return model


ALIGNED = BASE.model_copy(update={"region_alignment": RegionAlignmentConfig(layers=1, contrast_width=0)})
HIDING = BASE.model_copy(update={"copying": CopyingConfig(words=2, width=4, hidden=0.4)})
CASES = {
    "copying": Case(lambda: model_of(taught=V), C, V),
    "fsgr with copying": Case(lambda: model_of(ALIGNED, taught=V), C, V),
    "hidden": Case(lambda: model_of(HIDING, taught=V), C, V),
}
UNTAUGHT = Case(model_of, C, V)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_conformance(name, check):
    check(CASES[name])


def decoded(model, trace=False):
    tokens_BT = captions(UNTAUGHT)
    memory = model.encode(pictures(UNTAUGHT))
    return model.decode(tokens_BT, full(tokens_BT), memory, trace), memory


def test_the_two_ways_share_one_probability():
    found, memory = decoded(made(UNTAUGHT), trace=True)
    probabilities_BTV = found.logits_BTV.exp()
    torch.testing.assert_close(probabilities_BTV.sum(-1), torch.ones(3, 5))
    ids_BK, shares_BTK, cosines_BKN = found.trace.copies
    assert cosines_BKN.shape == (3, 4, PATCHES) and shares_BTK.shape == (3, 5, 4)
    for b in range(3):
        for k, token in enumerate(ids_BK[b].tolist()):
            if token >= 0:  # a word that can be pointed at is said in no other way
                torch.testing.assert_close(probabilities_BTV[b, :, token], shares_BTK[b, :, k])
    assert (shares_BTK.sum(-1) < 1).all()


def test_a_word_no_caption_taught_is_said_where_the_picture_shows_it_and_nowhere_else():
    found, memory = decoded(made(UNTAUGHT))
    horses_B = (memory.copied.ids_BK == 11).any(1)
    assert horses_B.any() and not horses_B.all(), "the pictures of this test must differ"
    logits_BT = found.logits_BTV[..., 11]
    assert (logits_BT[horses_B] > -12).all() and (logits_BT[~horses_B] == -30).all()
    assert (found.logits_BTV[..., 9] == -30).all()  # neither taught nor a word of the codebook


def test_the_picture_decides_what_can_be_copied():
    model = made(UNTAUGHT)
    grid_BNC = torch.zeros(1, PATCHES, C)
    grid_BNC[0, 2] = model.copying.codebook_WE[1]  # one patch shows a horse, the others nothing
    copied = model.encode(pictures(UNTAUGHT)._replace(grid_BNC=grid_BNC)).copied
    assert copied.ids_BK[0, :2].tolist() == [10, 11]
    torch.testing.assert_close(copied.cosines_BKN[0, 0], torch.tensor([0.0, 0.0, 1.0, 0.0]))


def test_what_the_gate_learns_of_one_word_holds_for_another():
    """Trained to say what the eyes see, with one thing, it says another one that it never met."""
    torch.manual_seed(0)
    model = model_of(BASE.model_copy(update={"copying": CopyingConfig(words=1, width=4)}), spread=0.0)
    dog_NC, horse_NC = (model.copying.codebook_WE[row].expand(1, PATCHES, C) for row in (0, 1))
    features = pictures(UNTAUGHT)
    inputs_BT, targets_BT = torch.tensor([[SPECIAL.start, 7]]), torch.tensor([[7, 4]])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        memory = model.encode(features._replace(grid_BNC=dog_NC))
        logits_BTV = model.decode(inputs_BT, torch.tensor([2]), memory).logits_BTV
        loss = torch.nn.functional.cross_entropy(logits_BTV[0], targets_BT[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()  # while it learns, words that no caption taught are no concepts
    with torch.no_grad():
        said = model.decode(
            inputs_BT, torch.tensor([2]), model.encode(features._replace(grid_BNC=horse_NC))
        ).logits_BTV[0, 1]
    assert said.argmax() in (10, 11), said


def test_where_vectors_are_hidden_an_untaught_word_goes_by_its_evidence():
    """Its vector says nothing, while that of a taught word does."""
    torch.manual_seed(0)
    model = model_of(HIDING).eval()
    features = pictures(UNTAUGHT)._replace(grid_BNC=model.copying.codebook_WE[:2].repeat(3, 2, 1))
    before = model.encode(features).copied
    for token, is_known in ((4, True), (10, False)):
        model.copying.vectors_VE[token] = torch.randn(C)
        place = before.ids_BK[0].tolist().index(token)
        same = torch.equal(model.encode(features).copied.keys_BKD[0, place], before.keys_BKD[0, place])
        assert same != is_known


def test_every_search_finds_words_that_no_caption_taught():
    model = made(UNTAUGHT)
    torch.nn.init.constant_(model.copying.sentinel.bias, -20.0)  # always points
    memory = model.encode(pictures(UNTAUGHT))
    ids = {b: {i for i in memory.copied.ids_BK[b].tolist() if i >= 0} for b in range(3)}
    one = greedy(model, memory, SPECIAL, 5)
    steps = list(greedy_steps(model, memory, SPECIAL, 5))[-1]
    assert torch.equal(one.tokens_BKT, steps.tokens_BKT)
    for found in (one, beam_search(model, memory, SPECIAL, beams=2, max_length=5)):
        for b in range(3):
            assert set(found.tokens_BKT[b, 0].tolist()) <= ids[b]
    single = model.encode(pictures(UNTAUGHT, 1))
    forced = constrained_beam_search(model, single, SPECIAL, [((9,),)], beams=2, max_length=5)
    assert 9 in forced.tokens_BKT[0, 0].tolist()  # asked for, though no way leads to it


def test_errors_say_what_is_missing():
    with pytest.raises(ConfigError, match="copying is on and no codebook is given"):
        build_captioner(BASE, C, V, None)
    with pytest.raises(ConfigError, match="copying.words is 2 and the codebook has 1"):
        build_captioner(BASE, C, V, Codebook(["dog"], torch.randn(1, C), "words"))
    model = made(UNTAUGHT)
    with pytest.raises(ModelError, match="set the tower's 'aligned'"):
        CaptionTransformer.encode(model, pictures(UNTAUGHT))
    with pytest.raises(ModelError, match=r"vectors_VE of the words to copy is \(3, 6\)"):
        model.copying.set_words(torch.randn(3, C), IDS, torch.ones(V, dtype=torch.bool))
