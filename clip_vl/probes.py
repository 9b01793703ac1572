"""Compositional probes: does a model tell a caption from one of nearly the same words? One table at the end.

    python -m clip_vl.probes --probes sugarcrepe winoground --load snap/align/NAME/epoch_32.pt --output snap/probes/NAME
    python -m clip_vl.probes --probes scenes --fused snap/pretrain/NAME/Epoch09 --output ...   by the matching head
    python -m clip_vl.probes --probes sugarcrepe --blind --output snap/probes/blind          by the captions alone
    python -m clip_vl.probes --probes svo --fetch_images --output ...                        download its images first
    bash scripts/probes.bash 0,1 NAME 0 2 --probes scenes --load ...                         two GPUs

Probes: winoground, crepe_productivity, crepe_systematicity, sugarcrepe, vg_relation and vg_attribution (ARO),
coco_order, flickr30k_order, svo, vlchecklist, nlvr, and of the built-in scenes scenes and scene_twins. Annotations are
read from the paths below --datasets_dir that `PATHS` of datasets/probes/sets.py lists. Each distinct part of an image
and each caption is encoded once; the fused encoder encodes each part of an image once and scores every pair that is
compared. A row of the table has n, how many items lack their image, how many have a tie with the true side, the score
under the official rule for ties and under the rule that a tie is wrong, the score of chance, the score of the captions
alone (`blind`: the shorter one, or with --blind_captions the likelier one), and a 95 % interval from resampling images.
"""

from dataclasses import dataclass

from clip_vl.flags.dual import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.evaluation import EvaluationFlags
from clip_vl.flags.parser import flag, parse


@dataclass
class ProbesFlags(EvaluationFlags, SharedTowerFlags, TextTowerFlags, ImageTowerFlags):
    """Probes"""

    probes: list[str] = flag([], "Names of the probes to run.")
    annotations: str | None = flag(None, "Folder or file of the annotations, or folder of folders named by probes.")
    images_dir: str | None = flag(None, "Folder of the images [the probe's own in --datasets_dir].")
    fused: str | None = flag(None, "Stem of a checkpoint of `pretrain` or `finetune_retrieval` that scores the pairs.")
    bert: str | None = flag(None, "Folder of the fused encoder's text model [the one it was trained with].")
    blind: bool = flag(False, "Score the captions alone instead of a model: by a trigram model of --blind_captions, or "
                       "without that by their length, shorter being better.")  # fmt: skip
    blind_captions: str | None = flag(
        None, "Text file with one caption per line, for a trigram model that scores the captions alone."
    )
    first_cases: int = flag(2000, "VL-CheckList: number of cases of each file, from its beginning; 0 takes all.")
    order_seeds: int = flag(5, "COCO-Order, Flickr30k-Order: number of shufflings of each kind.")
    tagger: str = flag("auto", "Tagger of the shufflings: spacy, bundled, or auto for spaCy if installed.")
    fetch_images: bool = flag(False, "Download the images of svo that are missing; failures are listed.")
    save_every: int = flag(64, "Batches (with --fused: images) between two saves of what is computed.")
    gallery: int = flag(24, "Images in the report: the most confident mistakes of each probe in turn.")
    saliency: int = flag(8, "Cards of the report with saliency maps of the true and of the preferred caption; 0 for "
                         "none. --blind has none.")  # fmt: skip


FLAGS = parse(ProbesFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import itertools
from pathlib import Path

from clip_vl.datasets.probes.images import CLAMPED, DAMAGED, part_of_image
from clip_vl.datasets.probes.plan import Plan
from clip_vl.datasets.probes.sets import ProbeOptions, open_probes
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.evaluation.blind import BlindScorer
from clip_vl.evaluation.probe_ranks import rank_facts
from clip_vl.evaluation.probe_table import evaluate_probe, flat, sample_rows, table_of
from clip_vl.reports.probe_table import rank_lines, table_lines
from clip_vl.reports.probes import card, mistakes, pairs_to_compare
from clip_vl.reports.published_probes import references, with_references
from clip_vl.reports.page import write_report


def open_dual_scorer(args, device):
    """(`DualScorer`, (crop, text) -> a saliency map as of `drawn`)."""
    from clip_vl.datasets.images.crops import eval_crop
    from clip_vl.encoding.probe_features import DualScorer
    from clip_vl.models.dual.build import frozen_digest, open_dual_encoder

    args = recalled(args)
    model = open_dual_encoder(args.towers(), device)
    view = eval_crop(model.image_tower, args.image_crop)

    def saliency(crop, text):
        from clip_vl.models.saliency.saliency import dual_saliency
        from clip_vl.reports.saliency import drawn

        image = view(part_of_image(*crop))
        return drawn(image, dual_saliency(model, image[None].to(device), text))

    return DualScorer(model, frozen_digest(model), view, args.encoder(device), args.save_every), saliency


def open_matching_scorer(args, device):
    """(`MatchingScorer`, the same)."""
    from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
    from clip_vl.encoding.matching import Matcher
    from clip_vl.encoding.probe_matching import MatchingScorer
    from clip_vl.models.dual.build import frozen_digest
    from clip_vl.models.fused.build import bert_folder
    from clip_vl.models.fused.scorer import open_fused_scorer, settings_of

    scorer, flags = open_fused_scorer(args.fused, device, args.bert)
    sides = flags.image_size_min, flags.image_size_max
    matcher = Matcher(scorer, load_tokenizer(bert_folder(flags)), flags.max_length, sides)

    def saliency(crop, text):
        from clip_vl.models.saliency.saliency import fused_saliency
        from clip_vl.reports.saliency import drawn

        image, box, tokens = matcher.inputs(part_of_image(*crop), str(crop.name), text, device)
        return drawn(image[0].cpu(), fused_saliency(scorer, image, box, tokens), box[0].cpu())

    weights = frozen_digest(scorer)
    return MatchingScorer(matcher, weights, settings_of(flags), args.encoder(device), args.save_every), saliency


def open_scorer(args, blind, device):
    """(what scores the pairs, saliency or None): a fused encoder, the captions alone, or a dual encoder."""
    if args.fused:
        return open_matching_scorer(args, device)
    return (blind, None) if args.blind else open_dual_scorer(args, device)


def check_flags(args):
    """Refuse what cannot work, in one sentence, before anything is built."""
    if args.save_every < 1 or args.batch_size < 1:
        raise UserError("--save_every and --batch_size must be at least 1")
    if args.saliency < 0:
        raise UserError(f"--saliency {args.saliency} must be at least 0")
    named = [name for name in ("fused", "load", "blind") if getattr(args, name)]
    if len(named) > 1:
        raise UserError(f"--{named[0]} and --{named[1]} both name what is evaluated: leave out one of them")
    if args.bert and not args.fused:
        raise UserError(f"--bert {args.bert} is the text model of a fused encoder: pass --fused as well")


def main(args):
    device = dist.setup()
    check_flags(args)
    options = ProbeOptions(args.datasets_dir, args.annotations, args.images_dir, args.first_cases, args.order_seeds,
                           args.tagger, args.fetch_images)  # fmt: skip
    probes = open_probes(args.probes, options)
    blind = BlindScorer(args.blind_captions)
    scorer, saliency = open_scorer(args, blind, device)
    plan = Plan(probes, sees=not args.blind)
    run = EvaluationRun("probes", args.run(), device, write_report)
    inputs = blind.inputs() | scorer.inputs()
    if run.begin(inputs | {"data": plan.digest.hexdigest()}):
        dist.print0(f"{run.folder} holds this evaluation already; --overwrite repeats it")
        return
    found = scorer.scores(plan, run.in_parts)
    if not found:
        return run.finish(None, None, None)
    evaluated = evaluate(plan, *found, scorer.threshold, args.seed, None if args.blind else blind)
    rows, table, defects, items = evaluated
    table = with_references(table, published_scores(args))
    facts = {probe.name: probe.facts | rank_facts(probe, verdicts) for probe, verdicts in items}
    for line in itertools.chain(table_lines(table, defects), rank_lines(facts)):
        dist.print0(line)
    result = {
        "task": "probes", "split": ", ".join(probe.name for probe, *_ in plan.parts),
        "checkpoint": "texts alone" if args.blind else args.fused or args.load, "scored_by": scorer.scored_by,
        **flat(table), "table": table, "defects": defects,
        "facts": {name: found for name, found in facts.items() if found},
        "digests": inputs | {"annotations": {probe.name: probe.files for probe, *_ in plan.parts}},
        "encoded": {"pictures": len(plan.crops), "captions": len(plan.texts)},
    }  # fmt: skip
    run.finish(rows, result, gallery_of(items, plan, args.gallery, not args.blind, saliency, args.saliency))


def evaluate(plan, score_of, status, threshold, seed, blind):
    """(rows of samples.jsonl, rows of the table, {probe: {defect: count}}, [(probe, evaluated items)]) of a `Plan`.

    score_of: {(crop, text): score};  status: of each crop;  threshold: of a match, None to calibrate one
    blind:    scorer of the captions alone, for a column of the table, or None
    """
    blind_scores = blind and blind.scores(plan)[0]
    rows, table, defects, items = [], [], {}, []
    for part in plan.parts:
        probe = part[0]
        evaluated, missing = evaluate_probe(part, score_of, status == DAMAGED, threshold)
        if not evaluated:
            raise DataError(f"{probe.name}: all of its images are damaged")
        rows += sample_rows(probe, evaluated, missing)
        beside = evaluate_probe(part, blind_scores, status == DAMAGED, None)[0] if blind else ()
        table += table_of(probe, evaluated, missing, seed, beside)
        clamped = sum(any(status[c] == CLAMPED for c in crops) for _, crops, *_ in evaluated)
        found = {name: int(count) for name, count in probe.defects.items() if count}
        defects[probe.name] = found | ({"boxes that reach out of their picture, clamped": clamped} if clamped else {})
        items.append((probe, evaluated))
    return rows, table, defects, items


def published_scores(args):
    """Published scores to compare with, also those of a table beside the annotations."""
    return references(Path(args.annotations) if args.annotations else Path(args.datasets_dir, "probes"))


def gallery_of(items, plan, count, has_images, saliency, with_saliency):
    """The cards: of each probe in turn its most confident mistake that is left; the first ones with saliency maps."""
    lists = [[(probe, found[i]) for i in mistakes([v for *_, v in found])[:count]] for probe, found in items]
    chosen = [entry for entries in itertools.zip_longest(*lists) for entry in entries if entry][:count]
    cards, wanted = [], []
    for probe, (item, crops, block, verdict) in chosen:
        image = part_of_image(*plan.crops[crops[0]]) if has_images else None
        cards.append(card(probe.name, item, block, verdict, image))
        if saliency and len(wanted) < with_saliency:
            pairs = [(name, plan.crops[c], text) for name, c, text in pairs_to_compare(item, crops, block)]
            wanted.append((cards[-1], pairs))
    if not wanted:
        return {"cards": cards}
    from clip_vl.reports.saliency import add_saliency

    return {"cards": cards, "note": add_saliency(wanted, saliency)}


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
