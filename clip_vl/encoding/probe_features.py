"""A dual encoder that scores the images and captions of probes, by all processes, in parts that are kept."""

import hashlib
import itertools
import json

import numpy as np
import torch

from clip_vl.datasets.probes.images import CropsOf, TextList, distinct_by_tokens
from clip_vl.encoding.encode import TextsOf
from clip_vl.engine import dist


class DualScorer:
    """Cosine similarity of a dual encoder's features, in float32.

    model:      in evaluation mode;  weights: its digest;  view: `EvalCrop`
    encoder:    an `Encoder`;  save_every: batches of a part
    """

    threshold = None  # cosines have no natural one: it is calibrated
    scored_by = "cosine of the dual encoder"

    def __init__(self, model, weights, view, encoder, save_every=64):
        self.model, self.weights, self.view = model, weights, view
        self.encoder, self.save_every = encoder, save_every

    def inputs(self):
        """Digests of the weights, of the tokenizer by the tokens of two sentences, and of the preprocessing."""
        tokens = {n: t.tolist() for n, t in dict(self.model.tokenizer(["A cat's 2 hats, e.g. É!", "dog"])).items()}
        pixels = [type(self.view).__name__, vars(self.view), self.model.mean.tolist(), self.model.std.tolist()]
        return {"weights": self.weights, "tokenizer": digest_of_json(tokens), "preprocessing": digest_of_json(pixels)}

    def scores(self, plan, in_parts):
        """({(crop, text): score}, status of crops (N,)) of a `Plan` on rank 0, else None.

        in_parts: (name, count, compute) -> parts, as of `EvaluationRun`
        """
        kept, numbers = distinct_by_tokens(plan.texts, self.model.tokenizer)
        texts = TextsOf(TextList([plan.texts[index] for index in kept]), self.model.tokenizer)
        texts = self._features("captions", texts, len(kept), self._encode_texts, in_parts)
        images = self._features("pictures", CropsOf(plan.crops, self.view), len(plan.crops), self._encode_images,
                                in_parts)  # fmt: skip
        if dist.rank():
            return None
        pairs, numbers = plan.pairs(), np.array(numbers)
        values = np.concatenate(
            [
                (images["features"][part[:, 0]] * texts["features"][numbers[part[:, 1]]]).sum(axis=1)
                for part in np.array_split(pairs, len(pairs) // 65536 + 1)
            ]
        )  # a sum per pair and not a matrix product, which may round equal columns differently
        return dict(zip(map(tuple, pairs.tolist()), values.tolist())), images["status"]

    def _encode_texts(self, batch):
        return self.model.encode_text(batch["tokens"])

    def _encode_images(self, batch):
        return self.model.encode_image(batch["images"])

    def _features(self, name, dataset, count, encode, in_parts):
        """{features (N, D), status (N,)} of the items of a dataset, kept in parts of `save_every` batches."""
        size = self.encoder.batch_size * self.save_every

        def compute(part):
            problems = []

            def with_status(batch):  # the status travels as one more number of the feature
                problems.extend(batch.get("problems", []))
                features = encode(batch).float()
                status = batch.get("status", torch.zeros(len(features))).to(features)
                return torch.cat([features, status[:, None]], dim=1)

            numbers = np.arange(part * size, min((part + 1) * size, count))
            found = self.encoder.gathered(dataset, numbers, with_status).numpy()
            say_problems(problems)
            return {"features": np.ascontiguousarray(found[:, :-1]), "status": found[:, -1].astype(np.uint8)}

        parts = in_parts(name, -(-count // size), compute)
        return {key: np.concatenate([part[key] for part in parts]) for key in ("features", "status")} if parts else None


def say_problems(problems):
    """Name the images that this process and the others could not read."""
    for problem in itertools.chain(*dist.gather(problems)):
        dist.print0(f"warning: {problem}; its items count as missing their picture")


def digest_of_json(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
