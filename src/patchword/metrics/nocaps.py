"""The groups of nocaps (Agrawal et al. 2019) and the results files of the COCO and nocaps servers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from patchword.errors import DataError, counted
from patchword.files import write_text

DOMAINS = ("in-domain", "near-domain", "out-domain")


def domain_groups(annotations: Mapping, ids: Iterable) -> dict[str, list]:
    """Image ids by group: in-domain, near-domain, out-domain, and `entire`, each scored as a corpus of its
    own.

    annotations: the nocaps captions file, whose images carry `id` and `domain`. Raises DataError for an id
    without a known domain.
    """
    domains = {image["id"]: image.get("domain") for image in annotations["images"]}
    groups: dict[str, list] = {name: [] for name in (*DOMAINS, "entire")}
    for image in ids:
        domain = domains.get(image)
        if domain not in DOMAINS:
            raise DataError(
                f"nocaps: image {image} has the domain {domain!r}; expected one of {', '.join(DOMAINS)}"
            )
        groups[domain].append(image)
        groups["entire"].append(image)
    return groups


def check_submission(results: object, expected: Iterable[int]) -> list[dict]:
    """Entries {"image_id", "caption"} for exactly the expected images, by image id.

    Raises DataError naming what a server would refuse.
    """
    if not isinstance(results, list):
        raise DataError(f"a results file is a list of {{image_id, caption}}; found {type(results).__name__}")
    found: dict[int, str] = {}
    for place, entry in enumerate(results):
        if not isinstance(entry, dict) or not {"image_id", "caption"} <= entry.keys():
            raise DataError(
                f"entry {place} is not an object with image_id and caption: {json.dumps(entry)[:80]}"
            )
        image, caption = entry["image_id"], entry["caption"]
        if isinstance(image, bool) or not isinstance(image, int):
            raise DataError(
                f"entry {place}: image_id is {image!r}; the server wants the integer id of the annotation "
                "file"
            )
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(
                f"image {image}: the caption is {caption!r}; the server wants a text that is not empty"
            )
        if image in found:
            raise DataError(
                f"image {image} stands twice in the results; the server wants one caption for each image"
            )
        found[image] = " ".join(caption.split())
    wanted = set(expected)
    for problem, ids in (
        ("missing", wanted - found.keys()),
        ("not in the annotation file", found.keys() - wanted),
    ):
        if ids:
            raise DataError(
                f"{counted(len(ids), 'image is', 'images are')} {problem}: "
                f"{', '.join(map(str, sorted(ids)[:5]))}; the server "
                "refuses such a file"
            )
    return [{"image_id": image, "caption": found[image]} for image in sorted(found)]


def write_submission(entries: list[dict], path: Path) -> None:
    """Write a results file as the servers want it, whole or not at all."""
    write_text(path, json.dumps(entries, ensure_ascii=True))
