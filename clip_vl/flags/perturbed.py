"""The flags of retrieval with words and pictures out of order. No torch is imported here."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag

BY_TAGS = {"nouns_adjectives": "nouns and adjectives", "all_but_nouns_adjectives": "all but nouns and adjectives"}
TEXTS = BY_TAGS | {"within_trigrams": "within trigrams", "trigrams": "trigrams", "all_words": "all words"}
IMAGES = {"rows": (4, 1), "columns": (1, 4), "patches": (3, 3)}  # how many parts from top to bottom, left to right


@dataclass
class PerturbedFlags:
    """Out of order"""

    perturb_text: str | None = flag(
        None, "Shuffle the words of each caption in this way, by --seed.", choices=list(TEXTS)
    )
    perturb_images: str | None = flag(
        None, "Shuffle the parts of each picture, by --seed: 4 rows, 4 columns, or 3 x 3 patches.", choices=list(IMAGES)
    )
    tagger: str = flag("auto", "Tagger of the two shufflings by nouns: spacy, bundled, or auto for spaCy where it is.")
    clean_captions: bool = flag(
        False, "Captions as ARO reads them: lower case, some signs left out, 30 words; they count raw otherwise."
    )
