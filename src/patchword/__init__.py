"""Patchword says what is in a picture, patch by patch and word by word.

    import patchword
    model = patchword.load("flickr8k")           # a shipped name, a folder, or a hub id
    print(model.caption("photo.jpg").text)

`__all__` is the Python interface: functions, what they give back, and the errors that they raise. Everything
is imported when it is asked for, so that importing the package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchword.data.pictures import open_picture as open_picture
    from patchword.errors import ConfigError as ConfigError
    from patchword.errors import DataError as DataError
    from patchword.errors import MetricUnavailable as MetricUnavailable
    from patchword.errors import MissingExtra as MissingExtra
    from patchword.errors import ModelError as ModelError
    from patchword.errors import NotAPicture as NotAPicture
    from patchword.errors import PatchwordError as PatchwordError
    from patchword.errors import PictureError as PictureError
    from patchword.errors import PictureTooLarge as PictureTooLarge
    from patchword.errors import StoreError as StoreError
    from patchword.errors import TrainingError as TrainingError
    from patchword.errors import WriteError as WriteError
    from patchword.interface import Evaluation as Evaluation
    from patchword.interface import Questions as Questions
    from patchword.interface import evaluate as evaluate
    from patchword.interface import index as index
    from patchword.interface import load as load
    from patchword.interface import train as train
    from patchword.metrics import score as score
    from patchword.metrics.scores import Score as Score
    from patchword.search.index import IndexReport as IndexReport
    from patchword.search.index import Match as Match
    from patchword.search.index import PictureIndex as PictureIndex
    from patchword.search.index import open_index as open_index
    from patchword.tasks.align.model import AlignmentModel as AlignmentModel
    from patchword.tasks.align.result import AlignedPair as AlignedPair
    from patchword.tasks.align.result import PointedWord as PointedWord
    from patchword.tasks.answer.model import AnsweringModel as AnsweringModel
    from patchword.tasks.answer.result import Answer as Answer
    from patchword.tasks.answer.result import Answers as Answers
    from patchword.tasks.caption.hub import HubCaptioner as HubCaptioner
    from patchword.tasks.caption.model import CaptioningModel as CaptioningModel
    from patchword.tasks.caption.options import DecodingOptions as DecodingOptions
    from patchword.tasks.caption.result import Caption as Caption
    from patchword.tasks.caption.result import Captions as Captions
    from patchword.tasks.label.model import LabellingModel as LabellingModel
    from patchword.tasks.label.result import Labels as Labels
    from patchword.tasks.label.result import LayerAttention as LayerAttention
    from patchword.tasks.paint.model import PaintingModel as PaintingModel
    from patchword.tasks.retrieve.model import TwoTowerModel as TwoTowerModel
    from patchword.tasks.words.model import WordVectors as WordVectors

    __version__: str

_PLACES = {
    "load": "interface:load",
    "train": "train",
    "index": "interface:index",
    "open_index": "search.index:open_index",
    "open_picture": "data.pictures:open_picture",
    "score": "metrics:score",
    "evaluate": "interface:evaluate",
    "Questions": "interface:Questions",
    # models, as `load` gives them
    "CaptioningModel": "tasks.caption.model:CaptioningModel",
    "HubCaptioner": "tasks.caption.hub:HubCaptioner",
    "TwoTowerModel": "tasks.retrieve.model:TwoTowerModel",
    "AlignmentModel": "tasks.align.model:AlignmentModel",
    "AnsweringModel": "tasks.answer.model:AnsweringModel",
    "LabellingModel": "tasks.label.model:LabellingModel",
    "WordVectors": "tasks.words.model:WordVectors",
    "PaintingModel": "tasks.paint.model:PaintingModel",
    "PictureIndex": "search.index:PictureIndex",
    # results
    "Caption": "tasks.caption.result:Caption",
    "Captions": "tasks.caption.result:Captions",
    "DecodingOptions": "tasks.caption.options:DecodingOptions",
    "AlignedPair": "tasks.align.result:AlignedPair",
    "PointedWord": "tasks.align.result:PointedWord",
    "Answer": "tasks.answer.result:Answer",
    "Answers": "tasks.answer.result:Answers",
    "Labels": "tasks.label.result:Labels",
    "LayerAttention": "tasks.label.result:LayerAttention",
    "Match": "search.index:Match",
    "IndexReport": "search.index:IndexReport",
    "Score": "metrics.scores:Score",
    "Evaluation": "interface:Evaluation",
    # errors
    "PatchwordError": "errors:PatchwordError",
    "ConfigError": "errors:ConfigError",
    "DataError": "errors:DataError",
    "PictureError": "errors:PictureError",
    "NotAPicture": "errors:NotAPicture",
    "PictureTooLarge": "errors:PictureTooLarge",
    "StoreError": "errors:StoreError",
    "WriteError": "errors:WriteError",
    "ModelError": "errors:ModelError",
    "TrainingError": "errors:TrainingError",
    "MetricUnavailable": "errors:MetricUnavailable",
    "MissingExtra": "errors:MissingExtra",
}
"""Where each public name stands, as "module:name" below `patchword`; `train` is the package of that name,
which can be called."""

__all__ = ["__version__", *_PLACES]


if not TYPE_CHECKING:  # a type checker knows every name from above, and finds one that is mistyped

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from patchword.version import version

            return version()
        if name not in _PLACES:
            raise AttributeError(f"module 'patchword' has no attribute {name!r}")
        from patchword.lookup import look_up

        return look_up(_PLACES[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
