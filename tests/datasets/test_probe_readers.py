"""Probe readers: real annotation files with their known counts, made ones with every defect, foreign input."""

import csv
import json

import pytest

from clip_vl.datasets.probes.aro import read_attribution, read_relation
from clip_vl.datasets.probes.crepe import read_productivity, read_systematicity
from clip_vl.datasets.probes.items import Crop, Item, Probe, find_images, literal_strings
from clip_vl.datasets.probes.nlvr import read_nlvr
from clip_vl.datasets.probes.scenes import SUBSETS, read_scenes, things_of
from clip_vl.datasets.probes.sugarcrepe import read_sugarcrepe, recorded_answers
from clip_vl.datasets.probes.svo import addresses, read_svo, triplets
from clip_vl.datasets.probes.vlchecklist import read_vlchecklist
from clip_vl.datasets.probes.winoground import read_winoground, scores_by_file
from clip_vl.datasets.storage.json_stream import read_json
from clip_vl.engine.errors import DataError, UserError
from clip_vl.evaluation.probe_scores import table_row, verdict_on


def counts(probe):
    found = {}
    for item in probe.items:
        found[item.groups[0]] = found.get(item.groups[0], 0) + 1
    return found


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


# ---- real files


def test_sugarcrepe_as_published(real_data):
    probe = read_sugarcrepe(real_data / "probes/sugarcrepe")
    assert counts(probe) == {"replace_obj": 1652, "replace_att": 788, "replace_rel": 1406, "swap_obj": 245,
                             "swap_att": 666, "add_obj": 2062, "add_att": 692}  # fmt: skip
    assert probe.defects["swap_obj: numbers left out"] == 1 and probe.defects["triples in two subsets"] == 6
    assert "swap_obj/108" not in {item.id for item in probe.items} and len(probe.files) == 7


def test_recorded_answers_of_a_generative_model(real_data, tmp_path):
    path = real_data / "probes/sugarcrepe_gpt4v/negative-first_swap_obj.json"
    assert recorded_answers(path) == (198, 246)
    (tmp_path / "scalar.json").write_text(json.dumps(read_json(path) | {"acc": 0.8}))
    assert recorded_answers(tmp_path / "scalar.json") == (198, 246)


def test_crepe_productivity_as_published(real_data):
    probe = read_productivity(real_data / "probes/crepe_productivity")
    excluded = sum(n for name, n in probe.defects.items() if "among the negatives" in name)
    rows = {
        "atom/4": 1258,
        "atom/6": 1805,
        "swap/4": 27,
        "swap/5": 36,
        "swap/6": 262,
        "negate/4": 1262,
        "negate/6": 1798,
    }
    found = {name: n for name, n in counts(probe).items() if not name.startswith("lower")}
    assert sum(found.values()) + excluded == sum(rows.values())
    assert all(found[name] == n for name, n in rows.items() if not name.startswith(("swap", "negate")))
    assert all(len(item.captions) == 6 for item in probe.items)
    assert not any("other than five" in name and n for name, n in probe.defects.items())
    assert probe.defects["negate: negatives in a set, taken in the order of the text"] > 0


def test_aro_relation_as_published(real_data):
    probe = read_relation(real_data / "probes/aro")
    assert len(probe.items) == 43 and probe.items[0].images[0] == Crop("2410049.jpg", (42, 0, 301, 354))
    assert len(read_json(real_data / "probes/aro/vg_relation_excluded_relations.json")) == 157
    macro = next(row for row in probe.rows if row.label == "macro")
    assert set(macro.groups) < set(counts(probe)) or len(macro.groups) == len(counts(probe))
    assert probe.defects["items of excluded relations, in the micro average alone"] == 43 - sum(
        n for name, n in counts(probe).items() if name in macro.groups
    )


def test_vlchecklist_as_published(real_data):
    itc, itm, cleaned = read_vlchecklist(real_data / "probes/vlchecklist", first_cases=0)
    found = {name.rpartition("/")[2]: n for name, n in counts(itc).items() if "/action/" not in name}
    assert found == {"material": 2470, "size": 2695, "swig_agent_margin": 260, "swig_destination_margin": 45,
                     "swig_item_margin": 88, "swig_agent_small": 48, "swig_destination_small": 9,
                     "swig_item_small": 154, "vg_obj_small_first3000": 3000, "spatial_first3000": 3000}  # fmt: skip
    actions = {name: n for name, n in counts(itc).items() if "/action/" in name}
    assert actions == {"Attribute/action/vaw/action": 3039, "Attribute/action/vg/action": 1892,
                       "Relation/action/vg/action_first4000": 4000}  # fmt: skip
    assert len(itm.items) == 2 * len(itc.items) > 2 * len(cleaned.items) and itc.defects["empty files"] == 1
    capped = read_vlchecklist(real_data / "probes/vlchecklist")[0]
    assert counts(capped)["Relation/action/vg/action_first4000"] == 1000
    assert [i.id for i in capped.items if "spatial" in i.id][-1].endswith("/999")


# ---- made files


def test_winoground_lines_and_score_files(tmp_path):
    entry = {"id": 7, "image_0": "ex_7_img_0", "image_1": "ex_7_img_1", "caption_0": "a cup on a book",
             "caption_1": "a book on a cup", "tag": "Noun", "secondary_tag": "", "num_main_preds": 1,
             "collapsed_tag": "Object"}  # fmt: skip
    (tmp_path / "examples.jsonl").write_text(json.dumps(entry) + "\n" + json.dumps(entry | {"id": 8}) + "\n")
    probe = read_winoground(tmp_path)
    assert probe.items[0].groups == ("all", "collapsed_tag Object", "num_main_preds 1")
    assert len(probe.rows) == 9 and probe.defects["empty secondary_tag"] == 2
    lines = [json.dumps({"label": f"7_c{c}_i{i}", "score": 10 * i + c}).encode() for c in (0, 1) for i in (0, 1)]
    (tmp_path / "scores.jsonl").write_bytes(b"\n".join(lines))
    with (tmp_path / "scores.jsonl").open("rb") as file:
        assert scores_by_file(file) == {"7": [[0, 1], [10, 11]]}
    (tmp_path / "examples.jsonl").write_text(json.dumps(entry) + "\n" + json.dumps(entry) + "\n")
    with pytest.raises(DataError, match=r"examples\.jsonl:2: the id 7 occurs twice"):
        read_winoground(tmp_path)


def crepe_row(negatives, **more):
    return {"image_id": 42, "caption": "cup on desk.", "hard_negs": negatives, "x": 10.0, "y": 4.0, "width": 120.0,
            "height": 88.0} | more  # fmt: skip


def test_crepe_defects_are_counted(tmp_path):
    path = tmp_path / "prod_vg_hard_negs_swap_complexity_4.csv"
    five = ["b", "a", "d", "c", "e"]
    write_csv(path, [crepe_row(str(five)), crepe_row("{'b', 'a', 'd', 'c', 'e'}"),
                     crepe_row(str([*five[:4], "cup on desk."])), crepe_row("['b']")])  # fmt: skip
    probe = read_productivity(tmp_path)
    assert [item.captions for item in probe.items][:2] == [("cup on desk.", *five)] * 2  # the order of the text
    assert probe.items[0].images == (Crop("42", (10, 4, 130, 92)),)
    assert [item.id for item in probe.items] == ["swap/4/0", "swap/4/1", "swap/4/3"]
    assert probe.defects["swap: the positive is among the negatives, excluded"] == 1
    assert probe.defects["swap: other than five negatives"] == 1
    assert probe.defects["swap: negatives in a set, taken in the order of the text"] == 1


def test_crepe_negations_are_scored_in_lower_case_too(tmp_path):
    write_csv(tmp_path / "prod_vg_hard_negs_negate_complexity_4.csv", [crepe_row("['A', 'B', 'C', 'D', 'E']")])
    probe = read_productivity(tmp_path)
    assert [item.captions[1] for item in probe.items] == ["A", "a"] and probe.items[1].groups == ("lower/negate/4",)
    assert probe.defects["negate: some negative begins with another case than the caption"] == 1


def test_a_negation_that_differs_in_case_alone_is_no_question_in_lower_case(tmp_path):
    """Nobody can answer it there: it would count as wrong for every model."""
    rows = [crepe_row("['Cup on desk.', 'B', 'C', 'D', 'E']"), crepe_row("['A', 'B', 'C', 'D', 'E']")]
    write_csv(tmp_path / "prod_vg_hard_negs_negate_complexity_4.csv", rows)
    probe = read_productivity(tmp_path)
    assert [item.id for item in probe.items] == ["negate/4/0", "negate/4/1", "negate/4/1/lower"]
    assert probe.defects["negate: in lower case a negative is the caption itself, excluded there"] == 1


def test_crepe_systematicity(tmp_path):
    row = crepe_row("") | {
        f"valid_hard_negs_{k}": v for k, v in (("atom", "['x']"), ("comp", "[]"), ("combined", "['x']"))
    }
    write_csv(tmp_path / "syst_vg_hard_negs_unseen_compounds_in_cc12m.csv", [row])
    probe = read_systematicity(tmp_path)
    assert counts(probe) == {"cc12m/atom/unseen": 1, "cc12m/combined/unseen": 1}
    assert probe.defects["cc12m/comp/unseen: no negatives, excluded"] == 1


def test_aro_attribution_leaves_rare_pairs_out_of_the_mean(tmp_path):
    def entry(pair):
        return {"image_path": "1.jpg", "true_caption": "t", "false_caption": "f", "bbox_x": 0, "bbox_y": 0,
                "bbox_w": 5, "bbox_h": 4, "attributes": pair}  # fmt: skip

    entries = [entry(["red", "old"])] * 25 + [entry(["wet", "old"])] * 24
    (tmp_path / "visual_genome_attribution.json").write_text(json.dumps(entries))
    macro, kept, micro = read_attribution(tmp_path).rows
    assert macro.groups == kept.groups == ("red_old",) and micro.groups == ("red_old", "wet_old")


def svo_row(sentence, pos, neg, slot, **more):
    return {"sentence": sentence, "pos_triplet": "girl,sit,grass", "neg_triplet": "['boy,sit,grass','a,b,c']",
            "pos_url": f"http://x/{pos}", "neg_url": f"http://x/{neg}", "pos_image_id": pos, "neg_image_id": neg,
            **{f"{s}_neg": s == slot for s in ("subj", "verb", "obj")}} | more  # fmt: skip


def test_svo_keeps_rows_with_one_change_and_each_case_once(tmp_path):
    write_csv(tmp_path / "svo_probes.csv", [
        svo_row("A girl  sits.", 1, 2, "subj"), svo_row("a girl sits.", 1, 3, "subj"),
        svo_row("a girl sits.", 1, 2, "verb"), svo_row("a girl sits.", 1, 2, "none"),
        svo_row("woman, music, notes", 4, 5, "obj", pos_triplet="[]"),
    ])  # fmt: skip
    pairwise, decisions = read_svo(tmp_path)
    assert counts(pairwise) == {"subject": 2, "verb": 1, "object": 1}
    assert counts(decisions) == {"subject positive": 2, "subject negative": 2, "verb positive": 1, "verb negative": 1,
                                 "object positive": 1, "object negative": 1,
                                 "all positive": 3, "all negative": 4}  # fmt: skip
    assert pairwise.defects["rows with other than one slot changed, excluded"] == 1
    assert pairwise.defects["pos_triplet is empty"] == 1 and pairwise.defects["neg_triplet is a list"] == 5
    assert pairwise.defects['no sentence but a list of words, such as "woman, music, notes"'] == 1
    assert addresses(tmp_path / "svo_probes.csv")["3"] == "http://x/3"
    assert triplets("girl,sit,grass") == triplets("['girl,sit,grass']") == [["girl", "sit", "grass"]]


def test_svo_counts_a_sentence_once_for_each_way_it_is_written(tmp_path):
    """The official script drops duplicates of the sentence as it stands: three sentences, two right, 66.67."""
    rows = [("A girl sits.", 1, 2), ("a girl sits.", 1, 2), ("A dog runs.", 3, 4), ("A dog runs.", 3, 4)]
    write_csv(tmp_path / "svo_probes.csv", [svo_row(*row, "verb") for row in rows])
    _, decisions = read_svo(tmp_path)
    verdicts = [
        verdict_on("match", [[1.0 if ("girl" in item.captions[0]) == item.gold else -1.0]], item.gold)
        for item in decisions.items
    ]
    groups, images = ([getattr(item, name) for item in decisions.items] for name in ("groups", "images"))
    row = next(row for row in decisions.rows if row.label == "verb")
    found = table_row(row, verdicts, groups, images, interval=False)
    assert found["n"] == 6 and found["score"] == pytest.approx(200 / 3, abs=1e-4)
    assert len({item.fold for item in decisions.items}) == 2  # spellings of one sentence stay in one fold


def test_vlchecklist_defects_and_cleaned_view(tmp_path):
    folder = tmp_path / "Object" / "Size" / "vg_size"
    folder.mkdir(parents=True)
    pairs = [("train has wheels", " sack"), ("same", "same"), ("a", "b"), ("a", "b"), ("c", "d")]
    (folder / "vg_obj_small.json").write_text(
        json.dumps([["VG_100K/1.jpg", {"POS": [p, "other"], "NEG": [n]}] for p, n in pairs])
    )
    itc, _, cleaned = read_vlchecklist(tmp_path)
    subset = "Object/Size/small/vg/vg_obj_small"
    wrong = {"identical POS and NEG": 1, "repeated": 1, "negative without subject and predicate": 1}
    assert {k: v for k, v in itc.defects.items() if v} == {f"{subset}: {k}": v for k, v in wrong.items()}
    assert len(itc.items) == 5 and [item.captions for item in cleaned.items] == [("a", "b"), ("c", "d")]


def test_vlchecklist_takes_a_text_in_the_place_of_a_list(tmp_path):
    entries = [["1.jpg", {"POS": "small cup", "NEG": ["large cup", "x"]}], ["1.jpg", {"POS": ["a"], "NEG": "b\u2028c"}]]
    (tmp_path / "Attribute/vg").mkdir(parents=True)
    (tmp_path / "Attribute/vg/size.json").write_text(json.dumps(entries))
    assert [item.captions for item in read_vlchecklist(tmp_path)[0].items] == [
        ("small cup", "large cup"),
        ("a", "b\u2028c"),
    ]


def test_tables_of_probes_are_split_where_a_csv_file_ends_its_lines(tmp_path):
    texts = ["two\nlines", "U+2028 \u2028 and \x85 \v", 'a "quote"', "plain"]
    rows = [crepe_row("['x']", caption=text) for text in texts]
    write_csv(tmp_path / "prod_vg_hard_negs_swap_complexity_4.csv", rows)
    assert [item.captions[0] for item in read_productivity(tmp_path).items] == texts


def test_vlchecklist_means_over_files_then_sources_then_cells(tmp_path):
    for name in ("Attribute/vg/color", "Attribute/vaw/color", "Attribute/vg/size"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps([["1.jpg", {"POS": ["a"], "NEG": ["b"]}]]))
    (tmp_path / "t.yaml").write_text(
        "T:\n  ANNO_PATH: Attribute/vg/color.json\n  IMG_ROOT: data/vg\n  TYPE: TUPLE_JSON\n"
    )
    assert len(read_vlchecklist(tmp_path)[0].items) == 1  # where tests are configured, they alone
    (tmp_path / "t.yaml").unlink()
    row = next(row for row in read_vlchecklist(tmp_path)[0].rows if row.label == "Attribute (2 of 5 cells)")
    assert dict(zip(row.groups, row.weights)) == {
        "Attribute/color/vg/color": 0.25, "Attribute/color/vaw/color": 0.25, "Attribute/size/vg/size": 0.5}  # fmt: skip


def test_nlvr_statements(tmp_path):
    rows = [{"uid": "a", "img0": "1", "img1": "2", "sent": "s", "label": 1}, {"uid": "b", "img0": "1", "sent": "s"}]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    probe = read_nlvr(tmp_path)
    assert [len(item.images) for item in probe.items] == [2] and probe.defects["dev: no label, excluded"] == 1
    assert probe.facts == {"dev majority": 100}


def test_scene_negatives_are_false_of_what_the_text_describes(tmp_path):
    lines = [
        "a large red solid ring top left, a small blue dotted cross bottom, on a gray background",
        "a large red solid ring left of a small blue dotted cross, a small pink solid square top, on a gray background",
        "a small black striped square middle, on a beige background",
    ]
    rows = [f"{i}.jpg\t{line}\t\t" for i, line in enumerate(lines)]
    (tmp_path / "test.tsv").write_text("\n".join(["filepath\ttitle\tattribute_swap\trelation_swap", *rows]) + "\n")
    probe = read_scenes(tmp_path)
    by_id = {item.id: item.captions for item in probe.items}
    assert by_id["swap_obj/0"][1] == (
        "a small blue dotted cross top left, a large red solid ring bottom, on a gray background"
    )
    assert by_id["replace_rel/1"][1] == lines[1].replace("left of", "right of")
    assert "swap_obj/1" not in by_id and "swap_obj/2" not in by_id and "replace_rel/0" not in by_id
    for name, (title, false) in by_id.items():
        if name.startswith("replace_att"):
            before, after = ([look for look, *_ in things_of(text)] for text in (title, false))
            changed = [(a, b) for a, b in zip(before, after) if a != b]
            assert len(changed) == 1 and changed[0][1] not in before
            assert sum(changed[0][0][k] != changed[0][1][k] for k in changed[0][0]) == 1
    assert by_id["count/2"][0] == "there is one square" and by_id["add_att/2"][0] == "there is a square"
    assert len(things_of(by_id["add_obj/0"][1])) == 3 and set(counts(probe)) <= set(SUBSETS)


# ---- foreign input


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "['a', 1]", "['a' for a in 'b']", "'a'", "[", "[['a']]", "[" * 5000, "['a'",
     "{'a': 'b'}", "['\0']", "['" + "x" * 200_000 + "']", "[f'{1}']"],
)  # fmt: skip
def test_only_literal_lists_of_strings_are_read(text):
    with pytest.raises(DataError, match=r"f\.csv:3: .* is no literal list of strings"):
        literal_strings(text, "f.csv:3")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "", "a\nb", "http://x/y.jpg"])
def test_no_picture_outside_its_folder_is_found(tmp_path, name):
    probe = Probe("p", "captions", "wrong", [Item("0", ("g",), (Crop(name),), ("a", "b"))], [])
    with pytest.raises(DataError, match=r"^p: "):
        find_images(probe, tmp_path)


@pytest.mark.parametrize(
    "read, name, content, sentence",
    [
        (
            read_sugarcrepe,
            "swap_obj.json",
            '{"0": {"filename": "a.jpg", "caption": "b"}}',
            "negative_caption is missing",
        ),
        (
            read_sugarcrepe,
            "swap_obj.json",
            '{"x": {"filename": "a", "caption": "b", "negative_caption": "c"}}',
            "entry 'x'",
        ),
        (read_sugarcrepe, "swap_obj.json", "[]", "should hold an object"),
        (
            read_attribution,
            "visual_genome_attribution.json",
            '[{"image_path": 1}]',
            "entry 0: not of the expected form",
        ),
        (read_productivity, "prod_vg_hard_negs_swap_complexity_4.csv", "image_id,caption\n", ":1: no column hard_negs"),
        (read_productivity, "prod_vg_hard_negs_swop_complexity_4.csv", "a\n", "is not named as CREPE's files"),
        (read_nlvr, "dev.json", '[{"img0": "a", "sent": "b", "label": 2}]', "neither 0 nor 1"),
        (read_vlchecklist, "color.json", "[]", "is not laid out as VL-CheckList"),
        (read_vlchecklist, "t.yaml", "ANNO_PATH: ../x.json", "is no file below"),
        (read_vlchecklist, "t.yaml", "!!python/object/apply:os.system ['true']", "no YAML"),
        (read_svo, "svo_probes.csv", "sentence\n", ":1: no column neg_image_id"),
        (read_winoground, "examples.jsonl", '{"id": 1}\n', "image_0 is missing"),
        (
            read_sugarcrepe,
            "swap_obj.json",
            '{"0": {"filename": "a.jpg", "caption": "b \\ud83c", "negative_caption": "c"}}',
            "entry '0': .*half of a surrogate pair",
        ),
        (
            read_attribution,
            "visual_genome_attribution.json",
            '[{"image_path": "a.jpg", "bbox_x": 0, "bbox_y": 0, "bbox_w": 9, "bbox_h": 9, "true_caption": "a",'
            ' "false_caption": "b", "attributes": "ab"}]',
            "attributes 'ab' is no list of two",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path, read, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=sentence):
        read(tmp_path)


def test_a_folder_without_annotations_is_named(tmp_path):
    for read in (read_sugarcrepe, read_productivity, read_relation, read_nlvr, read_winoground, read_svo, read_scenes):
        with pytest.raises(UserError):
            read(tmp_path)


def test_a_replaced_attribute_is_of_nothing_in_the_picture(tmp_path):
    """Both sizes of this triangle are there, so another attribute has to be the one that changes."""
    title = "a large blue solid triangle above a small blue solid triangle, on a beige background"
    header = "filepath\ttitle\tattribute_swap\trelation_swap"
    (tmp_path / "test.tsv").write_text("\n".join([header, *[f"{i}.jpg\t{title}\t\t" for i in range(40)]]) + "\n")
    replaced = [item.captions[1] for item in read_scenes(tmp_path).items if item.id.startswith("replace_att")]
    assert len(replaced) == 40
    for text in replaced:
        there = [noun for noun in ("large blue solid triangle", "small blue solid triangle") if noun in text]
        assert len(there) == 1 and len(text.split()) == len(title.split())
