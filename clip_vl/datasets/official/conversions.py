"""The conversions of official files into the annotation files of the programs, with their inputs and outputs."""

from collections.abc import Callable
from typing import NamedTuple

from clip_vl.datasets.official.files import TRAINING_FILES
from clip_vl.datasets.official.gqa import convert_gqa, convert_gqa_submit
from clip_vl.datasets.official.lxmert import FILES, build_answer_table, convert_lxmert
from clip_vl.datasets.official.nlvr import convert_nlvr, convert_nlvr2
from clip_vl.datasets.official.parts import OFFICIAL_PARTS
from clip_vl.datasets.official.snli_ve import convert_snli_ve
from clip_vl.datasets.official.vqa import convert_vqa, convert_vqa_test


class Step(NamedTuple):
    """A conversion.

    makes, takes, optional: paths below the root of its outputs, its inputs, and inputs that may be missing
    is_optional: whether the purpose does not need its outputs
    """

    purpose: str
    makes: list
    takes: list
    optional: list
    run: Callable
    is_optional: bool = False


def conversion_steps(root, normalise, soft_scores):
    """All conversions, each after those whose outputs it takes. The functions are those of `convert_vqa`."""

    def official(*names):
        return [part.path for part in OFFICIAL_PARTS if any(name in part.path for name in names)]

    lxmert = [f"lxmert/{name}.json" for name in FILES]
    vqa = [f"vqa/{name}.json" for name in ("train", "nominival", "minival")]
    labels = ["vqa/trainval_label2ans.json", "vqa/trainval_ans2label.json"]
    pair = ["vqa/v2_OpenEnded_mscoco_minival2014_questions.json", "vqa/v2_mscoco_minival2014_annotations.json"]
    captions_and_vg = official("captions_", "image_data", "region_descriptions", "question_answers")
    return (
        Step("vqa", vqa + labels + pair, official("train2014_questions", "val2014_questions", "_annotations"), [],
             lambda: convert_vqa(root, normalise, soft_scores)),
        Step("test", ["vqa/test.json"], official("test2015_questions"), [], lambda: convert_vqa_test(root)),
        Step("pretrain", lxmert, captions_and_vg + vqa, official("train_balanced", "val_balanced"),
             lambda: convert_lxmert(root)),
        Step("pretrain", ["lxmert/all_ans.json"], [f"lxmert/{name}.json" for name in TRAINING_FILES], [],
             lambda: build_answer_table(root)),
        *task_steps(root, official),
    )  # fmt: skip


def task_steps(root, official):
    """The conversions of the sibling tasks; a conversion per split where each split has an official file."""
    gqa = [f"gqa/{name}.json" for name in ("train", "valid", "testdev", "trainval_label2ans", "trainval_ans2label")]
    yield Step("gqa", gqa, official("_balanced_questions"), [], lambda: convert_gqa(root))
    yield Step("gqa", ["gqa/submit.json"], official("submission_all"), [], lambda: convert_gqa_submit(root), True)
    for split in ("train", "dev", "test"):
        archive = f"official/nlvr_{split}.zip"
        yield Step("snli_ve", [f"snli_ve/{split}.json"], official(f"snli_ve_{split}"), [],
                   lambda split=split: convert_snli_ve(root, [split]))  # fmt: skip
        yield Step("nlvr", [f"nlvr/{split}.json"], [archive], [],
                   lambda archive=archive: convert_nlvr(root, [root / archive]))  # fmt: skip
    for split in ("train", "dev", "test1", "test2"):
        yield Step("nlvr2", [f"nlvr2/{split}.json"], official(f"nlvr2_{split}"), [],
                   lambda split=split: convert_nlvr2(root, [split]), split == "test2")  # fmt: skip
