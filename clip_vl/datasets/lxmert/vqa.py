"""VQA samples: a question with the soft scores of its answers."""

from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.images.collections import COCO_VG
from clip_vl.datasets.lxmert.annotations import build_vqa_annotations
from clip_vl.datasets.lxmert.batches import load_images, say_skipped, size_file, split_paths
from clip_vl.datasets.lxmert.entries import read_vqa_entry
from clip_vl.datasets.lxmert.wordpiece import pad_tokens
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError


def load_questions(args, folder, splits, tokenizer, answers, collection=COCO_VG, read_entry=read_vqa_entry):
    """The annotations of comma-separated splits of <data_root>/<folder>, from their cache; see `annotations`.

    Raises UserError where none has an answer, but for --test.
    """
    annotations = dist.first_rank_builds(
        lambda: build_vqa_annotations(
            split_paths(args, folder, splits),
            tokenizer=tokenizer,
            answers=answers,
            image_sizes=size_file(args, collection),
            cache_root=Path(args.data_root) / "cache",
            max_length=args.max_length,
            skip_bad=args.skip_bad,
            collection=collection,
            read_entry=read_entry,
        )
    )
    if not args.test and not annotations.answer_totals(len(answers)).any():
        raise UserError(
            f"no entry of {folder}/{splits} has a known answer: train and validate on splits with labels; --test takes "
            "those without"
        )
    return say_skipped(annotations)


class VQADataset:
    """`dataset[(epoch, rows)]` is a batch with answer_scores float32 (B, A), all zero for an unlabelled question.

    With `with_images=False` there are no images in it: the question-only baseline.
    """

    def __init__(self, annotations, image_source, args, *, num_answers, with_images=True):
        self.annotations, self.image_source, self.args = annotations, image_source, args
        self.num_answers, self.with_images = num_answers, with_images

    def __getitem__(self, key):
        _, rows = key
        batch = pad_tokens([self.annotations.tokens(int(row)) for row in rows])
        if self.with_images:
            batch |= load_images(self.image_source, self.annotations, rows, self.args)
        else:
            batch["usable"] = torch.ones(len(rows), dtype=torch.bool)
        scores = torch.zeros(len(rows), self.num_answers)
        for place, row in enumerate(rows):
            ids, values = self.annotations.answers(int(row))
            scores[place, torch.from_numpy(np.asarray(ids, dtype=np.int64))] = torch.from_numpy(np.array(values))
        return batch | {"answer_scores": scores, "rows": torch.from_numpy(np.asarray(rows))}

    def read_image(self, row):
        """The bytes of its image file."""
        return self.image_source.read(self.annotations.image_id(row))
