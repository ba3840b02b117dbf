import pytest
import torch

from patchword.errors import ModelError
from patchword.layers.codebook import Codebook
from patchword.layers.region_alignment import RegionAlignmentConfig
from patchword.models.captioners.caption_transformer import CaptionTransformer, CaptionTransformerConfig
from patchword.models.fusion.question_answering import (
    AnswerClassifier,
    AnswerGenerator,
    QuestionConfig,
    QuestionEncoder,
    answer_loss,
)
from patchword.types import VisualFeatures

SMALL = dict(width=16, heads=2, hidden=24, dropout=0.0, max_positions=8)
ALIGNMENT = RegionAlignmentConfig(layers=1, contrast_width=0)


def codebook():
    return Codebook(
        ["dog", "cat", "tree"], torch.randn(3, 5, generator=torch.Generator().manual_seed(1)), tower="drawn"
    )


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    grid_BNC, aligned_BNE = (
        torch.randn(3, 6, 10, generator=generator),
        torch.randn(3, 6, 5, generator=generator),
    )
    return VisualFeatures(grid_BNC=grid_BNC, aligned_BNE=aligned_BNE, hw=(2, 3))


def question(lengths=(5, 3, 1)):
    ids_BL = torch.tensor([[1, 4, 5, 6, 7], [1, 8, 9, 0, 0], [1, 0, 0, 0, 0]])
    return ids_BL, torch.tensor(lengths)


def classifier(**settings):
    torch.manual_seed(0)
    config = QuestionConfig(**{**SMALL, **settings})
    return AnswerClassifier(config, 10, 12, 4, codebook() if config.region_alignment else None)


@pytest.mark.parametrize("alignment", [None, ALIGNMENT])
def test_every_parameter_has_a_gradient(features, alignment):
    model = classifier(region_alignment=alignment)
    answer_loss(model(features, *question()), torch.tensor([0, 3, 2])).backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters()
    )


def test_padding_of_questions_and_pictures_changes_nothing(features):
    model = classifier().eval()
    ids_BL, lengths_B = question()
    whole_BA = model(features, ids_BL, lengths_B)
    row = VisualFeatures(grid_BNC=features.grid_BNC[1:2], hw=(2, 3))
    torch.testing.assert_close(model(row, ids_BL[1:2, :3], lengths_B[1:2]), whole_BA[1:2])

    flat = features._replace(hw=None)
    padded = VisualFeatures(
        grid_BNC=torch.cat([flat.grid_BNC, torch.full((3, 2, 10), 9.0)], 1), mask_BN=torch.arange(8).expand(3, -1) < 6
    )  # fmt: skip
    torch.testing.assert_close(model(padded, ids_BL, lengths_B), model(flat, ids_BL, lengths_B))


def test_the_trace_says_which_patches_each_word_looked_at(features):
    encoder = classifier(region_alignment=ALIGNMENT).eval().encoder
    asked = encoder(features, *question(), trace=True)
    assert asked.looked_RLN.shape == (3, 5, 6) and asked.concepts_RN.shape == (3, 6)
    torch.testing.assert_close(asked.looked_RLN.sum(-1), torch.ones(3, 5))
    assert encoder(features, *question()).looked_RLN is None
    torch.testing.assert_close(encoder(features, *question()).summary_RC, asked.summary_RC)


def test_it_learns_answers_that_need_picture_and_question():
    """Question 4 asks for the brightness, question 5 for its contrary: neither picture nor question alone
    tells the answer.
    """
    model = classifier()
    bright_B, contrary_B = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    features = VisualFeatures(grid_BNC=(bright_B * 2.0 - 1)[:, None, None].expand(4, 6, 10))
    ids_BL = torch.stack([torch.ones(4, dtype=torch.long), 4 + contrary_B], 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = answer_loss(model(features, ids_BL, torch.full((4,), 2)), bright_B ^ contrary_B)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.eval()(features, ids_BL, torch.full((4,), 2)).argmax(1).tolist() == [0, 1, 1, 0]


def test_a_generated_answer_depends_on_the_question_and_steps_as_it_is_taught(features):
    torch.manual_seed(0)
    captioner = CaptionTransformer(
        CaptionTransformerConfig(
            width=16, heads=2, hidden=24, encoder_layers=0, decoder_layers=1, dropout=0.0
        ),
        16,
        9,
    )
    model = AnswerGenerator(QuestionEncoder(QuestionConfig(**SMALL), 10, 12), captioner).eval()
    ids_BL, lengths_B = question()
    memory = model.encode(features, ids_BL, lengths_B)
    tokens_BT = torch.tensor([[1, 3, 4]] * 3)
    taught_BTV = model.decode(tokens_BT, torch.full((3,), 3), memory).logits_BTV
    state = model.start(memory, 1)
    for place in range(3):
        logits_RV, state, _ = model.step(tokens_BT[:, place], memory, state)
        torch.testing.assert_close(logits_RV, taught_BTV[:, place], rtol=1e-4, atol=1e-5)
    other = model.encode(features, ids_BL.flip(0), lengths_B.flip(0))
    assert not torch.allclose(
        model.decode(tokens_BT, torch.full((3,), 3), other).logits_BTV[0], taught_BTV[0]
    )
    assert model.vocabulary_size == 9


def test_answer_losses_by_hand():
    logits_BA = torch.zeros(2, 4)
    ln2 = 0.6931472
    assert answer_loss(logits_BA, torch.tensor([1, 3])).item() == pytest.approx(2 * ln2, abs=1e-6)
    scores_BA = torch.tensor([[1.0, 0.3, 0, 0], [0, 0, 0.6, 0]])
    assert answer_loss(logits_BA, scores_BA).item() == pytest.approx(4 * ln2, abs=1e-6)
    confident_BA = torch.tensor([[20.0, -20, -20, -20], [-20, -20, 20, -20]])
    assert answer_loss(confident_BA, (confident_BA > 0).float()).item() == pytest.approx(0, abs=1e-6)


def test_what_does_not_fit_is_refused(features):
    with pytest.raises(
        ModelError, match="patch features are 10 wide and the model was built for 7: use the tower"
    ):
        QuestionEncoder(QuestionConfig(**SMALL), 7, 12)(features, *question())
    with pytest.raises(ModelError, match="region alignment and a codebook go together"):
        QuestionEncoder(QuestionConfig(**SMALL, region_alignment=ALIGNMENT), 10, 12)
    with pytest.raises(ModelError, match="9"):
        classifier()(features, torch.ones(3, 9, dtype=torch.long), torch.full((3,), 9))
