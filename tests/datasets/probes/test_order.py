"""Shufflings of captions: each kind permutes what it says, no-ops are found, frozen files stay what they are."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.datasets.probes import order as probe_order
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.random import numpy_rng

CAPTION = "A brown dog quickly chases two white cats near the old barn"


@pytest.fixture(scope="module")
def tagger():
    return load_tagger("bundled")


@pytest.mark.parametrize("name", probe_order.NAMES)
def test_a_shuffling_permutes_the_words(tagger, name):
    words = probe_order.WORD.findall(CAPTION)
    for seed in range(5):
        got = probe_order.shuffled(CAPTION, tagger(CAPTION), name, numpy_rng(seed, "t")).split()
        assert sorted(got) == sorted(words)
        if name == "within trigrams":
            assert all(sorted(got[i : i + 3]) == sorted(words[i : i + 3]) for i in range(0, 12, 3))
        elif name == "trigrams":
            triples = [{tuple(of[i : i + 3]) for i in range(0, 12, 3)} for of in (words, got)]
            assert triples[0] == triples[1]
        else:
            tags = [token.tag for token in tagger(CAPTION).tokens]
            moves = probe_order.NOUNS | probe_order.ADJECTIVES
            still = [tag not in moves if name.startswith("nouns") else tag in moves for tag in tags]
            assert all(a == b for a, b, fixed in zip(got, words, still) if fixed)


def test_nouns_and_adjectives_stay_among_their_kind(tagger):
    for seed in range(5):
        got = probe_order.shuffled(CAPTION, tagger(CAPTION), "nouns and adjectives", numpy_rng(seed, "t")).split()
        assert {got[1], got[6], got[10]} == {"brown", "white", "old"}
        assert {got[2], got[7], got[11]} == {"dog", "cats", "barn"}


def test_cleaning_by_hand():
    assert probe_order.clean('A "Dog", (big)!  runs: fast~') == "a dog , big runs fast"
    assert len(probe_order.clean("w " * 40).split()) == 30


def test_a_shuffling_that_changes_nothing_is_drawn_again_or_left_out(tagger):
    counts = Counter()
    options = probe_order.options_of("dog", tagger, 0, 0, counts)
    assert options == ["dog"] and sum(n for name, n in counts.items() if "left out" in name) == 4
    for number in range(30):
        options = probe_order.options_of("two dogs run home now", tagger, 0, number, counts)
        assert options[0] not in options[1:]
    assert counts["trigrams: drawn again"] > 5  # two trigrams: half of the draws change nothing


def test_frozen_files_are_reproducible_and_read_back(tagger, tmp_path):
    captions = [("a.jpg", CAPTION), ("b.jpg", "dog")]
    for name in ("one", "two"):
        probe_order.freeze(tmp_path / f"{name}.json", "coco_order", captions, tagger, 3, "s")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    probe = probe_order.read_order("coco_order", [tmp_path / "one.json"])
    assert [item.id for item in probe.items] == ["seed 3/0"] and len(probe.items[0].captions) == 5
    assert probe.tie == "right" and probe.facts["tagger"] == tagger.name
    assert probe.files["one.json"] == hashlib.sha256((tmp_path / "one.json").read_bytes()).hexdigest()
    assert probe.defects["seed 3: no shuffling at all, excluded"] == 1
    changed = json.loads((tmp_path / "two.json").read_text()) | {"tagger": "another"}
    (tmp_path / "two.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="different taggers"):
        probe_order.read_order("coco_order", [tmp_path / "one.json", tmp_path / "two.json"])
    with pytest.raises(DataError, match="flickr30k_order, version 1 is wanted"):
        probe_order.read_order("flickr30k_order", [tmp_path / "one.json"])


def test_real_captions(tagger, real_data):
    pairs = probe_order.karpathy_test(real_data / "probes/retrieval/coco_karpathy_test_first1500.json")
    assert len({image for image, _ in pairs}) == 1500 and len(pairs) >= 7500
    counts = Counter()
    sizes = [len(probe_order.options_of(c, tagger, 0, n, counts)) for n, (_, c) in enumerate(pairs[:300])]
    assert np.mean(sizes) > 4.9  # nearly all have four shufflings
    assert 0.02 < counts["trigrams: drawn again"] / 300 < 0.2  # 8.6 % of the published ones change nothing
