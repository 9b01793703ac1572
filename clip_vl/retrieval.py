"""Retrieval between images and texts: recall at 1, 5 and 10 both ways, of a dual encoder or of the fused encoder.

    python -m clip_vl.retrieval --test coco-karpathy-5k --load snap/align/NAME/epoch_32.pt --output snap/retrieval/NAME
    python -m clip_vl.retrieval --test data/shapes_pairs/test.tsv --load ... --output ...  any captioned images
    python -m clip_vl.retrieval --test flickr30k-karpathy --fused snap/pretrain/NAME/Epoch09 ...  by the matching head
    python -m clip_vl.retrieval ... --load ... --fused ... --rerank 16   the fused encoder reranks the best 16
    bash scripts/retrieval.bash 0,1,2,3 NAME 0 4 --test ...                  four GPUs

--test names a protocol: coco-karpathy-5k, coco-karpathy-1k (the mean over the five folds of 1,000 images),
coco2017-val (all captions), flickr30k-karpathy; or captioned images in the forms that `align` reads. Ranks are exact. A
tie counts against the match; where ties change ranks, the optimistic recalls are reported as well. --perturb_text and
--perturb_images measure what remains when words or parts of images are shuffled (ARO, arXiv:2210.01936). Writes
samples.jsonl (the rank of every query), result.json and report.html; a repeated command resumes an interrupted one.
Fine-tuning with InfoNCE is `python -m clip_vl.align --load CHECKPOINT --train_data ...`; of the fused encoder
`finetune_retrieval`.
"""

from dataclasses import dataclass

from clip_vl.flags.captions import SourceFlags
from clip_vl.flags.dual import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.evaluation import EvaluationFlags
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.perturbed import PerturbedFlags


@dataclass
class RetrievalFlags(EvaluationFlags, SourceFlags, PerturbedFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags):
    """Retrieval"""

    test: str | None = flag(None, "A protocol by its name, or captioned images in the forms that `align` reads.")
    fold_size: int = flag(0, "Images per fold for data without a protocol; metrics are the mean over the folds.")
    captions_per_image: int | None = flag(None, "Evaluate only the first n captions of each image [all].")
    fused: str | None = flag(None, "Stem of a checkpoint of `pretrain` or `finetune_retrieval` that scores the pairs.")
    rerank: int = flag(0, "With --fused: score only the k best candidates of the dual encoder; 0 scores all pairs.")
    bert: str | None = flag(None, "Folder of the fused encoder's text model [the one it was trained with].")
    gallery: int = flag(24, "Queries shown in the report for each way: half of them best, half worst.")
    saliency: int = flag(8, "Queries shown with a saliency map of the true pair; 0 for none.")


FLAGS = parse(RetrievalFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from clip_vl.datasets.captions.protocols import PROTOCOLS, RetrievalPairs, find_protocol
from clip_vl.datasets.captions.sources import open_sources
from clip_vl.datasets.images.crops import eval_crop
from clip_vl.encoding.encode import ImagesOf, TextsOf
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.evaluation.modality_gap import modality_gap
from clip_vl.evaluation.recall import WAYS
from clip_vl.evaluation.retrieval_folds import Fold, metrics_of, rank_all_pairs, rank_by_features, rerank
from clip_vl.models.dual.build import frozen_digest, open_dual_encoder
from clip_vl.reports.retrieval import gallery_of, rows_of
from clip_vl.reports.page import write_report

BLOCKS = {"image": 1024, "text": 8192}  # items that a killed process can lose


def encode(pairs, model, crop, encoder, described, stop):
    """[(N, D) image features, (M, D) text features], L2-normalised, encoded once by all processes and kept."""
    found = []
    for side in ("image", "text"):
        if side == "image":
            dataset, numbers = ImagesOf(*pairs.source.for_crop(crop)), pairs.rows
            features_of = lambda batch: model.encode_image(batch["images"])  # noqa: E731
        else:
            dataset, numbers = TextsOf(pairs.source, model.tokenizer), pairs.numbers
            features_of = lambda batch: model.encode_text(batch["tokens"])  # noqa: E731
        weights = " ".join(frozen_digest(getattr(model, f"{side}_{part}")) for part in ("tower", "head"))
        made_of = f"{weights} retrieval {side} {described} {encoder.batch_size} {pairs.source.changed[side] or ''}"
        found.append(encoder.cached(dataset, numbers, features_of, source=pairs.source.digest, model=made_of,
                                    block=BLOCKS[side], stop=stop).values)  # fmt: skip
    return found


def open_matcher(stem, bert, device):
    """(`Matcher` of a fused encoder, text that names all that its scores depend on)."""
    from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
    from clip_vl.encoding.matching import Matcher
    from clip_vl.models.fused.build import bert_folder
    from clip_vl.models.fused.scorer import open_fused_scorer, settings_of

    scorer, flags = open_fused_scorer(stem, device, bert)
    sides = flags.image_size_min, flags.image_size_max
    matcher = Matcher(scorer, load_tokenizer(bert_folder(flags)), flags.max_length, sides)
    return matcher, f"{frozen_digest(scorer)} {settings_of(flags)}"


def rank(folds, pairs, features, score, k):
    """Fill in the ranks of every fold: by features, by the scores of all pairs, or of the k best by features."""
    for fold in folds:
        if score is None:
            rank_by_features(fold, *features)
        elif k:
            rerank(fold, pairs, *features, k, score)
        else:
            rank_all_pairs(fold, pairs, score)


def saliency_of_pairs(pairs, model, crop, matcher, device):
    """(row, text) -> a saliency map of the score of that pair, as of `reports.saliency.drawn`."""
    from clip_vl.models.saliency.saliency import dual_saliency, fused_saliency
    from clip_vl.reports.saliency import drawn

    source, crop = pairs.source.for_crop(crop) if matcher is None else (pairs.source, None)

    def of_dual(row, text):
        image = crop(source.read(row), None, source.name(row))
        return drawn(image, dual_saliency(model, image[None].to(device), text))

    def of_fused(row, text):
        image, box, tokens = matcher.inputs(source.read(row), source.name(row), text, device)
        return drawn(image[0].cpu(), fused_saliency(matcher.scorer, image, box, tokens), box[0].cpu())

    return of_dual if matcher is None else of_fused


def check_flags(args):
    """Refuse what cannot work, in one sentence, before anything is built."""
    if not args.test:
        named = ", ".join(protocol.name for protocol in PROTOCOLS)
        raise UserError(f"--test names no data: pass one of {named}, or a file of captions")
    if args.rerank < 0 or args.gallery < 0 or args.saliency < 0:
        values = f"--rerank {args.rerank}, --gallery {args.gallery} and --saliency {args.saliency}"
        raise UserError(f"{values} must be at least 0")
    if args.captions_per_image is not None and args.captions_per_image < 1:
        raise UserError(f"--captions_per_image {args.captions_per_image} must be at least 1")
    if args.rerank and not args.fused:
        raise UserError(f"--rerank {args.rerank} needs a fused encoder that scores the candidates: pass --fused")
    if args.bert and not args.fused:
        raise UserError(f"--bert {args.bert} is the text model of a fused encoder: pass --fused as well")
    if args.fused and args.load and not args.rerank:
        raise UserError("--fused scores all pairs by itself: leave out --load, or pass --rerank K as well")


def main(args):
    device = dist.setup()
    check_flags(args)
    args = recalled(args)
    protocol = find_protocol(args.test, args.fold_size)
    run = EvaluationRun("retrieval", args.run(), device, write_report)
    encoder = args.encoder(device)
    source = args.perturbed(open_sources(protocol.spec, args.caption_options()))
    pairs = RetrievalPairs(source, protocol, args.captions_per_image, is_whole=args.dataset_size is None)
    inputs, scored_by = {"data": source.digest, "changed": source.changed}, []
    model = crop = matcher = features = score = None
    if args.rerank or not args.fused:
        model = open_dual_encoder(args.towers(), device)
        crop = eval_crop(model.image_tower, args.image_crop)
        inputs["dual"] = frozen_digest(model)
        scored_by.append("dual encoder")
    if args.fused:
        matcher, inputs["fused"] = open_matcher(args.fused, args.bert, device)
        scored_by.append(f"fused encoder on the best {args.rerank}" if args.rerank else "fused encoder on all pairs")
    if run.begin(inputs):
        return dist.print0(f"{run.folder} holds this evaluation already; --overwrite repeats it")

    if model:
        features = encode(pairs, model, crop, encoder, f"{args.image_crop} {args.max_seq_length}", run.stop)
    if matcher:
        from clip_vl.encoding.matching import score_pairs

        score = lambda keys: score_pairs(keys, pairs, matcher, encoder, inputs["fused"], run.stop)  # noqa: E731
    folds = [Fold(pairs, first, last) for first, last in pairs.folds]
    rank(folds, pairs, features, score, args.rerank)

    metrics = metrics_of(folds) | (modality_gap(*features, pairs.image_of_text) if model else {})
    if dist.rank():
        return run.finish((), {})
    head = {"task": "retrieval", "split": protocol.name, "checkpoint": args.fused or args.load,
            "scored_by": ", then ".join(scored_by),
            "tie_rule": "a tie counts against the match; *_optimistic: for it", "images": len(pairs.rows),
            "texts": len(pairs.numbers), "data_digest": source.digest, "perturbed": source.changed}  # fmt: skip
    saliency = saliency_of_pairs(pairs, model, crop, matcher, device) if args.saliency else None
    note = "log-odds" if matcher else "cosine"
    gallery = gallery_of(pairs, folds[0], args.gallery, note, args.seed, saliency, args.saliency)
    run.finish(rows_of(pairs, folds), head | metrics, gallery)
    recalls = {way: " / ".join(f"{metrics[f'{way}_recall@{k}']:.2f}" for k in (1, 5, 10)) for way in WAYS}
    recalls = "; ".join(f"{way.replace('_', ' ')} {values}" for way, values in recalls.items())
    print(f"{protocol.name}: {recalls}; mean {metrics['mean_recall']:.2f}")
    print(f"report: {run.folder / 'report.html'}")


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
