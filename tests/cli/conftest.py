"""A tiny two-tower model with random weights and a few pictures: what the commands are typed against."""

from pathlib import Path

import pytest
from PIL import Image

WORDS = "a photo of the picture dog cat red blue ball in snow wine glass"


@pytest.fixture(scope="session")
def towers(tmp_path_factory) -> Path:
    """The folder of the model."""
    import torch

    from patchword.data.pictures import Preprocessing
    from patchword.models.two_towers import TwoTowersConfig
    from patchword.tasks.retrieve import TwoTowerModel, TwoTowerSettings, build_two_towers
    from patchword.text.words import Vocabulary
    from patchword.towers.bert import BertTowerConfig
    from patchword.towers.convolutional import ConvolutionalConfig

    vocabulary = Vocabulary.build([WORDS], minimum_count=1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    settings = TwoTowerSettings(
        vision=ConvolutionalConfig(stem=8, widths=(8,), blocks=(0,), size=16, shared_width=12),
        text=BertTowerConfig(architecture={**sizes, "vocab_size": vocabulary.size, "max_position_embeddings": 24}, trainable_from=0),
        two_towers=TwoTowersConfig(width=12),
        preprocessing=Preprocessing(size=16, fit="squash", interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        vocabulary_size=vocabulary.size,
    )
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("models") / "towers"
    TwoTowerModel(build_two_towers(settings), settings, vocabulary, {"name": "towers"}, torch.device("cpu")).write(folder)
    return folder


@pytest.fixture(scope="session")
def aligner(towers) -> Path:
    """The folder of an alignment model over the same towers, its head random."""
    import torch

    from patchword.models.patch_slimming import PatchSlimmingConfig
    from patchword.tasks.align import AlignmentModel, AlignModelSettings, build_aligned
    from patchword.tasks.retrieve import load_two_towers

    trained = load_two_towers(towers, "cpu")
    settings = AlignModelSettings(**trained.settings.model_dump(), patch_slimming=PatchSlimmingConfig(width=12, aggregated=3))
    torch.manual_seed(5)
    model = build_aligned(settings, None)
    model.towers.load_state_dict(trained.model.state_dict())
    model.begin_in_the_shared_space()
    folder = towers.with_name("aligner")
    AlignmentModel(model, settings, trained.vocabulary, {"name": "aligner"}, torch.device("cpu")).write(folder)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with a red picture, a blue one under a name that is no ASCII, and a file that is no picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    Image.new("RGB", (20, 20), "blue").save(folder / "bl\u00e5.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def patchword(monkeypatch, capsys):
    """Calls the command line as a user types it; gives exit status, standard output and standard error."""
    from patchword.cli import main

    def call(*words):
        monkeypatch.setattr("sys.argv", ["patchword", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call
