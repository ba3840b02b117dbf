"""A search by words without torch: the same vectors, the same identity, and the same errors."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from patchword.checkpoints import folder as checkpoint
from patchword.errors import DataError, ModelError
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.query import load_embedder, load_query_towers

TEXTS = (
    "a dog",
    "Two children in red jackets jump over a stream, laughing.",
    "Schrödinger's cafés",
    "snow " * 300,
)


@pytest.fixture(scope="module")
def whole():
    return load_two_towers("two-towers")


def test_vectors_identity_and_remarks_are_those_of_the_whole_model(whole):
    alone = load_query_towers("two-towers")
    assert alone.identity == whole.identity
    for text in TEXTS:
        vector_E = alone.embed_texts([text])[0]
        assert vector_E.dtype == np.float32
        assert np.abs(vector_E - whole.embed_texts([text])[0]).max() <= 1e-5
        assert alone.remarks(text) == whole.remarks(text)
    for model in (alone, whole):
        with pytest.raises(DataError, match="'' has no word that the model knows"):
            model.embed_texts([""])


def pictures():
    from skimage import data

    return [data.astronaut(), data.coffee(), data.chelsea()[:, :97]]


def test_a_few_pictures_are_embedded_and_labelled_as_by_the_whole_model(whole):
    alone = load_query_towers("two-towers")
    for picture in pictures():  # alone and together: a batch is one picture after the other
        assert np.abs(alone.embed_images([picture]) - whole.embed_images([picture])).max() <= 1e-5
    names = ["a cup of coffee", "a cat", "an astronaut"]
    shares_BL = alone.label(pictures(), names)
    assert np.abs(shares_BL - whole.label(pictures(), names)).max() <= 1e-3
    assert [names[best] for best in shares_BL.argmax(1)] == [
        names[best] for best in whole.label(pictures(), names).argmax(1)
    ]
    assert names[shares_BL[1].argmax()] == "a cup of coffee" and names[shares_BL[2].argmax()] == "a cat"


def test_many_pictures_are_embedded_by_the_whole_model(whole):
    many = pictures() * 3
    assert np.array_equal(load_query_towers("two-towers").embed_images(many), whole.embed_images(many))


def test_another_text_tower_is_loaded_whole(tmp_path):
    assert load_query_towers("hub:openai/clip-vit-base-patch32") is None
    assert load_query_towers("flickr8k") is None
    with pytest.raises(ModelError, match="no model at"):
        load_embedder(str(tmp_path / "nowhere"))


def test_own_space_single_precision_and_other_sizes(tmp_path):
    """A folder as a training writes it: fp32, an encoder of other sizes, texts in its own space."""
    from patchword.checkpoints.facts import ModelFacts
    from patchword.composed import TextTowerSettings  # noqa: F401
    from patchword.data.pictures import Preprocessing
    from patchword.models.pairs.two_towers import TwoTowersConfig
    from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers
    from patchword.towers.settings import ConvolutionalConfig, SentenceEncoderConfig

    vocabulary = load_two_towers("two-towers").vocabulary
    sizes = {"vocab_size": vocabulary.size, "hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 12}
    vision = ConvolutionalConfig(stem=4, widths=(4,), blocks=(1,), size=32)
    text = SentenceEncoderConfig(weights="none", architecture=sizes, own_space=True)
    settings = TwoTowerSettings(
        vision=vision,
        text=text,
        two_towers=TwoTowersConfig(width=16),
        preprocessing=Preprocessing(size=32),
        vocabulary_size=vocabulary.size,
    )
    torch.manual_seed(0)
    model = TwoTowerModel(build_two_towers(settings), settings, vocabulary, ModelFacts(), torch.device("cpu"))
    model.save(tmp_path / "model")
    alone = load_query_towers(tmp_path / "model")
    assert alone.identity == load_two_towers(tmp_path / "model").identity
    np.testing.assert_allclose(alone.embed_texts(TEXTS), model.embed_texts(TEXTS), atol=1e-5)
    weights = tmp_path / "model" / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="is not the file that was written"):
        load_query_towers(tmp_path / "model")


def test_a_search_by_words_imports_neither_torch_nor_transformers():
    program = (
        "import sys\n"
        "import patchword.cli.search, patchword.search.find, patchword.search.index\n"
        "from patchword.tasks.retrieve.query import load_embedder\n"
        "load_embedder('two-towers').embed_texts(['two dogs in snow'])\n"
        "loaded = {'torch', 'transformers', 'matplotlib', 'scipy', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(loaded)}' if loaded else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_labels_import_no_transformers():
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from patchword.tasks.retrieve.load import load_two_towers\n"
        "towers = load_two_towers('two-towers', 'cpu')\n"
        "shares = towers.label([np.zeros((50, 50, 3), np.uint8)], ['a dog', 'darkness'])\n"
        "assert shares.shape == (1, 2) and shares[0, 1] > shares[0, 0], shares\n"
        "sys.exit('transformers is loaded' if 'transformers' in sys.modules else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
