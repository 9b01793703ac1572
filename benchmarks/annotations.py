"""Claims: a million sentences become tables in about a minute, in much less memory than the parsed JSON takes; each of
four workers keeps < 50 MB for itself; an item costs microseconds.

    .venv/bin/python benchmarks/annotations.py --vocabulary data/shapes/bert-base-uncased    two minutes, 500 MB of disk

Writes an LXMERT file of made-up captions and questions, parses it once with `json` (for comparison) and builds the
tables, each in a process of its own; then four loader workers read items at random.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from needs import require

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from clip_vl.datasets.lxmert.annotations import build_pretrain_annotations  # noqa: E402
from clip_vl.datasets.lxmert.answers import AnswerTable  # noqa: E402
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer  # noqa: E402

PER_IMAGE = 20
READS = 20_000


def peak():
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def private():
    """Memory that is this process's alone, MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().split("\n")
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def write_inputs(root, sentences):
    """lxmert.json, sizes.json and answers.json below root; five captions and fifteen questions per image."""
    words = [w for w in (root / "words.txt").read_text().split() if w.isalpha() and len(w) > 2]
    rng, answers = random.Random(0), [f"answer {number}" for number in range(3000)]
    (root / "answers.json").write_text(json.dumps([{"ans": answer, "dsets": ["vqa"]} for answer in answers]))
    sizes = {}
    with (root / "lxmert.json").open("w") as file:
        file.write("[")
        for number in range(sentences // PER_IMAGE):
            img_id = f"COCO_train2014_{number:012d}"
            sizes[f"data/mscoco/train2014/{img_id}.jpg"] = [480, 640]
            said = [" ".join(rng.choices(words, k=rng.randint(6, 12))) for _ in range(PER_IMAGE)]
            labels = [{rng.choice(answers): 1.0, rng.choice(answers): 0.3} for _ in range(15)]
            row = {"img_id": img_id, "sentf": {"mscoco": said[:5], "vqa": said[5:]}, "labelf": {"vqa": labels}}
            file.write(("," if number else "") + json.dumps(row))
        file.write("]")
    (root / "sizes.json").write_text(json.dumps(sizes))


def annotations(root):
    return build_pretrain_annotations(
        [root / "lxmert.json"],
        tokenizer=load_tokenizer(root / "bert"),
        answer_table=AnswerTable(root / "answers.json"),
        image_sizes=root / "sizes.json",
        cache_root=root / "cache",
    )


def parse(root, results):
    before, start = peak(), time.perf_counter()
    rows = json.loads((root / "lxmert.json").read_bytes())
    results.put((time.perf_counter() - start, peak() - before, len(rows)))


def build(root, results):
    before, start = peak(), time.perf_counter()
    tables = annotations(root)
    results.put((time.perf_counter() - start, peak() - before, len(tables)))


def read(root, results):
    """One worker: open what is there, read at random -> (private MB that came with it, microseconds per item)."""
    load_tokenizer(root / "bert")
    before = private()
    tables = annotations(root)
    rng = random.Random()
    picked = [rng.randrange(len(tables)) for _ in range(READS)]
    start = time.perf_counter()
    for item in picked:
        tables.tokens(item), tables.answers(item)
    seconds = time.perf_counter() - start
    results.put((private() - before, 1e6 * seconds / READS))


def run(target, root, count=1):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=target, args=(root, results)) for _ in range(count)]
    for worker in workers:
        worker.start()
    values = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--vocabulary", required=True, help="folder with vocab.txt and config.json of a BERT model")
    args = parser.parse_args()
    require(args.vocabulary, "pass the bert-base-uncased folder of a data root, such as that of clip_vl.shapes")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "bert").symlink_to(Path(args.vocabulary).resolve())
        (root / "words.txt").write_text((root / "bert" / "vocab.txt").read_text())
        write_inputs(root, args.sentences)
        size = (root / "lxmert.json").stat().st_size / 2**20
        [(json_seconds, json_memory, _)] = run(parse, root)
        [(seconds, memory, items)] = run(build, root)
        workers = run(read, root, count=4)
        tables = sum(p.stat().st_size for p in (root / "cache").rglob("*") if p.is_file()) / 2**20
    print(f"{items:,} sentences, {size:.0f} MB of JSON, tables of {tables:.0f} MB")
    print(f"json.loads   {json_seconds:5.1f} s, {json_memory:5.0f} MB")
    print(f"tables       {seconds:5.1f} s, {memory:5.0f} MB")
    for number, (own, microseconds) in enumerate(workers, 1):
        print(f"worker {number}     {own:5.1f} MB of its own, {microseconds:.1f} us per item")


if __name__ == "__main__":
    main()
