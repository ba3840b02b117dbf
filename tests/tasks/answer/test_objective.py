"""A step over questions does not depend on how its batch is cut, and a picture's features are those of each
of its questions.
"""

import pytest
import torch

from patchword.data.captions import Inputs
from patchword.data.questions import QuestionBatch
from patchword.models.captioners.caption_transformer import CaptionTransformerConfig
from patchword.models.fusion.question_answering import QuestionConfig
from patchword.tasks.answer.composed import AnswerModel
from patchword.tasks.answer.objective import AnswerObjective
from patchword.towers.settings import ConvolutionalConfig
from patchword.train.step import Shares

SMALL = dict(width=16, heads=2, hidden=16, dropout=0.0, max_positions=8)
PAD, START, END = 0, 8, 9


def made(generator=None):
    torch.manual_seed(0)
    tower = ConvolutionalConfig(stem=4, widths=(8,), blocks=(0,), size=16, trainable_from=None)
    return AnswerModel.build(tower, QuestionConfig(**SMALL), generator, vocabulary_size=10, answers=3)


def batch(pictures, questions, answers, lengths=None):
    """Questions are (picture, token); `pictures` are seeds."""
    pixels_B3HW = torch.stack(
        [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in pictures]
    )
    return QuestionBatch(
        image_ids=tuple(pictures),
        question_ids=tuple(range(len(questions))),
        inputs=Inputs(pixels_B3HW=pixels_B3HW),
        questions_RL=torch.tensor([[START, token] for _, token in questions]),
        lengths_R=torch.full((len(questions),), 2),
        picture_of_row_R=torch.tensor([pictures.index(picture) for picture, _ in questions]),
        answers=answers,
        answer_lengths_R=lengths,
    )


ASKED = [(3, 1), (3, 2), (3, 1), (5, 2)]
WORDED = torch.tensor([[START, 4, END, PAD], [START, 5, 6, END], [START, 4, END, PAD], [START, 6, END, PAD]])


@pytest.mark.parametrize(
    "answers, lengths",
    [
        (torch.tensor([0, 2, 1, 1]), None),
        (torch.tensor([[1.0, 0.3, 0], [0, 0, 0.6], [0, 1, 0], [0.9, 0, 0]]), None),
        (WORDED, torch.tensor([3, 4, 3, 3])),
    ],
    ids=["answer", "scores", "words"],
)
def test_two_parts_give_the_gradient_of_one(answers, lengths):
    generator = None
    if lengths is not None:
        generator = CaptionTransformerConfig(
            width=16, heads=2, hidden=16, encoder_layers=0, decoder_layers=1, dropout=0.0, max_positions=8
        )
    whole = batch([3, 5], ASKED, answers, lengths)
    parts = [
        batch([3], ASKED[:3], answers[:3], None if lengths is None else lengths[:3]),
        batch([5], ASKED[3:], answers[3:], None if lengths is None else lengths[3:]),
    ]
    shares = Shares(whole.target_count, whole.picture_count, 0.0)
    assert whole.target_count == sum(part.target_count for part in parts) == (4 if lengths is None else 9)
    gradients = []
    for cut in ([whole], parts):
        model = made(generator)
        objective = AnswerObjective(model, PAD, 0.0).train()
        total = sum(objective(part, shares)["loss"] for part in cut)
        total.backward()
        gradients.append(
            {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys() and "answerer.encoder.words.weight" in gradients[0]
    assert not any(name.startswith("tower.") for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_a_picture_among_others_is_the_picture_alone():
    model = made().eval()
    together = batch([3, 5], ASKED, torch.zeros(4, dtype=torch.long))
    features = model.features(together.inputs)
    logits_RA = model.answerer(features, together.questions_RL, together.lengths_R, together.picture_of_row_R)
    alone = batch([5], ASKED[3:], torch.zeros(1, dtype=torch.long))
    one_A = model.answerer(model.features(alone.inputs), alone.questions_RL, alone.lengths_R)[0]
    torch.testing.assert_close(logits_RA[3], one_A, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits_RA[0], logits_RA[2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits_RA[0], logits_RA[1])
