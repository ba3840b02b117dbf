"""`patchword push`: a model folder onto the hub."""

from __future__ import annotations

from typing import Annotated

import typer


def push(
    model: Annotated[str, typer.Argument(help="Model folder, or the name of a shipped model.")],
    repository: Annotated[
        str, typer.Argument(help="Repository of the hub, OWNER/NAME; it is made where there is none.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; private where left out.")
    ] = False,
) -> None:
    """Upload a model to the hub, after its files were compared with what was written; log in with `hf auth
    login` first.
    """
    from patchword import hub
    from patchword.checkpoints.folder import check_files, read_config
    from patchword.checkpoints.model import find_model

    folder = find_model(model)
    check_files(folder, read_config(folder), largest=None)
    print(hub.upload(folder, repository, private=not public))
