"""Retrieval between images and texts: recall at 1, 5 and 10 both ways, of a dual encoder or of the fused one.

    python -m clip_vl.retrieval --test coco-karpathy-5k --load snap/align/NAME/epoch_32.pt --output snap/retrieval/NAME
    python -m clip_vl.retrieval --test data/shapes_pairs/test.tsv --load ... --output ...  any captioned images
    python -m clip_vl.retrieval --test flickr30k-karpathy --fused snap/pretrain/NAME/Epoch09 ...  by the matching head
    python -m clip_vl.retrieval ... --load ... --fused ... --rerank 16   the dual encoder's best 16, by the fused
    bash scripts/retrieval.bash 0,1,2,3 NAME 0 4 --test ...                  four GPUs

--test names a protocol: coco-karpathy-5k, coco-karpathy-1k (the mean over the five folds of 1,000 images),
coco2017-val (all captions), flickr30k-karpathy; or data in the forms that `align` reads. Ranks are exact. A tie counts
against the match; where ranks hang on ties, the optimistic recalls stand beside. --perturb_text and --perturb_images
measure what is left when words or parts of pictures are out of order (ARO, arXiv:2210.01936). Writes samples.jsonl (the
rank of every query), result.json and report.html; a repeated command goes on where an interrupted one stopped.
Fine-tuning with InfoNCE is `python -m clip_vl.align --load CHECKPOINT --train_data ...`; of the fused encoder
`finetune_retrieval`.
"""

from dataclasses import dataclass

from clip_vl.flags.captions import SourceFlags
from clip_vl.flags.dual import ImageTowerFlags, EvaluationFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.perturbed import PerturbedFlags


@dataclass
class RetrievalFlags(EvaluationFlags, SourceFlags, PerturbedFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags):
    """Retrieval"""

    test: str | None = flag(None, "A protocol by its name, or captioned images in the forms that `align` reads.")
    fold_size: int = flag(0, "Images of a fold, for data without a protocol; scores are the mean over the folds.")
    captions_per_image: int | None = flag(None, "Only the first n captions of each image [all].")
    fused: str | None = flag(None, "Stem of a checkpoint of `pretrain` or `finetune_retrieval`: it scores the pairs.")
    rerank: int = flag(0, "With --fused: only the k best of the dual encoder for each query; 0 scores all pairs.")
    bert: str | None = flag(None, "Folder of the fused encoder's text model [the one it was trained with].")
    gallery: int = flag(24, "Queries to look at in the report, each way: half of them best, half worst.")
    saliency: int = flag(8, "Of these, with a picture of where the score of the true pair comes from; 0 for none.")


FLAGS = parse(RetrievalFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import hashlib
from pathlib import Path

import numpy as np

from clip_vl.datasets.captions.perturbed import perturbed, views_of
from clip_vl.datasets.captions.protocols import PROTOCOLS, RetrievalPairs, find_protocol
from clip_vl.datasets.captions.sources import open_sources
from clip_vl.datasets.images.crops import eval_crop
from clip_vl.datasets.loader import to_device
from clip_vl.datasets.lxmert.canvas_pairs import PairList, by_image, picture_on_canvas, score_texts
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer, pad_tokens
from clip_vl.encoding.cache import cached_features
from clip_vl.encoding.encode import ImagesOf, TextsOf, encode_numbers
from clip_vl.engine import dist
from clip_vl.engine.errors import Interrupted, UserError
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.engine.optim import autocast
from clip_vl.evaluation.modality_gap import modality_gap
from clip_vl.evaluation.recall import WAYS
from clip_vl.evaluation.retrieval_folds import Fold, metrics_of, rank_all_pairs, rank_by_features, rerank
from clip_vl.models.dual.build import frozen_digest, open_dual_encoder
from clip_vl.models.fused.build import bert_folder
from clip_vl.models.fused.scorer import open_fused_scorer, settings_of
from clip_vl.models.saliency.saliency import dual_saliency, fused_saliency
from clip_vl.reports.retrieval import gallery_of, rows_of
from clip_vl.reports.saliency import drawn

BLOCK = {"image": 1024, "text": 8192, "pair": 4096}  # what a killed process can lose

# ---- scores


def encode(side, pairs, model, run, device, args):
    """(N, D) or (M, D) features of the images or texts, L2-normalised, encoded once by all processes and kept."""
    if side == "image":
        dataset, wanted = ImagesOf(*views_of(pairs.source, eval_crop(model.image_tower, args.image_crop))), pairs.rows
    else:
        dataset, wanted = TextsOf(pairs.source, model.tokenizer), pairs.numbers

    def encode_batch(batch):
        return model.encode_image(batch["images"]) if side == "image" else model.encode_text(batch["tokens"])

    def encode_block(places):
        return encode_numbers(dataset, wanted[places], encode_batch, device, args, stop=run.stop)

    parts = [getattr(model, f"{side}_{part}") for part in ("tower", "head")]
    described = " ".join(map(frozen_digest, parts)) + f" retrieval {side} {args.image_crop} {args.precision} "
    described += f"{args.batch_size} {args.max_seq_length} {args.captions_per_image} {pairs.source.changed[side] or ''}"
    return kept(pairs, described, len(wanted), encode_block, BLOCK[side], args)


def score_pairs(keys, pairs, scorer, flags, run, device, args):
    """(P,) log-odds of the fused encoder for the pairs of `PairList`'s keys; an image's tower runs once in a block."""
    listed = PairList(len(pairs.numbers), len(pairs.rows), keys)
    tokenizer = load_tokenizer(bert_folder(flags))
    texts = tokenizer.encode([pairs.source.text(int(n)) for n in pairs.numbers], flags.max_length)

    def score_block(numbers):
        images, places = listed[numbers]
        scores = np.empty(len(numbers), np.float32)
        for image, mine in by_image(images):
            stop_if_asked(run)
            row = int(pairs.rows[image])
            picture = picture_on_canvas(
                pairs.source.read(row), pairs.source.name(row), flags.image_size_min, flags.image_size_max
            )
            with autocast(device, args):
                scores[mine] = score_texts(scorer, picture, [texts[p] for p in places[mine]], args.batch_size, device)
        return scores[:, None]

    chosen = "all" if keys is None else hashlib.sha256(keys.tobytes()).hexdigest()
    described = f"{frozen_digest(scorer)} pairs {chosen} {settings_of(flags)} {args.precision} {args.batch_size} "
    described += f"{args.captions_per_image} {tokenizer.digest} {pairs.source.changed}"
    return kept(pairs, described, listed.count, score_block, BLOCK["pair"], args)[:, 0]


def kept(pairs, described, count, compute, block, args):
    """What `compute` makes of numbers 0 ... count - 1, from the cache where it is there: NumPy float32, read-only."""
    root = Path(args.datasets_dir) / "cache"
    root.mkdir(parents=True, exist_ok=True)
    return cached_features(pairs.source.digest, described, count, compute, root, dtype="float32", block=block).values


# ---- looking


def dual_look(pairs, model, device, args):
    """(row, text) -> a picture of where the cosine of a pair comes from, as `drawn` gives it."""
    source, crop = views_of(pairs.source, eval_crop(model.image_tower, args.image_crop))

    def look(row, text):
        image = crop(source.read(row), None, source.name(row))
        return drawn(image, dual_saliency(model, image[None].to(device), text))

    return look


def fused_look(pairs, scorer, flags, device):
    """The same of the fused encoder's log-odds."""
    tokenizer = load_tokenizer(bert_folder(flags))

    def look(row, text):
        image, box = picture_on_canvas(
            pairs.source.read(row), pairs.source.name(row), flags.image_size_min, flags.image_size_max
        )
        tokens = to_device(pad_tokens(tokenizer.encode([text], flags.max_length)), device)
        return drawn(image[0], fused_saliency(scorer, image.to(device), box.to(device), tokens), box[0])

    return look


# ---- the program


def stop_if_asked(run):
    if run.stop:
        raise Interrupted("interrupted; what is encoded is kept, and the same command goes on from there")


def check_flags(args):
    """Refuse what cannot work, in one sentence, before anything is built."""
    if not args.test:
        named = ", ".join(protocol.name for protocol in PROTOCOLS)
        raise UserError(f"--test names no data: pass one of {named}, or a file of captions")
    if args.rerank < 0 or args.gallery < 0 or args.saliency < 0:
        values = f"--rerank {args.rerank}, --gallery {args.gallery} and --saliency {args.saliency}"
        raise UserError(f"{values} are numbers from 0 up")
    if args.captions_per_image is not None and args.captions_per_image < 1:
        raise UserError(f"--captions_per_image {args.captions_per_image} must be at least 1")
    if args.rerank and not args.fused:
        raise UserError(f"--rerank {args.rerank} needs the fused encoder that judges the candidates: pass --fused")
    if args.bert and not args.fused:
        raise UserError(f"--bert {args.bert} is the text model of a fused encoder: pass --fused as well")
    if args.fused and args.load and not args.rerank:
        raise UserError("--fused scores all pairs by itself: leave out --load, or pass --rerank K as well")


def main(args):
    device = dist.setup()
    check_flags(args)
    args = recalled(args)
    protocol = find_protocol(args.test, args.fold_size)
    run = EvaluationRun(args, "retrieval", device)
    pairs = RetrievalPairs(perturbed(open_sources(protocol.spec, args), args), protocol, args)
    inputs, judges = {"data": pairs.source.digest, "changed": pairs.source.changed}, []
    if args.rerank or not args.fused:
        model = open_dual_encoder(args.towers(), device)
        inputs["dual"] = frozen_digest(model)
        judges.append("dual encoder")
    if args.fused:
        scorer, flags = open_fused_scorer(args.fused, device, args.bert)
        inputs["fused"] = f"{frozen_digest(scorer)} {settings_of(flags)}"
        judges.append(f"fused encoder on the best {args.rerank}" if args.rerank else "fused encoder on all pairs")
    if run.begin(inputs):
        return dist.print0(f"{run.folder} holds this evaluation already; --overwrite repeats it")

    folds = [Fold(pairs, first, last) for first, last in pairs.folds]
    if args.rerank or not args.fused:
        features = [encode(side, pairs, model, run, device, args) for side in ("image", "text")]
    for fold in folds:
        if not args.fused:
            rank_by_features(fold, *features)
            continue
        score = lambda keys: score_pairs(keys, pairs, scorer, flags, run, device, args)  # noqa: E731
        if args.rerank:
            rerank(fold, pairs, *features, args.rerank, score)
        else:
            rank_all_pairs(fold, pairs, score)

    metrics = metrics_of(folds)
    if args.rerank or not args.fused:
        metrics |= modality_gap(*features, pairs.image_of_text)
    if dist.rank() == 0:
        judge = ", then ".join(judges)
        head = {"task": "retrieval", "split": protocol.name, "checkpoint": args.fused or args.load, "scored_by": judge,
                "tie_rule": "a tie counts against the match; *_optimistic: for it", "images": len(pairs.rows),
                "texts": len(pairs.numbers), "data_digest": pairs.source.digest,
                "perturbed": pairs.source.changed}  # fmt: skip
        note = "log-odds" if args.fused else "cosine"
        look = fused_look(pairs, scorer, flags, device) if args.fused else dual_look(pairs, model, device, args)
        gallery = gallery_of(pairs, folds[0], args.gallery, note, args.seed, look, args.saliency)
        run.finish(rows_of(pairs, folds), head | metrics, gallery)
        recalls = {way: " / ".join(f"{metrics[f'{way}_recall@{k}']:.2f}" for k in (1, 5, 10)) for way in WAYS}
        recalls = "; ".join(f"{way.replace('_', ' ')} {values}" for way, values in recalls.items())
        print(f"{protocol.name}: {recalls}; mean {metrics['mean_recall']:.2f}")
        print(f"report: {run.folder / 'report.html'}")
    else:
        run.finish((), {})


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
