import json
import math

import pytest
import torch
from torch.nn import functional as F

from patchword.errors import DataError, ModelError
from patchword.layers.codebook import (
    OBJECTS,
    TEMPLATES,
    Codebook,
    assign,
    build_codebook,
    concept_use,
    read_words,
)

WORDS = ("dog", "grass", "sky", "red ball")
UNIT_WE = torch.eye(4, 6)


def embed(texts):
    """A text tower that counts letters."""
    return torch.tensor([[text.count(letter) + 0.5 for letter in "adgrsk"] for text in texts])


def book():
    return Codebook(WORDS, UNIT_WE, "clip")


def test_embeddings_average_the_templates_at_unit_length():
    codebook = build_codebook(["dog"], embed, "clip", ("a {}", "the {} here"))
    sentences_SE = F.normalize(embed(["a dog", "the dog here"]), dim=-1)
    torch.testing.assert_close(
        codebook.embeddings_WE, F.normalize(sentences_SE.mean(dim=0, keepdim=True), dim=-1)
    )


def test_a_saved_codebook_comes_back(tmp_path):
    codebook = build_codebook(WORDS, embed, "clip")
    codebook.save(tmp_path / "words")
    loaded = Codebook.read(tmp_path / "words")
    assert loaded.words == WORDS
    assert loaded.templates == TEMPLATES
    assert torch.equal(loaded.embeddings_WE, codebook.embeddings_WE)


def test_another_tower_refuses_it(tmp_path):
    book().save(tmp_path)
    codebook = Codebook.read(tmp_path)
    codebook.check_tower("clip")
    with pytest.raises(
        ModelError, match=r"text space of 'clip' and the patches come from 'siglip'.*--tower TOWER --out DIR"
    ):
        codebook.check_tower("siglip")


def test_changed_templates_are_noticed(tmp_path):
    book().save(tmp_path)
    description = json.loads((tmp_path / "codebook.json").read_text())
    description["templates"][0] = "a drawing of a {}"
    (tmp_path / "codebook.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match="do not match their hash"):
        Codebook.read(tmp_path)


def test_an_incomplete_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"holds no codebook\.json"):
        Codebook.read(tmp_path)


def test_a_description_of_another_format_is_refused():
    with pytest.raises(ModelError, match="is of format 7, and this code reads 1"):
        Codebook.described(book().describe() | {"format": 7})


def test_repeated_words_and_wrong_sizes_are_refused():
    with pytest.raises(DataError, match="lists 'dog' more than once"):
        Codebook(("dog", "cat", "dog"), UNIT_WE[:3], "clip")
    with pytest.raises(DataError, match="2 words came with 4 embeddings"):
        Codebook(("dog", "cat"), UNIT_WE, "clip")


def test_a_template_without_a_place_is_refused():
    with pytest.raises(DataError, match="'a photo' needs exactly one"):
        build_codebook(WORDS, embed, "clip", ("a photo",))


def test_eighty_objects_ship_with_the_package():
    words = read_words(OBJECTS)
    assert len(words) == 80
    assert {"person", "dog", "tennis racket"} <= set(words)


def test_a_word_list_skips_comments_and_repeats(tmp_path):
    (tmp_path / "words.txt").write_text("# mine\ndog\n\n sky \ndog\n")
    assert read_words(tmp_path / "words.txt") == ["dog", "sky"]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="lists no words"):
        read_words(tmp_path / "empty.txt")
    with pytest.raises(DataError, match="no word list at"):
        read_words(tmp_path / "missing.txt")


def test_a_patch_gets_its_nearest_word():
    aligned_BNE = torch.tensor([[[3.0, 1, 0, 0, 0, 0], [0, 0, 0.1, 0, 0, 0]]])
    assigned = assign(aligned_BNE, book().embeddings_WE)
    assert assigned.concepts_BN.tolist() == [[0, 2]]
    assert torch.equal(assigned.tokens_BNE[0], UNIT_WE[[0, 2]])


def test_top_k_leaves_only_words_of_the_picture():
    aligned_BNE = torch.tensor([[[3.0, 2, 1, 0, 0, 0]]])
    pooled_BE = torch.tensor([[0.0, 1, 2, 0, 0, 0]])
    assert assign(aligned_BNE, UNIT_WE, pooled_BE=pooled_BE, top_k=2).concepts_BN.tolist() == [[1]]


def test_count_normalisation_divides_by_one_more_than_the_patches_of_the_word():
    aligned_BNE = UNIT_WE[[0, 0, 1, 0]][None]
    mask_BN = torch.tensor([[True, True, True, False]])
    assigned = assign(aligned_BNE, UNIT_WE, count_normalised=True, mask_BN=mask_BN)
    torch.testing.assert_close(assigned.tokens_BNE[0, :3].sum(dim=-1), torch.tensor([1 / 3, 1 / 3, 1 / 2]))


@pytest.mark.parametrize("top_k", [None, 2])
def test_gumbel_draws_one_word_with_the_softmax_odds_and_passes_a_gradient(top_k):
    torch.manual_seed(0)
    aligned_BNE = torch.tensor([1.0, 0.8, 0, 0, 0, 0]).expand(1, 4000, 6).clone().requires_grad_()
    assigned = assign(aligned_BNE, UNIT_WE, "gumbel", torch.tensor([[1.0, 1, 0, 0, 0, 0]]), top_k, scale=5.0)
    torch.testing.assert_close(assigned.tokens_BNE.detach(), UNIT_WE[assigned.concepts_BN])
    cosines = torch.tensor([1.0, 0.8] + [0.0, 0.0] * (top_k is None)) / math.sqrt(1.64)
    share = (assigned.concepts_BN == 0).float().mean()
    assert share == pytest.approx((5 * cosines).softmax(0)[0].item(), abs=0.03)
    assigned.tokens_BNE[..., 0].sum().backward()
    assert aligned_BNE.grad.abs().sum() > 0


def test_use_of_concepts_by_hand():
    """Shares 1/2, 1/4, 1/4: entropy 1.5 bits; a masked patch does not count."""
    concepts_BN = torch.tensor([[3, 3, 0], [7, 5, 5]])
    mask_BN = torch.tensor([[True, True, True], [True, False, False]])
    used = concept_use(concepts_BN, 9, mask_BN)
    assert used["concepts_in_use"] == 3 and used["concept_entropy"] == pytest.approx(1.5 * math.log(2))
    assert concept_use(torch.zeros(2, 4, dtype=torch.long), 9) == {
        "concepts_in_use": 1.0,
        "concept_entropy": 0.0,
    }
