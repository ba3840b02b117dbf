"""What a question-answering model minimises: the loss of the answers and, with region alignment, the contrast
between patches.
"""

from __future__ import annotations

from torch import Tensor, nn

from patchword.data.questions import QuestionBatch
from patchword.losses import caption_cross_entropy
from patchword.models.fusion.question_answering import QuestionEncoding, answer_loss
from patchword.tasks.answer.composed import AnswerModel
from patchword.train.step import Shares


class AnswerObjective(nn.Module):
    """Questions of a batch against their answers; each picture is encoded once, whatever the number of its
    questions.
    """

    def __init__(self, model: AnswerModel, pad: int, patch_contrast: float) -> None:
        """`patch_contrast` weighs the contrast between patches of one concept; it needs region alignment with
        its projection.
        """
        super().__init__()
        self.model, self.pad, self.patch_contrast = model, pad, patch_contrast

    def forward(self, batch: QuestionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"; "right" is the share of questions whose best answer earns
        something.
        """
        encoder = self.model.answerer.encoder
        seen = encoder.look(self.model.features(batch.inputs))
        asked = encoder.read(seen.of(batch.picture_of_row_R), batch.questions_RL, batch.lengths_R)
        losses = (
            self._chosen(asked, batch, shares)
            if batch.answer_lengths_R is None
            else self._worded(asked, batch, batch.answer_lengths_R, shares)
        )
        loss = losses["answers"]
        if self.patch_contrast > 0:
            losses["patch_contrast"] = encoder.contrast_loss(seen) * batch.picture_count / shares.pictures
            loss = loss + self.patch_contrast * losses["patch_contrast"]
        return {"loss": loss, **losses}

    def _chosen(self, asked: QuestionEncoding, batch: QuestionBatch, shares: Shares) -> dict[str, Tensor]:
        logits_RA = self.model.answerer.choose(asked)
        best_R = logits_RA.detach().argmax(1)
        right_R = (
            best_R == batch.answers
            if batch.answers.dim() == 1
            else batch.answers.gather(1, best_R[:, None])[:, 0] > 0
        )
        total = answer_loss(logits_RA.float(), batch.answers) * batch.target_count
        return {"answers": total / shares.targets, "right": right_R.sum() / shares.targets}

    def _worded(
        self, asked: QuestionEncoding, batch: QuestionBatch, lengths_R: Tensor, shares: Shares
    ) -> dict[str, Tensor]:
        answerer = self.model.answerer
        decoded = answerer.decode(batch.answers[:, :-1], lengths_R - 1, answerer.remember(asked))
        total, _ = caption_cross_entropy(decoded.logits_BTV, batch.answers[:, 1:], self.pad)
        return {"answers": total / shares.targets}
