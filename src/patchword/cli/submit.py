"""`patchword submit`: a results file as the COCO and nocaps servers want it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import Overwrite, refuse_existing
from patchword.errors import counted


def submit(
    predictions: Annotated[
        Path, typer.Argument(help="Predictions, COCO results JSON: a list of {image_id, caption}.")
    ],
    annotations: Annotated[
        Path,
        typer.Argument(help="The server's image info or captions JSON, whose images must all be captioned."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="File to write, for instance captions_test2014_mymodel_results.json."),
    ],
    overwrite: Overwrite = False,
) -> None:
    """Check predictions against the images that a server expects and write the file it accepts; the server
    itself is not contacted.
    """
    import json

    from patchword.errors import DataError
    from patchword.metrics.nocaps import check_submission, write_submission

    refuse_existing(overwrite, {"--out": out})

    def read(path: Path) -> object:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist") from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path} is not JSON: {error}") from error

    info = read(annotations)
    if not isinstance(info, dict) or not all(
        isinstance(image, dict) and "id" in image for image in info.get("images", [None])
    ):
        raise DataError(
            f"{annotations} has no list `images` with ids; give the server's annotation or image info file"
        )
    entries = check_submission(read(predictions), [image["id"] for image in info["images"]])
    write_submission(entries, out)
    print(f"{out}: {counted(len(entries), 'caption')}, one for each image of {annotations.name}")
