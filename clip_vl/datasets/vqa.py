"""VQA samples: a question with the soft scores of its answers."""

import numpy as np
import torch

from clip_vl.datasets.batches import load_images
from clip_vl.datasets.text import pad_tokens


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
