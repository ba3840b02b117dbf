"""A region in a picture, in pixels and drawn."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import find_model
from patchword.errors import ModelError
from patchword.files import whole_file
from patchword.tasks.pretrain.vilbert_model import RegionScore, TwoStreamModel, load_two_streams


def pointing_model(name: str, device: str | None) -> TwoStreamModel:
    """The two-stream model of that name. Raises ModelError where it is another kind of model."""
    folder = find_model(name)
    config = checkpoint.read_config(folder)
    if "vilbert" not in config:
        raise ModelError(
            f"{name} is a model for {config.get('task')!r} without two streams: point needs one that "
            "`patchword train` made with model.kind vilbert"
        )
    return load_two_streams(folder, device)


def pixels_of(one: RegionScore, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels of a picture of that width and height."""
    width, height = size
    left, top, right, bottom = one.box
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def draw_region(picture: Image.Image, one: RegionScore, phrase: str, out: Path) -> None:
    """Writes the picture, at least 320 pixels wide, with the region framed and the phrase below it."""
    shown = picture.convert("RGB")
    if shown.width < 320:
        shown = shown.resize((320, round(shown.height * 320 / shown.width)), Image.Resampling.NEAREST)
    page = Image.new("RGB", (shown.width, shown.height + 24), "white")
    page.paste(shown)
    draw = ImageDraw.Draw(page)
    left, top, right, bottom = pixels_of(one, shown.size)
    for inset, colour in ((0, "black"), (1, "white"), (2, "white"), (3, "black")):
        if right - left > 2 * inset + 1 and bottom - top > 2 * inset + 1:
            draw.rectangle((left + inset, top + inset, right - 1 - inset, bottom - 1 - inset), outline=colour)
    draw.text((6, shown.height + 6), f"{phrase}  {one.share:.2f}", fill="black")
    with whole_file(out) as aside:
        page.save(aside, "PNG")
