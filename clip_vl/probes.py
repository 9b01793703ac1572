"""Compositional probes: does a model tell a caption from one of nearly the same words? One table at the end.

    python -m clip_vl.probes --probes sugarcrepe winoground --load snap/align/NAME/epoch_32.pt --output snap/probes/NAME
    python -m clip_vl.probes --probes sugarcrepe --blind --output snap/probes/blind          what the texts give away
    python -m clip_vl.probes --probes svo --fetch_images --output ...                        download its pictures first
    bash scripts/probes.bash 0,1 snap/probes/NAME 0 2 --probes scenes --load ...             two GPUs

Probes: winoground, crepe_productivity, crepe_systematicity, sugarcrepe, vg_relation and vg_attribution (ARO),
coco_order, flickr30k_order, svo, vlchecklist, nlvr, and of the built-in scenes scenes and scene_twins. Annotations are
looked for in <datasets_dir>/probes/<probe> (data/README.md). Each distinct part of a picture and each caption is
encoded once. A row of the table says n, how many items lack their picture, how many have a tie with the true side, the
score under the official rule for ties and under the rule that a tie is wrong, what chance gives, and a 95 % interval
from resampling pictures.
"""

from dataclasses import dataclass

from clip_vl.engine.flags import flag, parse
from clip_vl.models.dual_flags import ImageTowerFlags, JudgeFlags, SharedTowerFlags, TextTowerFlags


@dataclass
class ProbesFlags(JudgeFlags, SharedTowerFlags, TextTowerFlags, ImageTowerFlags):
    """Probes"""

    probes: list[str] = flag([], "Which probes, by name.")
    annotations: str | None = flag(None, "Folder or file of the annotations, or folder of folders named by probes.")
    images_dir: str | None = flag(None, "Folder of the pictures [the probe's own in --datasets_dir].")
    blind: bool = flag(False, "Judge the texts alone, in the place of a model, by words that are likely to follow "
                       "each other in --blind_captions, or without that by being shorter.")  # fmt: skip
    blind_captions: str | None = flag(None, "Text file with a caption a line, for the trigram model of --blind.")
    first_cases: int = flag(2000, "VL-CheckList: cases of each file, from its beginning as published; 0 takes all.")
    order_seeds: int = flag(5, "COCO-Order, Flickr30k-Order: shufflings of each kind.")
    tagger: str = flag("auto", "Tagger of the shufflings: spacy, bundled, or auto for spaCy where it is installed.")
    fetch_images: bool = flag(False, "Download the pictures of svo that are not there; failures are listed.")
    save_every: int = flag(64, "Batches between two saves of what is computed.")
    gallery: int = flag(24, "Pictures in the report: the most confident mistakes of each probe in turn.")


FLAGS = parse(ProbesFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import hashlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets import fetch_images, probe_order
from clip_vl.datasets.batches import evaluation_loader
from clip_vl.datasets.crops import eval_crop
from clip_vl.datasets.encoding import TextsOf, shares
from clip_vl.datasets.probe_aro import read_attribution, read_relation
from clip_vl.datasets.probe_crepe import read_productivity, read_systematicity
from clip_vl.datasets.probe_images import CLAMPED, DAMAGED, CropsOf, TextList, distinct_by_tokens, part_of_picture
from clip_vl.datasets.probe_items import Crop, find_images
from clip_vl.datasets.probe_nlvr import read_nlvr
from clip_vl.datasets.probe_scenes import read_scenes
from clip_vl.datasets.probe_sugarcrepe import read_sugarcrepe
from clip_vl.datasets.probe_svo import addresses, read_svo
from clip_vl.datasets.probe_vlchecklist import read_vlchecklist
from clip_vl.datasets.probe_winoground import read_winoground
from clip_vl.datasets.tagger import load_tagger
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.engine.optim import autocast
from clip_vl.evaluation.blind import NGrams, shortness
from clip_vl.evaluation.features import collect
from clip_vl.evaluation.probe_gallery import card, mistakes
from clip_vl.evaluation.probe_references import references
from clip_vl.evaluation.probe_scores import cross_fitted, fold_of, judge, table_row
from clip_vl.models.dual_build import open_dual_encoder
from clip_vl.models.dual_flags import check_dual_flags

# name -> (annotations, pictures), both below --datasets_dir, and what reads them
PLACES = {
    "winoground": ("probes/winoground", "probes/winoground", lambda path, args: [read_winoground(path)]),
    "crepe_productivity": ("probes/crepe_productivity", "vg_raw_images", lambda path, args: [read_productivity(path)]),
    "crepe_systematicity": ("probes/crepe_systematicity", "vg_raw_images",
                            lambda path, args: [read_systematicity(path)]),
    "sugarcrepe": ("probes/sugarcrepe", "mscoco", lambda path, args: [read_sugarcrepe(path)]),
    "vg_relation": ("probes/aro", "vg_raw_images", lambda path, args: [read_relation(path)]),
    "vg_attribution": ("probes/aro", "vg_raw_images", lambda path, args: [read_attribution(path)]),
    "coco_order": ("probes/coco_karpathy_test.json", "mscoco",
                   lambda path, args: [frozen_order("coco_order", path, args)]),
    "flickr30k_order": ("probes/flickr30k_test.json", "flickr30k_images",
                        lambda path, args: [frozen_order("flickr30k_order", path, args)]),
    "svo": ("probes/svo", "probes/svo/images", lambda path, args: read_svo(path)),
    "vlchecklist": ("probes/vlchecklist", "probes/vlchecklist",
                    lambda path, args: read_vlchecklist(path, args.first_cases)),
    "nlvr": ("nlvr", "nlvr_raw_images", lambda path, args: [read_nlvr(path)]),
    "scenes": ("shapes_pairs", "shapes_pairs", lambda path, args: [read_scenes(path)]),
    "scene_twins": ("shapes_twins", "shapes_twins", lambda path, args: [read_winoground(path)]),
}  # fmt: skip

# ---- probes


def read_probes(args):
    """[(Probe, folder of its pictures)]."""
    if not args.probes:
        raise UserError(f"--probes names what to run: {', '.join(PLACES)}")
    found = []
    for name in dict.fromkeys(args.probes):
        if name not in PLACES:
            raise UserError(f"--probes {name} is not one of {', '.join(PLACES)}")
        path, images, read = PLACES[name]
        path = Path(args.annotations) if args.annotations else Path(args.datasets_dir, path)
        path = path / name if args.annotations and (path / name).exists() else path
        images = Path(args.images_dir or Path(args.datasets_dir, images))
        if name == "svo" and args.fetch_images:
            fetch_svo(path, images)
        for probe in read(path, args):
            probe.name = name if name == "scene_twins" else probe.name
            found.append((probe, images))
    return found


def fetch_svo(path, images):
    """Rank 0 downloads what is not there yet."""
    if dist.rank() == 0:
        table = path if path.is_file() else path / "svo_probes.csv"
        fetch_images.fetch_all(addresses(table), images, say=dist.print0)
    dist.barrier()


def frozen_order(name, captions, args):
    """The Probe of frozen shufflings in <datasets_dir>/probes/frozen; those that are not there are made from
    `captions`, a file of Karpathy's test captions. Without that file, whatever is frozen is read.
    """
    folder = Path(args.datasets_dir, "probes", "frozen")
    if args.order_seeds < 1:
        raise UserError(f"--order_seeds {args.order_seeds} must be at least 1")
    if not captions.is_file():
        paths = sorted(folder.glob(f"{name}_*_seed*.json"))
        if not paths:
            raise UserError(f"neither {captions} nor frozen shufflings in {folder} are there; see data/README.md")
        return probe_order.read_order(name, paths)
    tagger, source = load_tagger(args.tagger), probe_order.digest_of(captions)
    stem = f"{name}_{re.sub(r'[^A-Za-z0-9.]+', '-', tagger.name)}_{source[:8]}"
    paths = [folder / f"{stem}_seed{seed}.json" for seed in range(args.order_seeds)]
    if dist.rank() == 0:
        pairs = probe_order.karpathy_test(captions)
        for seed, path in enumerate(paths):
            if not path.is_file():
                probe_order.freeze(path, name, pairs, tagger, seed, source)
    dist.barrier()
    return probe_order.read_order(name, paths)


class Plan:
    """What there is to score: distinct crops and captions, and for each probe which items can be scored.

    crops: [Crop], whose names are paths;  texts: [str]
    parts: [(Probe, [(item, crop numbers, text numbers)], [items without a picture])]
    """

    def __init__(self, probes, sees):
        crops, texts, self.parts, self.digest = {}, {}, [], hashlib.sha256()
        for probe, images in probes:
            paths = find_images(probe, images) if sees else None
            items, missing = [], []
            for item in probe.items:
                if paths is not None and not all(crop.name in paths for crop in item.images):
                    missing.append(item)
                    continue
                places = [Crop(str(paths[c.name]), c.box) if sees else c for c in item.images]
                items.append((item, [crops.setdefault(c, len(crops)) for c in places],
                              [texts.setdefault(t, len(texts)) for t in item.captions]))  # fmt: skip
            if not items:
                raise DataError(f"{probe.name}: none of the pictures of its {len(probe.items):,} items is in {images}; "
                                "--images_dir names their folder")  # fmt: skip
            self.parts.append((probe, items, missing))
            self.digest.update(repr([probe.name, probe.rows, probe.items, [item.id for item in missing]]).encode())
        self.crops, self.texts = list(crops), list(texts)

    def pairs(self):
        """Every (crop, text) that some item compares, (P, 2)."""
        wanted = {pair for _, items, _ in self.parts for _, i, t in items for pair in itertools.product(i, t)}
        return np.array(sorted(wanted))


# ---- scorers: what gives a picture and a caption a number


class DualScorer:
    """Cosine similarity of a dual encoder's features, in float32."""

    threshold = None  # cosines have no natural one: it is calibrated

    def __init__(self, args, device):
        check_dual_flags(args)
        self.args, self.device = args, device
        self.model = open_dual_encoder(args, device)
        self.view = eval_crop(self.model.image_tower, args)

    def inputs(self):
        """Digests of the weights, of the tokenizer by what it makes of a sentence, and of how pictures are cropped."""
        weights = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        said = {n: t.tolist() for n, t in dict(self.model.tokenizer(["A cat's 2 hats, e.g. É!", "dog"])).items()}
        shown = [type(self.view).__name__, vars(self.view), self.model.mean.tolist(), self.model.std.tolist()]
        return {"weights": weights.hexdigest(), "tokenizer": _digest(said), "preprocessing": _digest(shown)}

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
            for problem in itertools.chain(*dist.gather(problems)):
                dist.print0(f"warning: {problem}; its items count as missing their picture")
            notes = [note for of_rank in dist.gather(notes) for note in of_rank]
            order = np.argsort(np.concatenate([places for places, _ in notes]), kind="stable")
            status = np.concatenate([s for _, s in notes])[order].astype(np.uint8)
            return {"features": features, "status": status}

        parts = run.in_parts(name, -(-count // size), compute)
        return {key: np.concatenate([part[key] for part in parts]) for key in ("features", "status")} if parts else None


class BlindScorer:
    """Scores of the captions alone: no picture is opened, and none is missing."""

    threshold = None

    def __init__(self, args):
        self.judge, self.data = shortness, None
        if args.blind_captions:
            try:
                self.data = Path(args.blind_captions).read_bytes()
                self.judge = NGrams(self.data.decode().splitlines())
            except OSError as error:
                raise UserError(f"--blind_captions {args.blind_captions} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{args.blind_captions}: byte {error.start} is not UTF-8") from None

    def inputs(self):
        return {"blind": hashlib.sha256(self.data).hexdigest() if self.data else "shorter"}

    def scores(self, run, plan):
        if dist.rank():
            return None
        of_text = [self.judge(text) for text in plan.texts]
        return {pair: of_text[pair[1]] for pair in map(tuple, plan.pairs().tolist())}, np.zeros(len(plan.crops))


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


# ---- results


def judge_probe(part, score_of, status, threshold):
    """([(item, crops, block, Verdict)], items without a usable picture) of a probe."""
    probe, items, missing = part
    damaged = [item for item, crops, _ in items if any(status[c] == DAMAGED for c in crops)]
    gone = {item.id for item in damaged}
    usable = [entry for entry in items if entry[0].id not in gone]
    blocks = [
        np.array([[score_of[c, t] for t in texts] for c in crops], dtype=np.float32) for _, crops, texts in usable
    ]
    thresholds = np.zeros(len(usable))
    if probe.kind == "match":
        labels, folds = ([f(item) for item, *_ in usable] for f in (lambda i: i.gold, lambda i: fold_of(i.fold)))
        scores = np.array([block[:, 0].mean() for block in blocks])
        fixed = threshold is not None
        thresholds = np.full(len(usable), threshold) if fixed else cross_fitted(scores, labels, folds)
    verdicts = [judge(probe.kind, b, e[0].gold, t) for e, b, t in zip(usable, blocks, thresholds)]
    return [(*entry[:2], block, verdict) for entry, block, verdict in zip(usable, blocks, verdicts)], missing + damaged


def sample_rows(probe, judged, missing):
    """Rows of samples.jsonl: every item, also one that could not be scored; correct: by the official rule."""
    for item, _, block, v in judged:
        row = {"id": f"{probe.name}/{item.id}", "probe": probe.name, "subset": item.groups[0],
               "image": item.images[0].name, "scores": np.asarray(block, dtype=float).round(6).tolist()}  # fmt: skip
        loose = probe.tie == "right"
        if v.right is not None:
            row |= {name: int(right[loose]) for name, right in v.right.items()} | {
                "correct": int(v.right["group"][loose])
            }
        elif v.decision is not None:
            row |= {
                "decision": int(v.decision),
                "gold": item.gold,
                "correct": int(v.decision == bool(item.gold) and not v.tie),
            }
        else:
            row |= {"rank": v.rank, "correct": int((v.best_rank if loose else v.rank) == 1)}
        yield row | {"tie": int(v.tie)}
    for item in missing:
        yield {"id": f"{probe.name}/{item.id}", "probe": probe.name, "subset": item.groups[0],
               "image": item.images[0].name, "missing_image": 1}  # fmt: skip


def table_of(probe, judged, missing, seed, published):
    """The rows of the table, dicts."""
    verdicts, groups = [v for *_, v in judged], [item.groups for item, *_ in judged]
    pictures = [item.images[0].name for item, *_ in judged]
    for row in probe.rows:
        lost = sum(any(group in row.groups for group in item.groups) for item in missing)
        numbers = table_row(row, verdicts, groups, pictures, probe.tie, seed)
        known = published.get((probe.name, row.label, row.metric), {})
        yield {"probe": probe.name, **numbers, "missing": lost, "tie_counts_as": probe.tie, "references": known}


def flat(table):
    """{metric/probe/row: score, with _n, _low and _high beside it}, which the report shows."""
    values = {}
    for row in table:
        name = f"{row['metric']}/{row['probe']}/{row['row']}"
        if row["score"] is not None:
            values |= {
                name: row["score"],
                f"{name}_n": row["n"],
                f"{name}_low": row["low"],
                f"{name}_high": row["high"],
            }
    return values


def print_table(table, defects):
    """One line per row, then what is wrong with the data."""
    titles = ("probe", "row", "metric", "n", "missing", "ties", "score", "ties wrong", "chance")
    lines = [(*titles, "95 % interval", "published")]
    for row in table:
        counts = [f"{row[name]:,}" for name in ("n", "missing", "ties")]
        known = ", ".join(f"{who} {score:.2f}" for who, score in row["references"].items())
        scores = [""] * 4
        if row["score"] is not None:
            scores = [f"{row[name]:.2f}" for name in ("score", "pessimistic", "chance")]
            scores.append(f"{row['low']:.2f} - {row['high']:.2f}")
        lines.append((row["probe"], row["row"], row["metric"], *counts, *scores, known))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        cells = [text.ljust(w) if i < 3 or i > 8 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths))]
        dist.print0("  ".join(cells).rstrip())
    for name, counts in defects.items():
        for defect, count in counts.items():
            dist.print0(f"{name}: {defect}: {count:,}")


def gallery_of(judged_probes, plan, count, sees):
    """The cards: of each probe in turn its most confident mistake that is left."""
    lists = [[(probe, judged[i]) for i in mistakes([v for *_, v in judged])[:count]] for probe, judged in judged_probes]
    chosen = [entry for entries in itertools.zip_longest(*lists) for entry in entries if entry][:count]
    cards = []
    for probe, (item, crops, block, verdict) in chosen:
        crop = plan.crops[crops[0]]
        cards.append(card(probe.name, item, block, verdict, part_of_picture(*crop) if sees else None))
    return {"cards": cards}


def main(args):
    device = dist.setup()
    if args.save_every < 1 or args.batch_size < 1:
        raise UserError("--save_every and --batch_size must be at least 1")
    probes = read_probes(args)
    scorer = BlindScorer(args) if args.blind else DualScorer(args, device)
    plan = Plan(probes, sees=not args.blind)
    run = EvaluationRun(args, "probes", device)
    inputs = scorer.inputs()
    if run.begin(inputs | {"data": plan.digest.hexdigest()}):
        dist.print0(f"{run.folder} holds this evaluation, finished; --overwrite does it again")
        return
    found = scorer.scores(run, plan)
    rows, result, gallery = results(args, plan, *found, scorer, inputs) if found else (None, None, None)
    run.finish(rows, result, gallery)


def results(args, plan, score_of, status, scorer, inputs):
    """(rows of samples.jsonl, result, gallery), and the table printed."""
    published = references(Path(args.annotations or args.datasets_dir, "." if args.annotations else "probes"))
    rows, table, defects, judged_probes = [], [], {}, []
    for part in plan.parts:
        probe = part[0]
        judged, missing = judge_probe(part, score_of, status, scorer.threshold)
        if not judged:
            raise DataError(f"{probe.name}: all of its pictures are damaged")
        rows += sample_rows(probe, judged, missing)
        table += table_of(probe, judged, missing, args.seed, published)
        clamped = sum(any(status[c] == CLAMPED for c in crops) for _, crops, *_ in judged)
        found = {name: int(count) for name, count in probe.defects.items() if count}
        defects[probe.name] = found | ({"boxes that reach out of their picture, clamped": clamped} if clamped else {})
        judged_probes.append((probe, judged))
    print_table(table, defects)
    result = {
        "task": "probes", "split": ", ".join(probe.name for probe, *_ in plan.parts),
        "checkpoint": "texts alone" if args.blind else args.load, **flat(table), "table": table, "defects": defects,
        "facts": {probe.name: probe.facts for probe, *_ in plan.parts if probe.facts},
        "digests": inputs | {"annotations": {probe.name: probe.files for probe, *_ in plan.parts}},
        "encoded": {"pictures": len(plan.crops), "captions": len(plan.texts)},
    }  # fmt: skip
    return rows, result, gallery_of(judged_probes, plan, args.gallery, not args.blind)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
