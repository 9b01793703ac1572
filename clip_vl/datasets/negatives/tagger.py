"""Parts of speech of captions: tokens with character offsets, Penn tags, coarse classes and noun chunks.

tagger = load_tagger()              spaCy where its English model is installed, else the bundled rules
tagger.name                         the backend, to be recorded; tables of two backends are not comparable
parse = tagger("A brown dog sits.")
[(t.text, t.tag, t.pos) for t in parse.tokens]     ("A", "DT", "DET"), ("brown", "JJ", "ADJ"), ...
parse.chunks                        [(0, 3)]: "A brown dog"
"""

from clip_vl.datasets.negatives.tagger_rules import BundledTagger
from clip_vl.datasets.negatives.tagger_tokens import Parse, Token, checked
from clip_vl.engine.errors import UserError

SPACY_MODEL = "en_core_web_sm"
BACKENDS = ("auto", "spacy", "bundled")


def load_tagger(backend="auto"):
    """A tagger: `tagger(caption) -> Parse`, with the attribute `name` of its backend.

    backend: "spacy", "bundled", or "auto" for spaCy where its model imports
    raises:  UserError for a backend that is not there
    """
    if backend not in BACKENDS:
        raise UserError(f"{backend!r} is no tagger; choose one of {', '.join(BACKENDS)}")
    if backend != "bundled":
        try:
            return SpacyTagger()
        except ImportError:
            if backend == "spacy":
                raise UserError(f"the spaCy tagger needs spacy and its model {SPACY_MODEL}; install both, or use "
                                "the bundled tagger") from None  # fmt: skip
    return BundledTagger()


class SpacyTagger:
    """spaCy's small English model, which the published negative captions were made with."""

    def __init__(self):
        import importlib

        self.nlp = importlib.import_module(SPACY_MODEL).load()
        self.name = f"spacy {SPACY_MODEL} {self.nlp.meta['version']}"

    def __call__(self, caption):
        document = self.nlp(checked(caption))
        tokens = tuple(
            Token(t.text, t.idx, t.idx + len(t.text), bool(t.whitespace_), t.tag_, t.pos_)
            for t in document
            if not t.is_space
        )
        index = {token.start: i for i, token in enumerate(tokens)}
        chunks = [[index[t.idx] for t in chunk if t.idx in index] for chunk in document.noun_chunks]
        return Parse(caption, tokens, tuple((chunk[0], chunk[-1] + 1) for chunk in chunks if chunk))
