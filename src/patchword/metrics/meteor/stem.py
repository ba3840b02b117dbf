"""The English stemmer of METEOR: Porter2, written from its published description.

Source: Porter 2001, snowballstem.org/algorithms/english, in the version before 2015, which METEOR 1.5 uses.
Regions: R1 is what follows the first consonant after a vowel, R2 the same within R1. `y` counts as a
consonant, written `Y` while stemming, at the start of a word and after a vowel.
"""

from __future__ import annotations

VOWELS = frozenset("aeiouy")
DOUBLES = frozenset(("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt"))
BEFORE_LI = frozenset("cdeghkmnrt")
WHOLE_WORDS = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "idly": "idl",
    "gently": "gentl", "ugly": "ugli",
    "early": "earli", "only": "onli", "singly": "singl",
    **{word: word for word in ("sky", "news", "howe", "atlas", "cosmos", "bias", "andes")},
}  # fmt: skip
AFTER_PLURAL = frozenset(
    ("inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed")
)
# Suffix -> replacement, longest first. Only the longest matching suffix of a word counts, even where its
# condition fails.
STEP_2 = {
    "ization": "ize", "ational": "ate", "fulness": "ful", "ousness": "ous", "iveness": "ive",
    "tional": "tion", "biliti": "ble",
    "lessli": "less", "entli": "ent", "ation": "ate", "alism": "al", "aliti": "al", "ousli": "ous",
    "iviti": "ive", "fulli": "ful",
    "enci": "ence", "anci": "ance", "abli": "able", "izer": "ize", "ator": "ate", "alli": "al", "bli": "ble",
    "ogi": "og", "li": "",
}  # fmt: skip
STEP_3 = {
    "ational": "ate", "tional": "tion", "alize": "al", "icate": "ic", "iciti": "ic", "ative": "",
    "ical": "ic", "ness": "", "ful": "",
}  # fmt: skip
STEP_4 = (
    "ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ism", "ate", "iti", "ous", "ive", "ize",
    "ion", "al", "er", "ic",
)  # fmt: skip


def stem(word: str) -> str:
    """Returns the stem of one lower-case word; words of one or two letters are their own stem."""
    if word in WHOLE_WORDS:
        return WHOLE_WORDS[word]
    if len(word) <= 2:
        return word
    word = _mark_consonant_y(word[1:] if word[0] == "'" else word)
    r1 = _first_region(word)
    r2 = _region_after(word, r1)
    word = _plural(_possessive(word))
    if word not in AFTER_PLURAL:
        word = _past_and_gerund(word, r1)
        if len(word) > 2 and word[-1] in "yY" and word[-2] not in VOWELS:
            word = word[:-1] + "i"
        word = _step_2(word, r1)
        word = _step_3(word, r1, r2)
        word = _step_4(word, r2)
        word = _last_letter(word, r1, r2)
    return word.replace("Y", "y")


def _mark_consonant_y(word: str) -> str:
    letters = list(word)
    for i, letter in enumerate(letters):
        if letter == "y" and (i == 0 or letters[i - 1] in VOWELS):
            letters[i] = "Y"
    return "".join(letters)


def _region_after(word: str, start: int) -> int:
    for i in range(start + 1, len(word)):
        if word[i] not in VOWELS and word[i - 1] in VOWELS:
            return i + 1
    return len(word)


def _first_region(word: str) -> int:
    for beginning in ("gener", "commun", "arsen"):
        if word.startswith(beginning):
            return len(beginning)
    return _region_after(word, 0)


def _has_vowel(part: str) -> bool:
    return any(letter in VOWELS for letter in part)


def _ends_in_short_syllable(word: str) -> bool:
    if len(word) == 2:
        return word[0] in VOWELS and word[1] not in VOWELS
    return (
        len(word) > 2
        and word[-1] not in VOWELS
        and word[-1] not in "wxY"
        and word[-2] in VOWELS
        and word[-3] not in VOWELS
    )


def _possessive(word: str) -> str:
    for suffix in ("'s'", "'s", "'"):
        if word.endswith(suffix):
            return word[: -len(suffix)]
    return word


def _plural(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")) and _has_vowel(word[:-2]):
        return word[:-1]
    return word


def _past_and_gerund(word: str, r1: int) -> str:
    for suffix in ("eedly", "eed"):
        if word.endswith(suffix):
            start = len(word) - len(suffix)
            return word[:start] + "ee" if start >= r1 else word
    for suffix in ("ingly", "edly", "ing", "ed"):
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            if not _has_vowel(rest):
                return word
            if rest.endswith(("at", "bl", "iz")):
                return rest + "e"
            if rest[-2:] in DOUBLES:
                return rest[:-1]
            return rest + "e" if len(rest) <= r1 and _ends_in_short_syllable(rest) else rest
    return word


def _step_2(word: str, r1: int) -> str:
    for suffix, replacement in STEP_2.items():
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            if (
                len(rest) < r1
                or (suffix == "ogi" and not rest.endswith("l"))
                or (suffix == "li" and rest[-1:] not in BEFORE_LI)
            ):
                return word
            return rest + replacement
    return word


def _step_3(word: str, r1: int, r2: int) -> str:
    for suffix, replacement in STEP_3.items():
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return word if len(rest) < r1 or (suffix == "ative" and len(rest) < r2) else rest + replacement
    return word


def _step_4(word: str, r2: int) -> str:
    for suffix in STEP_4:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return word if len(rest) < r2 or (suffix == "ion" and rest[-1:] not in ("s", "t")) else rest
    return word


def _last_letter(word: str, r1: int, r2: int) -> str:
    rest = word[:-1]
    if word.endswith("e") and (len(rest) >= r2 or (len(rest) >= r1 and not _ends_in_short_syllable(rest))):
        return rest
    if word.endswith("ll") and len(rest) >= r2:
        return rest
    return word
