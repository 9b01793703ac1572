"""GLUE as a user runs it, on made tasks with a small BERT: files, resuming, submissions, every kind of task."""

import json

import numpy as np
import pytest
import torch

from clip_vl.models.distill.image_encoder import ImageEncoderSpec
from clip_vl.models.distill.student import Student, StudentSpec
from clip_vl.models.distill.text_encoder import TextEncoder, random_text_encoder
from clip_vl.models.fused.bert import BertConfig

WORDS = ["good", "bad", "fine", "poor", "film", "book", "a", "the", "is"]
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
         "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A BERT folder with weights and pooler, and three tasks whose labels one word tells."""
    root, rng = tmp_path_factory.mktemp("glue"), np.random.default_rng(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (root / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = BertConfig(vocab_size=len(vocabulary), **SIZES)
    (root / "config.json").write_text(json.dumps(SIZES | {"vocab_size": len(vocabulary), "model_type": "bert"}))
    torch.manual_seed(0)
    state = random_text_encoder(TextEncoder(config), std=0.2).state_dict()
    state |= {"pooler.dense.weight": 0.2 * torch.randn(24, 24), "pooler.dense.bias": torch.zeros(24)}
    torch.save({f"bert.{name}": tensor for name, tensor in state.items()}, root / "pytorch_model.bin")
    for split, rows in (("train", 64), ("dev", 21), ("test", 6)):
        labels = rng.integers(0, 2, rows)
        texts = [f"the {rng.choice(['film', 'book'])} is {['bad', 'good'][label]}" for label in labels]
        write(root / "SST-2" / f"{split}.tsv", ["sentence", "label"], zip(texts, labels))
        pairs = [(i, text, "a fine film", 5.0 * label) for i, (text, label) in enumerate(zip(texts, labels))]
        write(root / "STS-B" / f"{split}.tsv", ["index", "sentence1", "sentence2", "score"], pairs)
        for name in {"train": ["train"], "dev": ["dev_matched", "dev_mismatched"]}.get(split, [f"{split}_matched"]):
            three = [(text, "a poor book", ["contradiction", "neutral"][label]) for text, label in zip(texts, labels)]
            write(root / "MNLI" / f"{name}.tsv", ["sentence1", "sentence2", "gold_label"], three)
    return root


def write(path, header, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join("\t".join(map(str, row)) for row in (header, *rows)) + "\n")


def run(programs, root, output, task, *more):
    given = ["--task", task, "--glue", root, "--bert", root, "--output", output, "--no-bf16", "--report_step", "2",
             "--batch_size", "8", "--epochs", "3", "--lr", "3e-3", "--dropout", "0"]  # fmt: skip
    programs.run_here("glue", *given, *more)
    return json.loads((output / "result.json").read_text())


def test_one_telling_word_is_learned_and_the_test_split_becomes_a_submission(programs, root, tmp_path):
    result = run(programs, root, tmp_path / "whole", "sst2", "--submit", "--compat_batch_means")
    assert result["accuracy"] == result["accuracy_batch_mean"] == 100
    assert {"BEST.pth", "report.html", "log.jsonl"} <= {path.name for path in (tmp_path / "whole").iterdir()}
    rows = (tmp_path / "whole" / "SST-2.tsv").read_text().splitlines()
    labels = [line.split("\t")[1] for line in (root / "SST-2" / "test.tsv").read_text().splitlines()[1:]]
    assert rows == ["index\tprediction", *(f"{i}\t{label}" for i, label in enumerate(labels))]


def test_a_regression_and_both_dev_sets_of_mnli_are_scored(programs, root, tmp_path):
    result = run(programs, root, tmp_path / "stsb", "stsb")
    assert result["pearson"] > 80 and result["spearman"] > 80
    result = run(programs, root, tmp_path / "mnli", "mnli", "--epochs", "8")
    assert result["accuracy"] == result["accuracy_mismatched"] > 90


def test_a_resumed_run_ends_with_the_same_bits(programs, root, tmp_path):
    from clip_vl.engine.errors import Interrupted

    run(programs, root, tmp_path / "one", "sst2", "--checkpoint_steps", "5")
    with pytest.raises(Interrupted):
        stop_after(programs, root, tmp_path / "two")
    run(programs, root, tmp_path / "two", "sst2", "--checkpoint_steps", "5", "--resume")
    programs.same_run(tmp_path / "one", tmp_path / "two")


def stop_after(programs, root, output, updates=11):
    """Run until that update, then as after a signal."""
    from clip_vl.engine import run as engine_run

    saved = engine_run.Run._save_if_due

    def stopping(self):
        self.updater.stopped = self.updater.update == updates
        saved(self)

    engine_run.Run._save_if_due = stopping
    try:
        run(programs, root, output, "sst2", "--checkpoint_steps", "5")
    finally:
        engine_run.Run._save_if_due = saved


def test_the_text_encoder_of_a_student_is_fine_tuned_with_the_pooler_of_bert(root, tmp_path):
    from clip_vl.glue import GlueFlags, build_model

    text = BertConfig(vocab_size=5 + len(WORDS), **SIZES)
    image = ImageEncoderSpec(blocks=1, width=24, heads=2, hidden=48, patch=4, resolution=8)
    student = Student(StudentSpec(image, text))
    torch.save({"state_dict": {f"model.{n}": t for n, t in student.state_dict().items()}}, tmp_path / "epoch_1.pt")
    model = build_model(GlueFlags(bert=str(root), load=str(tmp_path / "epoch_1.pt")), 2)
    for name, tensor in student.text_model.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor)
    bert = torch.load(root / "pytorch_model.bin", weights_only=True)
    assert torch.equal(model.pooler.dense.weight, bert["bert.pooler.dense.weight"])
