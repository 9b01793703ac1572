"""Tokens keep their places, captions get their parts of speech, and the published swaps can be found again."""

import ast
import csv
import re

import pytest

from clip_vl.datasets.negatives import tagger as tagger_module
from clip_vl.datasets.negatives.swaps import enumerate_swaps, folded
from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.datasets.negatives.tagger_forms import inflections
from clip_vl.datasets.negatives.tagger_tokens import Parse, Token
from clip_vl.engine.errors import UserError


@pytest.fixture(scope="module")
def tagger():
    return load_tagger("bundled")


@pytest.mark.parametrize(
    "caption", ["A dog's hat isn’t  red.", " two-tone\tcars, 3.5 m!", "", "naïve Zoë 犬 ☃", "don't"]
)
def test_tokens_are_where_they_say(tagger, caption):
    parse = tagger(caption)
    assert all(caption[t.start : t.end] == t.text for t in parse.tokens)
    assert "".join(t.text for t in parse.tokens) == "".join(caption.split())
    assert all(t.space == caption[t.end : t.end + 1].isspace() for t in parse.tokens)


@pytest.mark.parametrize(
    "tagged",
    [
        "A/DT brown/JJ dog/NN chases/VBZ two/CD white/JJ cats/NNS ./.",
        "The/DT man/NN is/VBZ riding/VBG a/DT horse/NN quickly/RB down/IN the/DT street/NN",
        "Two/CD men/NNS play/VBP a/DT game/NN near/IN street/NN signs/NNS",
        "A/DT red/JJ and/CC black/JJ train/NN passes/VBZ an/DT old/JJ building/NN",
        "A/DT boy/NN stands/VBZ in/IN a/DT living/NN room/NN next/RB to/TO a/DT sink/NN",
        "A/DT woman/NN 's/POS hand/NN that/WDT is/VBZ n't/RB clean/JJ",
        "people/NNS sitting/VBG on/IN benches/NNS in/IN front/NN of/IN an/DT orange/JJ bus/NN",
        "Children/NNS can/MD ride/VB her/PRP$ small/JJ ponies/NNS there/EX",
    ],
)
def test_captions_get_their_tags(tagger, tagged):
    pairs = [pair.rsplit("/", 1) for pair in tagged.split()]
    parse = tagger(" ".join(word for word, _ in pairs))
    assert [(t.text, t.tag) for t in parse.tokens] == [tuple(pair) for pair in pairs]


@pytest.mark.parametrize(
    "caption, chunks",
    [
        ("A large brown dog runs behind the old wooden fence.", ["A large brown dog", "the old wooden fence"]),
        ("a black and white photo of his two cats", ["a black and white photo", "his two cats"]),
        ("A man and a very small child", ["A man", "a very small child"]),
    ],
)
def test_noun_phrases_are_found_whole(tagger, caption, chunks):
    parse = tagger(caption)
    assert [caption[parse.tokens[a].start : parse.tokens[b - 1].end] for a, b in parse.chunks] == chunks


@pytest.mark.parametrize(
    "entry, forms",
    [
        ("sit/sat/sat", "sit sits sitting sat sat"),
        ("carry", "carry carries carrying carried carried"),
        ("ride/rode/ridden", "ride rides riding ridden rode"),
        ("lie/lay/lain", "lie lies lying lain lay"),
        ("watch", "watch watches watching watched watched"),
        ("stop", "stop stops stopping stopped stopped"),
    ],
)
def test_verbs_are_inflected(entry, forms):
    assert [form for form, _ in inflections(entry)] == forms.split()


def test_the_published_swaps_can_be_found_again(tagger, real_data):
    """Of the negatives of NegCLIP's validation file, at least 90 % of the swaps of two tokens and 70 % of two spans are
    among all swaps of their caption; and those stay few, so that this is no merit of swapping everything."""
    path = real_data / "probes" / "negclip" / "valid_neg_clip.tsv"
    if not path.exists():
        pytest.skip(f"no {path}")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found, total, swaps, pairs = {2: 0, "spans": 0}, {2: 0, "spans": 0}, 0, 0
    for row in rows:
        parse = tagger(row["title"])
        ours = {folded(swap.text) for swap in enumerate_swaps(parse, same_meaning=True)}
        swaps, pairs = swaps + len(ours), pairs + len(parse.tokens) * (len(parse.tokens) - 1) // 2
        for negative in ast.literal_eval(row["neg_caption"]):
            kind = kind_of_swap(row["title"], negative)
            if kind:
                total[kind] += 1
                found[kind] += folded(negative) in ours
    assert total[2] > 6000 and total["spans"] > 800
    assert found[2] >= 0.9 * total[2], found[2] / total[2]
    assert found["spans"] >= 0.7 * total["spans"], found["spans"] / total["spans"]
    assert swaps / len(rows) < 6 and swaps < 0.15 * pairs


def kind_of_swap(caption, negative):
    """2 for two tokens that changed places, "spans" for two spans that did, else None."""
    a, b = (re.findall(r"n't|'\w+|\w+?(?=n't)|\w+|[^\w\s]", text.lower()) for text in (caption, negative))
    moved = [i for i in range(min(len(a), len(b))) if a[i] != b[i]]
    if len(a) != len(b) or not moved:
        return None
    if len(moved) == 2 and a[moved[0]] == b[moved[1]] and a[moved[1]] == b[moved[0]]:
        return 2
    return "spans" if sorted(a) == sorted(b) else None


def test_an_unknown_backend_and_a_missing_one_are_named():
    with pytest.raises(UserError, match="'nltk' is no tagger; choose one of auto, spacy, bundled"):
        load_tagger("nltk")


def test_without_spacy_the_bundled_tagger_is_taken(monkeypatch):
    monkeypatch.setattr(tagger_module, "SPACY_MODEL", "no_such_model")
    assert load_tagger("auto").name == "bundled 2"
    with pytest.raises(UserError, match="needs spacy and its model no_such_model"):
        load_tagger("spacy")


def test_a_spacy_document_becomes_a_parse(monkeypatch):
    """With a stand-in of spaCy's interface: a double space is a token of it, and none of ours."""
    import sys
    from types import SimpleNamespace as Namespace

    words = [("A", 0, "", "DT", "DET"), ("  ", 1, "", "_SP", "SPACE"), ("dog", 3, "", "NN", "NOUN")]
    tokens = [
        Namespace(text=t, idx=i, whitespace_=w, tag_=tag, pos_=p, is_space=not t.strip()) for t, i, w, tag, p in words
    ]

    class Document(list):
        noun_chunks = [tokens]

    class Model:
        meta = {"version": "3.8.0"}

        def __call__(self, text):
            return Document(tokens)

    monkeypatch.setitem(sys.modules, "en_core_web_sm", Namespace(load=Model))
    tagger = load_tagger("auto")
    assert tagger.name == "spacy en_core_web_sm 3.8.0"
    expected = (Token("A", 0, 1, False, "DT", "DET"), Token("dog", 3, 6, False, "NN", "NOUN"))
    assert tagger("A  dog") == Parse("A  dog", expected, ((0, 2),))


def test_a_book_is_no_caption(tagger):
    with pytest.raises(UserError, match="a caption of 20,000 characters"):
        tagger("word " * 4000)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_side_between_two_things_belongs_to_neither(side):
    parse = load_tagger("bundled")(f"a red dog {side} of a black cat")
    assert [parse.text[parse.tokens[a].start : parse.tokens[b - 1].end] for a, b in parse.chunks] == [
        "a red dog",
        "a black cat",
    ]
