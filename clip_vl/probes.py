"""Compositional probes: does a model tell a caption from one of nearly the same words? One table at the end.

    python -m clip_vl.probes --probes sugarcrepe winoground --load snap/align/NAME/epoch_32.pt --output snap/probes/NAME
    python -m clip_vl.probes --probes scenes --fused snap/pretrain/NAME/Epoch09 --output ...   by the matching head
    python -m clip_vl.probes --probes sugarcrepe --blind --output snap/probes/blind          what the texts give away
    python -m clip_vl.probes --probes svo --fetch_images --output ...                        download its pictures first
    bash scripts/probes.bash 0,1 NAME 0 2 --probes scenes --load ...                         two GPUs

Probes: winoground, crepe_productivity, crepe_systematicity, sugarcrepe, vg_relation and vg_attribution (ARO),
coco_order, flickr30k_order, svo, vlchecklist, nlvr, and of the built-in scenes scenes and scene_twins. Annotations are
looked for below --datasets_dir, where `PLACES` of datasets/probe_sets.py says. Each distinct part of a picture and each
caption is encoded once; the fused encoder sees each part of a picture once and scores every pair that is compared. A
row of the table says n, how many items lack their picture, how many have a tie with the true side, the score under the
official rule for ties and under the rule that a tie is wrong, what chance gives, what the captions alone give away
(`blind`: the shorter one, or with --blind_captions the likelier one), and a 95 % interval from resampling pictures.
"""

from dataclasses import dataclass

from clip_vl.flags.dual import ImageTowerFlags, EvaluationFlags, SharedTowerFlags, TextTowerFlags
from clip_vl.flags.parser import flag, parse


@dataclass
class ProbesFlags(EvaluationFlags, SharedTowerFlags, TextTowerFlags, ImageTowerFlags):
    """Probes"""

    probes: list[str] = flag([], "Which probes, by name.")
    annotations: str | None = flag(None, "Folder or file of the annotations, or folder of folders named by probes.")
    images_dir: str | None = flag(None, "Folder of the pictures [the probe's own in --datasets_dir].")
    fused: str | None = flag(None, "Stem of a checkpoint of `pretrain` or `finetune_retrieval`, which judges.")
    bert: str | None = flag(None, "Folder of the fused encoder's text model [the one it was trained with].")
    blind: bool = flag(False, "Judge the texts alone, in the place of a model, by words that are likely to follow "
                       "each other in --blind_captions, or without that by being shorter.")  # fmt: skip
    blind_captions: str | None = flag(
        None, "Text file with a caption a line, for a trigram model that scores the texts alone."
    )
    first_cases: int = flag(2000, "VL-CheckList: cases of each file, from its beginning as published; 0 takes all.")
    order_seeds: int = flag(5, "COCO-Order, Flickr30k-Order: shufflings of each kind.")
    tagger: str = flag("auto", "Tagger of the shufflings: spacy, bundled, or auto for spaCy where it is installed.")
    fetch_images: bool = flag(False, "Download the pictures of svo that are not there; failures are listed.")
    save_every: int = flag(64, "Batches (with --fused: pictures) between two saves of what is computed.")
    gallery: int = flag(24, "Pictures in the report: the most confident mistakes of each probe in turn.")
    saliency: int = flag(8, "Of these, the first n with pictures of where the scores of the true and of the preferred "
                         "caption come from; 0 for none. --blind has none.")  # fmt: skip


FLAGS = parse(ProbesFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.images.crops import eval_crop
from clip_vl.datasets.loader import evaluation_loader, to_device
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer, pad_tokens
from clip_vl.datasets.probes.images import (
    CLAMPED,
    DAMAGED,
    CanvasOf,
    CropsOf,
    TextList,
    distinct_by_tokens,
    part_of_picture,
)
from clip_vl.datasets.probes.plan import Plan
from clip_vl.datasets.probes.sets import open_probes
from clip_vl.encoding.encode import TextsOf, shares
from clip_vl.encoding.gather import collect
from clip_vl.encoding.probe_matching import say_problems, score_pairs_of
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.engine.optim import autocast
from clip_vl.evaluation.blind import BlindScorer
from clip_vl.evaluation.probe_ranks import print_ranks, rank_facts
from clip_vl.evaluation.probe_table import flat, judge_probe, print_table, sample_rows, table_of
from clip_vl.flags.dual import recalled
from clip_vl.models.dual.build import frozen_digest, open_dual_encoder
from clip_vl.models.fused.build import bert_folder
from clip_vl.models.fused.scorer import open_fused_scorer, settings_of
from clip_vl.models.saliency.saliency import dual_saliency, fused_saliency
from clip_vl.reports.probes import card, mistakes, pairs_to_look_at
from clip_vl.reports.published_probes import references
from clip_vl.reports.saliency import add_saliency, drawn

# ---- scorers: what gives a picture and a caption a number


class DualScorer:
    """Cosine similarity of a dual encoder's features, in float32."""

    threshold = None  # cosines have no natural one: it is calibrated
    judge = "cosine of the dual encoder"

    def __init__(self, args, device):
        self.args, self.device = args, device
        self.model = open_dual_encoder(args.towers(), device)
        self.view = eval_crop(self.model.image_tower, args.image_crop)

    def inputs(self):
        """Digests of the weights, of the tokenizer by what it makes of a sentence, and of how pictures are cropped."""
        said = {n: t.tolist() for n, t in dict(self.model.tokenizer(["A cat's 2 hats, e.g. É!", "dog"])).items()}
        shown = [type(self.view).__name__, vars(self.view), self.model.mean.tolist(), self.model.std.tolist()]
        return {"weights": frozen_digest(self.model), "tokenizer": _digest(said), "preprocessing": _digest(shown)}

    def scores(self, run, plan):
        """({(crop, text): score}, status of crops (N,)) on rank 0, else None."""
        kept, numbers = distinct_by_tokens(plan.texts, self.model.tokenizer)
        texts = TextsOf(TextList([plan.texts[place] for place in kept]), self.model.tokenizer)
        texts = self._features(run, "captions", texts, len(kept), lambda b: self.model.encode_text(b["tokens"]))
        crops = CropsOf(plan.crops, self.view)
        images = self._features(run, "pictures", crops, len(plan.crops), lambda b: self.model.encode_image(b["images"]))
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

    @torch.no_grad()
    def _features(self, run, name, dataset, count, encode):
        """{features (N, D), status (N,)} of a dataset's things, kept in parts of --save_every batches."""
        size = self.args.batch_size * self.args.save_every

        def compute(part):
            numbers = np.arange(part * size, min((part + 1) * size, count))
            mine = shares(numbers, self.args.batch_size, dist.rank(), dist.world_size())
            notes, problems = [], []

            def noted():
                for places, batch in zip(mine, evaluation_loader(dataset, mine, self.device, self.args)):
                    notes.append((places, batch.get("status", torch.zeros(len(places))).cpu().numpy()))
                    problems.extend(batch.get("problems", []))
                    yield places, batch

            features = collect(encode, noted(), autocast(self.device, self.args)).numpy()
            say_problems(problems)
            notes = [note for of_rank in dist.gather(notes) for note in of_rank]
            order = np.argsort(np.concatenate([places for places, _ in notes]), kind="stable")
            status = np.concatenate([s for _, s in notes])[order].astype(np.uint8)
            return {"features": features, "status": status}

        parts = run.in_parts(name, -(-count // size), compute)
        return {key: np.concatenate([part[key] for part in parts]) for key in ("features", "status")} if parts else None

    def look(self, crop, text):
        """Where the score of a crop and a text comes from, as `drawn` gives it; a scorer without `look` has no such."""
        image = self.view(part_of_picture(*crop))
        return drawn(image, dual_saliency(self.model, image[None].to(self.device), text))


class MatchingScorer:
    """Log-odds of the matching head of a fused encoder, in float32: above 0 it finds a match more likely than none."""

    threshold, judge = 0.0, "matching head of the fused encoder"

    def __init__(self, args, device):
        self.args, self.device = args, device
        self.model, self.flags = open_fused_scorer(args.fused, device, args.bert)
        self.tokenizer = load_tokenizer(bert_folder(self.flags))

    def inputs(self):
        """The same digests as of a dual encoder."""
        digests = {"weights": frozen_digest(self.model), "tokenizer": self.tokenizer.digest}
        return digests | {"preprocessing": _digest(settings_of(self.flags))}

    def scores(self, run, plan):
        """As of `DualScorer`."""
        return score_pairs_of(plan, self.model, self.tokenizer, self.flags, run, self.device, self.args)

    def look(self, crop, text):
        """As of `DualScorer`, of the log-odds."""
        images, boxes = CanvasOf([crop], self.flags.image_size_min, self.flags.image_size_max)[0, [0]]["picture"]
        tokens = to_device(pad_tokens(self.tokenizer.encode([text], self.flags.max_length)), self.device)
        heat = fused_saliency(self.model, images.to(self.device), boxes.to(self.device), tokens)
        return drawn(images[0], heat, boxes[0])


def open_scorer(args, blind, device):
    """What judges: a fused encoder, the captions alone, or a dual encoder. Raises UserError where two are named."""
    named = [name for name in ("fused", "load", "blind") if getattr(args, name)]
    if len(named) > 1:
        raise UserError(f"--{named[0]} and --{named[1]} both name what judges: leave out one of them")
    if args.bert and not args.fused:
        raise UserError(f"--bert {args.bert} is the text model of a fused encoder: pass --fused as well")
    if args.fused:
        return MatchingScorer(args, device)
    return blind if args.blind else DualScorer(args, device)


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


# ---- results


def gallery_of(judged_probes, plan, scorer, args):
    """The cards: of each probe in turn its most confident mistake that is left; the first with saliency."""
    count, look = args.gallery, getattr(scorer, "look", None)
    lists = [[(probe, judged[i]) for i in mistakes([v for *_, v in judged])[:count]] for probe, judged in judged_probes]
    chosen = [entry for entries in itertools.zip_longest(*lists) for entry in entries if entry][:count]
    cards, wanted = [], []
    for probe, (item, crops, block, verdict) in chosen:
        crop = plan.crops[crops[0]]
        cards.append(card(probe.name, item, block, verdict, None if args.blind else part_of_picture(*crop)))
        if look and len(wanted) < args.saliency:
            pairs = [(name, plan.crops[c], text) for name, c, text in pairs_to_look_at(item, crops, block)]
            wanted.append((cards[-1], pairs))
    return {"cards": cards} | ({"note": add_saliency(wanted, look)} if wanted else {})


def main(args):
    device = dist.setup()
    if args.save_every < 1 or args.batch_size < 1:
        raise UserError("--save_every and --batch_size must be at least 1")
    if args.saliency < 0:
        raise UserError(f"--saliency {args.saliency} is a number of pictures: 0 or more")
    args = recalled(args)
    probes = open_probes(args)
    blind = BlindScorer(args.blind_captions)
    scorer = open_scorer(args, blind, device)
    plan = Plan(probes, sees=not args.blind)
    run = EvaluationRun(args, "probes", device)
    inputs = blind.inputs() | scorer.inputs()
    if run.begin(inputs | {"data": plan.digest.hexdigest()}):
        dist.print0(f"{run.folder} holds this evaluation, finished; --overwrite does it again")
        return
    found = scorer.scores(run, plan)
    rows, result, gallery = results(args, plan, *found, scorer, inputs, blind) if found else (None, None, None)
    run.finish(rows, result, gallery)


def results(args, plan, score_of, status, scorer, inputs, blind):
    """(rows of samples.jsonl, result, gallery), and the table printed."""
    blind_scores = None if args.blind else blind.scores(None, plan)[0]
    published = references(Path(args.annotations or args.datasets_dir, "." if args.annotations else "probes"))
    rows, table, defects, judged_probes = [], [], {}, []
    for part in plan.parts:
        probe = part[0]
        judged, missing = judge_probe(part, score_of, status == DAMAGED, scorer.threshold)
        if not judged:
            raise DataError(f"{probe.name}: all of its pictures are damaged")
        rows += sample_rows(probe, judged, missing)
        beside = () if args.blind else judge_probe(part, blind_scores, status == DAMAGED, None)[0]
        table += table_of(probe, judged, missing, args.seed, published, beside)
        clamped = sum(any(status[c] == CLAMPED for c in crops) for _, crops, *_ in judged)
        found = {name: int(count) for name, count in probe.defects.items() if count}
        defects[probe.name] = found | ({"boxes that reach out of their picture, clamped": clamped} if clamped else {})
        judged_probes.append((probe, judged))
    print_table(table, defects)
    facts = {probe.name: probe.facts | rank_facts(probe, judged) for probe, judged in judged_probes}
    print_ranks(facts)
    result = {
        "task": "probes", "split": ", ".join(probe.name for probe, *_ in plan.parts),
        "checkpoint": "texts alone" if args.blind else args.fused or args.load, "scored_by": scorer.judge,
        **flat(table), "table": table, "defects": defects,
        "facts": {name: found for name, found in facts.items() if found},
        "digests": inputs | {"annotations": {probe.name: probe.files for probe, *_ in plan.parts}},
        "encoded": {"pictures": len(plan.crops), "captions": len(plan.texts)},
    }  # fmt: skip
    return rows, result, gallery_of(judged_probes, plan, scorer, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
