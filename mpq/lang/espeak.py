"""Pronunciations by espeak-ng (the `espeakng-loader` wheel), in the 39 phones of CMUdict.

The table maps the phoneme mnemonics of espeak's American English voice; on CMUdict words it makes about
10 % phone errors, mostly in names and unstressed vowels.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable

from mpq.io import BadInput

_SYNCHRONOUS, _UTF8, _NAMED_BY_UNDERSCORE = 0x02, 1, ord("_") << 8

# Vowels that hold an R: an R that espeak writes after them is the same sound.
_R_VOWELS = {
    "3": "ER",
    "3:": "ER",
    "A@": "AA R",
    "O@": "AO R",
    "o@": "AO R",
    "e@": "EH R",
    "U@": "UH R",
    "i@3": "IH R",
    "aI3": "AY ER",
    "aI@3": "AY ER",
    "aU@3": "AW ER",
    "@r": "ER",
}
_PHONES = {
    **_R_VOWELS,
    "n": "N",
    "s": "S",
    "l": "L",
    "t": "T",
    "k": "K",
    "r": "R",
    "d": "D",
    "z": "Z",
    "m": "M",
    "b": "B",
    "p": "P",
    "f": "F",
    "g": "G",
    "N": "NG",
    "h": "HH",
    "v": "V",
    "S": "SH",
    "w": "W",
    "dZ": "JH",
    "t#": "T",
    "tS": "CH",
    "j": "Y",
    "T": "TH",
    "D": "DH",
    "r-": "R",
    "Z": "ZH",
    "?": "T",
    "t2": "T",
    "x": "K",
    "X": "HH",
    "C": "HH",
    "l#": "L",
    "hw": "W",
    "n^": "N Y",
    "l^": "L Y",
    "n-": "AH N",
    "m-": "AH M",
    "@L": "AH L",
    "l-": "AH L",
    "z#": "Z",
    "d#": "D",
    "w#": "W",
    "s#": "S",
    "R": "R",
    "Q": "G",
    "B": "V",
    "I": "IH",
    "I#": "IH",
    "I2": "IH",
    "i": "IY",
    "i:": "IY",
    "i::": "IY",
    "E": "EH",
    "E#": "EH",
    "e": "EH",
    "E2": "EH",
    "a": "AE",
    "aa": "AE",
    "a#": "AH",
    "a2": "AH",
    "A": "AA",
    "A:": "AA",
    "a:": "AA",
    "0": "AA",
    "0#": "AA",
    "O2": "AA",
    "O": "AO",
    "O:": "AO",
    "o": "OW",
    "oU": "OW",
    "o:": "OW",
    "oU#": "OW",
    "V": "AH",
    "@": "AH",
    "@2": "AH",
    "@5": "AH",
    "@-": "AH",
    "U": "UH",
    "u": "UW",
    "u:": "UW",
    "y": "UW",
    "y:": "UW",
    "Y": "ER",
    "W": "ER",
    "eI": "EY",
    "aI": "AY",
    "OI": "OY",
    "aU": "AW",
    "i@": "IY AH",
    "aI@": "AY AH",
    "aU@": "AW AH",
    "O~": "AA N",
    "A~": "AA N",
    "E~": "AE N",
    "W~": "AH N",
    "o~": "OW N",
    ";": "",
    ":": "",
    "!": "",
    "|": "",
    "||": "",
    "": "",
}


def map_phonemes(mnemonics: Iterable[str]) -> list[str]:
    """Map espeak's phoneme names to CMUdict phones.

    Raises:
        KeyError: a name that the table does not have.

    Example:
        >>> map_phonemes(["h", "@", "l", "oU"])
        ['HH', 'AH', 'L', 'OW']
    """
    phones: list[str] = []
    after_r_vowel = False
    for name in mnemonics:
        if not (after_r_vowel and name in ("r", "r-")):
            phones += _PHONES[name].split()
        after_r_vowel = name in _R_VOWELS
    return phones


def espeak_pronouncer(voice: str = "en-us") -> Callable[[str], list[str]]:
    """Start espeak and return a function from a word to its phones.

    Raises:
        BadInput: the wheel is not installed, or has no such voice; the returned function raises it for a
            word whose sounds the table does not know, or that has none.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise BadInput(
            "no espeak to pronounce words outside the dictionary: install espeakng-loader, "
            "or give every word a pronunciation in a dictionary"
        ) from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    if library.espeak_Initialize(_SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0) < 0:
        raise BadInput(f"{espeakng_loader.get_data_path()}: espeak cannot read its data; install espeakng-loader again")
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise BadInput(f"espeak has no voice {voice!r}; try en-us")

    def pronounce(word: str) -> list[str]:
        # espeak reads the mark of a word that was broken off (it'-) as a pause, and has strange names for it
        text = ctypes.c_char_p(word.strip("-'").encode())
        answer = library.espeak_TextToPhonemes(ctypes.byref(text), _UTF8, _NAMED_BY_UNDERSCORE) or b""
        # Stress marks stand before a vowel: ' , and rarely % =
        names = re.split(r"[_\s]+", re.sub(r"[',%=]", "", answer.decode()))
        try:
            phones = map_phonemes(names)
        except KeyError as unknown:
            raise BadInput(f"{word!r} (espeak says {answer.decode()!r}, and {unknown} is no phone)") from None
        if not phones:
            raise BadInput(f"{word!r} (espeak says nothing)")
        return phones

    return pronounce
