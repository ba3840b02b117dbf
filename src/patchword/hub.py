"""Published models: one commit for one name, and one sentence where the hub cannot be reached.

`hub:ID` stands for a model of transformers, `hub:ID@REVISION` for one of its commits, tags or branches. A
name is resolved once, to a commit, and everything is read from that commit; where there is no network, from
what was downloaded before.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from patchword.errors import ModelError

PREFIX = "hub:"
SECONDS = 5.0
"""Time to connect, and again to be answered; after it the hub counts as out of reach."""

MODEL_FILES = ("config.json", "model.safetensors", "vocab.json", "prototypes.json", "README.md")
"""Files of a Patchword folder: nothing else is downloaded, or uploaded."""

_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)


class HubName(NamedTuple):
    """A name of the hub: an id or a folder, and the revision that it asks for."""

    source: str
    revision: str | None


class PublishedSource(NamedTuple):
    """Where a published model is read from; its fields are arguments of transformers' `from_pretrained`."""

    source: str
    commit: str | None
    """None for a folder."""
    local: bool
    """Whether only files that are on this machine are used."""


def is_hub(name: str | Path) -> bool:
    """Whether a name stands for a published model of transformers: `hub:ID`."""
    return str(name).startswith(PREFIX)


def hub_name(name: str | Path) -> HubName:
    """The parts of `hub:ID`, `hub:ID@REVISION` or `ID@REVISION`; a folder may have an @ in its name. Raises
    ModelError for an @ without a revision, and where nothing is named."""
    source = str(name).removeprefix(PREFIX)
    if source and Path(source).exists():
        return HubName(source, None)
    if source.startswith("@") or not source:
        raise ModelError(f"{name}: no model is named: give OWNER/NAME, where needed with @REVISION")
    source, at, revision = source.partition("@")
    if at and not revision:
        raise ModelError(
            f"{name}: nothing stands behind the @: give a commit, a tag or a branch, or leave the @ out"
        )
    return HubName(source, revision or None)


def find_published(source: str, revision: str | None = None, file: str = "config.json") -> PublishedSource:
    """The commit that an id stands for today, or that was downloaded before where the hub is out of reach; a
    folder stays one.

    `file` is one that every such model has, by which a download is recognised.

    Raises:
        ModelError: no such folder, model or revision, or the hub cannot be reached and nothing was
            downloaded.
    """
    if Path(source).is_dir():
        return PublishedSource(source, None, True)
    if not _ID.fullmatch(source):
        raise ModelError(
            f"no folder {source!r}, and no id of the hub looks like that: give a folder or OWNER/NAME"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return PublishedSource(
            source, HfApi().model_info(source, revision=revision, timeout=SECONDS).sha, False
        )
    except RevisionNotFoundError as error:
        raise ModelError(
            f"the hub's model {source} has no revision {revision!r}: give a commit, a tag or a branch"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {source!r}, or it is private and needs a login (`hf auth login`): look "
            "for its id on the hub"
        ) from error
    except (
        Exception
    ) as error:  # huggingface_hub and its network library raise many kinds; all mean that it is out of reach
        commit = _downloaded_commit(source, revision, file)
        if commit is not None:
            return PublishedSource(source, commit, True)
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise ModelError(
            f"the hub cannot be reached ({said}), and {source} was never downloaded to this machine: "
            "connect to the network and call again, or give a folder"
        ) from error


def download(name: str | Path) -> Path:
    """The folder with a Patchword model of the hub, named OWNER/NAME or OWNER/NAME@REVISION, downloaded where
    it is not here yet.

    Raises ModelError when it cannot be had.
    """
    from huggingface_hub import snapshot_download

    asked = hub_name(name)
    found = find_published(*asked)
    try:
        return Path(
            snapshot_download(
                found.source,
                revision=found.commit,
                local_files_only=found.local,
                allow_patterns=list(MODEL_FILES),
                etag_timeout=SECONDS,
            )
        )
    except Exception as error:  # as in `find_published`
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the hub's model {asked.source} could not be downloaded ({said}): call again"
        ) from error


def snapshot_of(folder: Path) -> dict[str, str]:
    """The id and the commit of a folder in the hub's cache, {} for any other folder."""
    owner = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not owner.startswith("models--"):
        return {}
    return {owner.removeprefix("models--").replace("--", "/"): folder.name}


def upload(folder: Path, repository: str, private: bool) -> str:
    """Upload a Patchword folder to a repository, which is made where there is none; returns the address of
    the commit.

    Raises ModelError when the hub does not take it.
    """
    from huggingface_hub import HfApi

    if not _ID.fullmatch(repository) or "/" not in repository:
        raise ModelError(f"{repository!r} is no repository of the hub: give OWNER/NAME")
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        found = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(MODEL_FILES),
            commit_message="Upload with Patchword",
        )
        return str(found.commit_url)
    except Exception as error:  # as in `find_published`
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the hub did not take {folder} as {repository} ({said}): log in with `hf auth login`, and call "
            "again"
        ) from error


def _downloaded_commit(source: str, revision: str | None, file: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, file, revision=revision)
    return Path(found).parent.name if isinstance(found, (str, os.PathLike)) else None
