import pytest
import torch

from patchword.errors import DataError
from patchword.layers.all_pairs import all_pairs, ragged, two_stage
from patchword.layers.patch_word import Tile, max_mean
from patchword.models.pairs.patch_slimming import PatchSlimming, PatchSlimmingConfig

CPU = torch.device("cpu")


@pytest.fixture
def world():
    torch.manual_seed(0)
    head = PatchSlimming(PatchSlimmingConfig(width=16, aggregated=3)).eval()
    images, captions = torch.randn(7, 10, 16).half().float(), torch.randn(14, 6, 16).half().float()
    lengths = torch.randint(1, 7, (14,))
    caption_batches = zip(captions.split(5), lengths.split(5), strict=True)
    return head, images, captions, lengths, ragged([(images, torch.full((7,), 10))]), ragged(caption_batches)


@pytest.mark.parametrize("tile", [None, Tile(3, 4), Tile(1, 1)])
def test_all_pairs_from_ragged_half_precision_caches_is_the_head_itself(world, tile):
    head, images, captions, lengths, image_cache, caption_cache = world
    done = []
    found = all_pairs(head, image_cache, caption_cache, True, CPU, tile, progress=done.append)
    assert torch.allclose(found, head(images, captions, lengths, True), atol=1e-6)
    assert sum(done) == 7 * 14
    assert len(caption_cache) == 14 and caption_cache.flat_RC.shape == (int(lengths.sum()), 16)


def test_pictures_of_different_sizes_are_compared_as_if_alone(world):
    head, images, captions, lengths, _, caption_cache = world
    sizes = torch.tensor([10, 4, 10, 7, 10, 3, 9])
    found = all_pairs(head, ragged([(images, sizes)]), caption_cache, True, CPU, Tile(4, 8))
    alone = torch.cat(
        [head(images[i : i + 1, :n], captions, lengths, True) for i, n in enumerate(sizes.tolist())]
    )
    assert torch.allclose(found, alone, atol=1e-6)


def test_bfloat16_products_stay_near(world):
    head, *_, image_cache, caption_cache = world
    near = all_pairs(head, image_cache, caption_cache, True, CPU, product_dtype=torch.bfloat16)
    assert 0 < float((near - all_pairs(head, image_cache, caption_cache, True, CPU)).abs().max()) < 0.02


def test_two_stages_rank_the_shortlist_by_the_head_and_say_what_is_lost(world):
    head, *_, image_cache, caption_cache = world
    exact = all_pairs(head, image_cache, caption_cache, True, CPU)
    coarse = torch.randn(7, 14)
    owner = torch.arange(14) // 2
    full = two_stage(head, coarse, image_cache, caption_cache, 14, True, CPU)
    assert torch.allclose(full.image_to_text_IJ, exact, atol=1e-6) and torch.allclose(
        full.text_to_image_IJ, exact, atol=1e-6
    )
    assert full.compared == 98 and full.lost(owner) == (0.0, 0.0)
    short = two_stage(head, coarse, image_cache, caption_cache, 3, True, CPU)
    for i in range(7):
        listed = coarse[i].topk(3).indices
        assert set(short.image_to_text_IJ[i].topk(3).indices.tolist()) == set(listed.tolist())
        assert short.image_to_text_IJ[i].argmax() == listed[exact[i, listed].argmax()]
        rest = torch.tensor([j for j in range(14) if j not in listed])
        assert torch.equal(short.image_to_text_IJ[i, rest].argsort(), coarse[i, rest].argsort())
    lost_images, lost_captions = short.lost(owner)
    lost = sum(int(owner[j]) not in coarse[:, j].topk(3).indices for j in range(14)) / 14
    assert lost_captions == pytest.approx(lost) and lost > 0
    lost = sum(not set(coarse[i].topk(3).indices.tolist()) & {2 * i, 2 * i + 1} for i in range(7)) / 7
    assert lost_images == pytest.approx(lost)


def test_max_mean_by_hand():
    cosines = torch.tensor([[0.5, -1.0], [0.2, 0.4], [9.0, 9.0]])[None, None]
    words = torch.tensor([[True, True, False]])
    # words: .5 and .4; tokens: .5 and .4; -1 leaks to -.1
    assert float(max_mean(cosines, words)) == pytest.approx(0.9)
    # The second token alone: words -.1 and .4, token .4.
    assert float(max_mean(cosines, words, torch.tensor([[[0.0, 1.0]]]))) == pytest.approx(0.15 + 0.4)


def test_caches_refuse_what_half_precision_cannot_hold():
    with pytest.raises(DataError, match="beyond float16"):
        ragged([(torch.full((1, 2, 3), 1e6), torch.tensor([2]))])
    with pytest.raises(DataError, match="no tokens"):
        ragged([])
