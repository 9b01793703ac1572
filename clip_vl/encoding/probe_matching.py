"""A fused encoder that scores the images and captions of probes pair by pair, in parts that are kept."""

import itertools

import numpy as np
import torch

from clip_vl.datasets.loader import evaluation_loader
from clip_vl.datasets.lxmert.canvas_pairs import by_image, on_canvas, score_texts
from clip_vl.datasets.probes.images import distinct_by_tokens, read_crop
from clip_vl.encoding.encode import shares
from clip_vl.encoding.probe_features import digest_of_json, say_problems
from clip_vl.engine import dist


class MatchingScorer:
    """Log-odds of the matching head of a fused encoder, in float32: above 0 a match is more likely than not.

    matcher:  a `Matcher`;  weights: digest of its scorer;  settings: all else that scores depend on
    """

    threshold, scored_by = 0.0, "matching head of the fused encoder"

    def __init__(self, matcher, weights, settings, encoder, save_every=64):
        self.matcher, self.weights, self.settings = matcher, weights, settings
        self.encoder, self.save_every = encoder, save_every

    def inputs(self):
        """The same digests as of a dual encoder."""
        digests = {"weights": self.weights, "tokenizer": self.matcher.tokenizer.digest}
        return digests | {"preprocessing": digest_of_json(self.settings)}

    def scores(self, plan, in_parts):
        """As of `DualScorer`.

        A crop is seen once, and scored once with each text of other tokens, so that ties are ties. The scores of a crop
        depend on the crop and the batch size alone: not on the number of processes, nor on where a run was interrupted.
        """
        kept, numbers = distinct_by_tokens(plan.texts, self.matcher.pad)
        texts, pairs = self.matcher.tokenize([plan.texts[index] for index in kept]), plan.pairs()
        wanted = np.stack([pairs[:, 0], np.array(numbers)[pairs[:, 1]]], axis=1)
        wanted, number_of_pair = np.unique(wanted, axis=0, return_inverse=True)  # sorted by crop
        texts_of_crop = {crop: [texts[t] for t in wanted[mine, 1]] for crop, mine in by_image(wanted[:, 0])}
        canvases = CanvasOf(plan.crops, *self.matcher.sides)
        size, count = self.save_every, len(plan.crops)

        def compute(part):
            crops = np.arange(part * size, min((part + 1) * size, count))
            return score_crops(crops, canvases, texts_of_crop, self.matcher.scorer, self.encoder)

        parts = in_parts("scores", -(-count // size), compute)
        if not parts:
            return None
        scores, status = (np.concatenate([part[name] for part in parts]) for name in ("scores", "status"))
        return dict(zip(map(tuple, pairs.tolist()), scores[number_of_pair.ravel()].tolist())), status


class CanvasOf:
    """`crops[(_, [number])]`: canvas, (images uint8 (1, 3, H, W), image_boxes (1, 4)) or None for a damaged image;
    status and problems of `read_crop`.

    shorter, longer: sides of the canvas at most
    """

    def __init__(self, crops, shorter, longer):
        self.crops, self.sides = crops, (shorter, longer)

    def __getitem__(self, key):
        image, status, problems = read_crop(self.crops[int(key[1][0])])
        canvas = None if image is None else on_canvas(image, *self.sides)
        return {"canvas": canvas, "status": status, "problems": problems}


@torch.no_grad()
def score_crops(crops, canvases, texts_of_crop, scorer, encoder):
    """{scores of these crops with their texts, crop after crop; status of the crops}; each crop by one process.

    canvases: a `CanvasOf`;  texts_of_crop: {crop: lists of ids}
    """
    found, problems, mine = [], [], shares(crops, 1, dist.rank(), dist.world_size())
    for (crop,), batch in zip(mine, evaluation_loader(canvases, mine, encoder.device, encoder)):
        texts = texts_of_crop[crop]
        scores = np.zeros(len(texts), np.float32)
        if batch["canvas"]:
            with encoder.autocast():
                scores = score_texts(scorer, batch["canvas"], texts, encoder.batch_size, encoder.device)
        found.append((int(crop), scores, batch["status"]))
        problems += batch["problems"]
    say_problems(problems)
    found = sorted(itertools.chain(*dist.gather(found)), key=lambda entry: entry[0])
    scores = np.concatenate([scores for _, scores, _ in found])
    return {"scores": scores, "status": np.array([status for *_, status in found], np.uint8)}
