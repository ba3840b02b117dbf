"""What a type checker says of programs that use the interface. `make lint` checks this file, nothing runs it."""

from pathlib import Path

from typing_extensions import assert_type

import patchword

assert_type(patchword.load("flickr8k").caption("photo.jpg"), patchword.Caption)
assert_type(patchword.load("flickr8k").caption(["photo.jpg"]), patchword.Captions)
assert_type(patchword.load("two-towers"), patchword.TwoTowerModel)
assert_type(patchword.load("laps").explain("photo.jpg", "two dogs"), patchword.AlignedPair)
assert_type(patchword.load("easy-vqa"), patchword.AnsweringModel)
assert_type(patchword.load("drawn-scenes"), patchword.PaintingModel)
assert_type(patchword.load(Path("mine"), task="label"), patchword.LabellingModel)
assert_type(patchword.load(Path("mine"), task="paint"), patchword.PaintingModel)
assert_type(patchword.load("hub:openai/clip-vit-base-patch32", task="retrieve"), patchword.TwoTowerModel)
assert_type(patchword.train("own-data", {"data.images": "photos"}), Path)
assert_type(patchword.index("photos", "index"), patchword.IndexReport)
assert_type(patchword.score({"1": ["a dog"]}, {"1": "a dog"})["CIDEr"].value, float)
assert_type(patchword.evaluate("mine", "rows.csv", "photos"), patchword.Evaluation)
vqa = patchword.Questions("questions.json", answers="annotations.json")
assert_type(patchword.evaluate("easy-vqa", vqa, "photos"), patchword.Evaluation)
with patchword.open_index("index") as opened:
    assert_type(opened, patchword.PictureIndex)

# Wrong, and so ignored: an ignore that is not needed is an error (warn_unused_ignores).
patchword.load(3)  # type: ignore[call-overload]
patchword.load("mine").caption("photo.jpg")  # type: ignore[union-attr]
patchword.lod("flickr8k")  # type: ignore[attr-defined]
