"""The pairs that probes compare, scored one by one by a fused encoder, by all processes, in parts that are kept."""

import itertools

import numpy as np
import torch

from clip_vl.datasets.loader import evaluation_loader
from clip_vl.datasets.lxmert.canvas_pairs import by_image, score_texts
from clip_vl.datasets.lxmert.wordpiece import pad_tokens
from clip_vl.datasets.probes.images import CanvasOf, distinct_by_tokens
from clip_vl.encoding.encode import shares
from clip_vl.engine import dist
from clip_vl.engine.optim import autocast


def score_pairs_of(plan, scorer, tokenizer, flags, run, device, args):
    """({(crop, text): score}, status of crops (N,)) of a `Plan` on rank 0, else None.

    A crop is seen once, and scored with each text of other tokens once, so that ties are ties. The scores of a crop
    depend on the crop and --batch_size alone: not on how many processes there are, nor on where a run was interrupted.
    scorer: as in `score_texts`;  flags: those it was trained with;  run: an `EvaluationRun`
    """
    encode = lambda texts: tokenizer.encode(texts, flags.max_length)  # noqa: E731
    kept, numbers = distinct_by_tokens(plan.texts, lambda texts: pad_tokens(encode(texts)))
    texts, pairs = encode([plan.texts[place] for place in kept]), plan.pairs()
    wanted = np.stack([pairs[:, 0], np.array(numbers)[pairs[:, 1]]], axis=1)
    wanted, number_of_pair = np.unique(wanted, axis=0, return_inverse=True)  # sorted by crop
    texts_of_crop = {crop: [texts[t] for t in wanted[mine, 1]] for crop, mine in by_image(wanted[:, 0])}
    pictures = CanvasOf(plan.crops, flags.image_size_min, flags.image_size_max)
    size, count = args.save_every, len(plan.crops)

    def compute(part):
        crops = np.arange(part * size, min((part + 1) * size, count))
        return _scores_of(crops, pictures, texts_of_crop, scorer, device, args)

    parts = run.in_parts("scores", -(-count // size), compute)
    if not parts:
        return None
    scores, status = (np.concatenate([part[name] for part in parts]) for name in ("scores", "status"))
    return dict(zip(map(tuple, pairs.tolist()), scores[number_of_pair.ravel()].tolist())), status


@torch.no_grad()
def _scores_of(crops, pictures, texts_of_crop, scorer, device, args):
    """{scores of these crops with their texts, crop after crop; status of the crops}; each by one process."""
    found, problems, mine = [], [], shares(crops, 1, dist.rank(), dist.world_size())
    for (crop,), batch in zip(mine, evaluation_loader(pictures, mine, device, args)):
        texts = texts_of_crop[crop]
        scores = np.zeros(len(texts), np.float32)
        if batch["picture"]:
            with autocast(device, args):
                scores = score_texts(scorer, batch["picture"], texts, args.batch_size, device)
        found.append((int(crop), scores, batch["status"]))
        problems += batch["problems"]
    say_problems(problems)
    found = sorted(itertools.chain(*dist.gather(found)), key=lambda entry: entry[0])
    scores = np.concatenate([scores for _, scores, _ in found])
    return {"scores": scores, "status": np.array([status for *_, status in found], np.uint8)}


def say_problems(problems):
    """Name the pictures that this process and the others could not read."""
    for problem in itertools.chain(*dist.gather(problems)):
        dist.print0(f"warning: {problem}; its items count as missing their picture")
