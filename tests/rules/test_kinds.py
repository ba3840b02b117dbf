"""The table of captioners: settings are validated by their `kind`, and what the table names is there."""

import pytest
from pydantic import BaseModel

from patchword.composed import CAPTIONERS, TEXT_TOWERS, TOWERS, CaptionerSettings
from patchword.config import fields, validate
from patchword.errors import ConfigError
from patchword.lookup import look_up


class Section(BaseModel):
    captioner: CaptionerSettings
    generator: CaptionerSettings | None = None


@pytest.mark.parametrize("kind", CAPTIONERS)
def test_a_kind_names_its_settings_and_its_class(kind):
    read = validate({"captioner": {"kind": kind}}, Section, "run.toml")
    assert type(read.captioner) is CAPTIONERS[kind].settings_class()
    assert read.captioner.kind == kind and read.generator is None
    assert {"encode", "decode", "start", "step"} <= set(dir(CAPTIONERS[kind].part_class()))


@pytest.mark.parametrize("reference", [*TOWERS.values(), *TEXT_TOWERS.values()])
def test_a_table_of_towers_names_classes(reference):
    assert {"embed", "finish"} <= set(dir(look_up(reference)))


def test_settings_are_dumped_and_read_again():
    values = {"captioner": {"kind": "show_tell", "width": 24}, "generator": {"kind": "adaptive"}}
    read = validate(values, Section, "run.toml")
    dumped = read.model_dump(mode="json")
    assert dumped["captioner"]["width"] == 24 and dumped["generator"]["kind"] == "adaptive"
    assert validate(dumped, Section, "config.json") == read == Section(**dict(read))


@pytest.mark.parametrize(
    ("captioner", "message"),
    [
        (
            {"kind": "show_me"},
            "run.toml: captioner: kind must be one of show_tell, .*: 'show_me' is none of them",
        ),
        ({}, "run.toml: captioner: kind must be one of show_tell, .*: there is none"),
        ({"kind": {}}, "run.toml: captioner: kind must be one of show_tell, .*: {} is none of them"),
        ({"kind": ["show_tell"]}, "run.toml: captioner: kind must be one of show_tell, .* is none of them"),
        ("show_tell", "run.toml: captioner: kind must be one of"),
        ({"kind": "show_tell", "widht": 3}, "run.toml: captioner.widht: unknown setting"),
        ({"kind": "show_tell", "width": "wide"}, r"run.toml: captioner.width: .* \(found \"wide\"\)"),
    ],
)
def test_a_wrong_setting_is_named(captioner, message):
    with pytest.raises(ConfigError, match=message):
        validate({"captioner": captioner}, Section, "run.toml")


def test_the_listing_shows_the_settings_of_every_kind():
    names = {field.name for field in fields(Section)}
    assert {f"captioner({kind}).kind" for kind in CAPTIONERS} <= names
    assert {f"generator({kind}).kind" for kind in CAPTIONERS} <= names
