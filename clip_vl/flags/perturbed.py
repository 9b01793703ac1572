"""The flags of retrieval with shuffled words and shuffled parts of images. No torch is imported here."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag

BY_TAGS = ("nouns_adjectives", "all_but_nouns_adjectives")
TEXTS = (*BY_TAGS, "within_trigrams", "trigrams", "all_words")
IMAGES = ("rows", "columns", "patches")


@dataclass
class PerturbedFlags:
    """Shuffled words and images"""

    perturb_text: str | None = flag(None, "Shuffle the words of each caption in this way, by --seed.", choices=TEXTS)
    perturb_images: str | None = flag(
        None, "Shuffle the parts of each image, by --seed: 4 rows, 4 columns, or 3 x 3 patches.", choices=IMAGES
    )
    tagger: str = flag("auto", "Tagger of the two shufflings by nouns: spacy, bundled, or auto for spaCy if installed.")
    clean_captions: bool = flag(
        False, "Clean captions as ARO does: lower case, some signs left out, 30 words [captions as they are]."
    )

    def perturbed(self, source):
        """The source as these flags and --seed ask for it; the source itself where they ask for nothing."""
        from clip_vl.engine.errors import UserError

        if self.tagger != "auto" and self.perturb_text not in BY_TAGS:
            raise UserError(f"--tagger {self.tagger} is for --perturb_text {' or '.join(BY_TAGS)}")
        if not (self.perturb_text or self.perturb_images or self.clean_captions):
            return source
        from clip_vl.datasets.captions.perturbed import PerturbedSource

        asked = self.perturb_text, self.perturb_images, self.clean_captions
        return PerturbedSource(source, *asked, self.seed, self.tagger)
