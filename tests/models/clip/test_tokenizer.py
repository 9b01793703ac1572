"""CLIP's tokenizer against open_clip's, word for word; WordPiece against the one of the datasets."""

import csv
import pickle
import random

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch.nn import functional as F

from clip_vl.datasets.lxmert.wordpiece import load_tokenizer, pad_tokens
from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.clip.tokenizer import END, START, ClipTokenizer, WordPieceTokenizer, special_ids

THEIRS = SimpleTokenizer()
ODD = [
    "", " ", "a", "İstanbul ﬁne", "l&amp;amp;t; &lt;b&gt; & &nbsp;x",
    "schÃ¶n â€œquotedâ€\x9d", "it's I'LL they'VE ſ'ſ",
    "tabs\tand\r\nlines\x0b \u2028 \u00a0wide", "漢字かな 한국어 עברית हिन्दी",
    "🙂👩‍👩‍👧 e\u0301 ½ ²³ ٣", "\x1b[31mred\x1b[0m \x00\x07",
    f"{START} in {END.upper()} text", "1234567890 3.14 a1b2", "!!!???...---", "\ud7ff\ufffd\ufeffbom", "x" * 300,
    "word " * 100,
]  # fmt: skip
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cube", "##s", ",", "left"]


def assert_same_ids(texts, context_length=77):
    ours, theirs = ClipTokenizer(context_length)(texts)["input_ids"], THEIRS(texts, context_length)
    assert torch.equal(F.pad(ours, (0, context_length - ours.shape[1])), theirs)


@pytest.mark.parametrize("context_length", [77, 5, 2])
def test_odd_texts_have_open_clips_ids(context_length):
    assert_same_ids(ODD, context_length)


def test_random_characters_have_open_clips_ids():
    draw = random.Random(0)
    between = ["", " ", "a", "'S ", "1", "&amp;", END, "'"]
    characters = [chr(c) for c in (*range(1, 0x2600), *draw.sample(range(0x2600, 0xD800), 2000))]
    draw.shuffle(characters)
    texts = ["".join(c + draw.choice(between) for c in characters[i : i + 8]) for i in range(0, len(characters), 8)]
    assert_same_ids(texts)


def test_real_captions_have_open_clips_ids(real_data):
    with (real_data / "probes" / "negclip" / "valid_neg_clip.tsv").open(encoding="utf-8", newline="") as file:
        captions = [row["title"] for row in csv.DictReader(file, delimiter="\t")]
    assert len(captions) > 1000
    assert_same_ids(captions)


def test_a_long_text_keeps_its_head_and_ends_with_the_end():
    ids = ClipTokenizer(10)(["one two three four five six seven eight nine ten eleven", "one"])["input_ids"]
    start, end = special_ids()
    assert (start, end) == (THEIRS.sot_token_id, THEIRS.eot_token_id)
    assert ids.shape == (2, 10) and ids[0, 0] == start and ids[0, -1] == end
    assert ids[1].tolist() == [start, THEIRS.encode("one")[0], end] + [0] * 7


def test_a_tokenizer_pickles_small_and_comes_back_whole():
    packed = pickle.dumps(ClipTokenizer(9))
    assert len(packed) < 1000
    assert torch.equal(pickle.loads(packed)(ODD)["input_ids"], ClipTokenizer(9)(ODD)["input_ids"])


def test_word_pieces_are_those_of_the_datasets(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    texts = ["A red cube, left", "Réd cubes [MASK] blue", ""]
    tokenizer = WordPieceTokenizer(tmp_path, 6)
    expected = pad_tokens(load_tokenizer(tmp_path).encode(texts, 6))["input_ids"]
    assert torch.equal(tokenizer(texts)["input_ids"], expected)
    assert torch.equal(pickle.loads(pickle.dumps(tokenizer))(texts)["input_ids"], expected)
    assert tokenizer.vocab_size == len(VOCABULARY)


def test_no_vocabulary_and_a_wrong_one_are_told(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.txt cannot be read: No such file"):
        WordPieceTokenizer(tmp_path)
    path = tmp_path / "vocab.txt"
    path.write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n")
    with pytest.raises(DataError, match=r"\[PAD\] must be the first token"):
        WordPieceTokenizer(tmp_path)
    path.write_text("[PAD]\ncat\n")
    with pytest.raises(DataError, match=r"the token \[CLS\] is missing"):
        WordPieceTokenizer(tmp_path)
    with pytest.raises(UserError, match="no room for the start and the end"):
        ClipTokenizer(1)
