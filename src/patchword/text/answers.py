"""Answers as VQA's evaluation compares them (Antol et al. 2015; https://visualqa.org/evaluation.html), equal
to its public code.

lower case, no full stops but in decimals, number words as digits, no articles, contractions with their
apostrophe, other punctuation gone
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_REMOVED = 32
"""The public code hands a flag to `re.sub` where the number of replacements stands: no more than these are
taken out."""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_NUMBER_OF = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()


def _spellings(word: str) -> list[str]:
    """The ways in which the public list finds a contraction misspelt: without its apostrophe, or without one
    of several."""
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


_CONTRACTION_OF = {spelling: word for word in _CONTRACTED for spelling in _spellings(word)}
_CONTRACTION_OF["somebody'd"] = "somebodyd"  # the public list has this one the wrong way round


def vqa_answer(text: str) -> str:
    """The answer in the form in which VQA's evaluation compares it; empty for an article alone.

    A sign of punctuation that stands beside a space anywhere in the answer vanishes, another becomes a space;
    where a comma stands between digits all signs vanish. So "t-shirt" is "t shirt", "t-shirt - red" is
    "tshirt red", and "x-ray , 1,000" is "xray 1000".
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    number = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if beside_space or number else " ")
    plain = _FULL_STOP.sub("", plain, count=_FULL_STOPS_REMOVED)
    words = [_NUMBER_OF.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTION_OF.get(word, word) for word in words if word not in _ARTICLES)
