"""The dual-encoder trainer as a user runs it: every loss, exact resume, caches, episodes, published commands."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import DataError, UserError
from clip_vl.flags.parser import parse

PAIRS = 24
SMALL = [
    "--image_model",
    "RN-micro",
    "--text_model",
    "RN-micro",
    "--image_resolution",
    "48",
    "--batch_size",
    "8",
    "--epochs",
    "2",
    "--warmup",
    "2",
    "--lr",
    "1e-3",
    "--report_step",
    "2",
    "--precision",
    "fp32",
    "--queue_size",
    "24",
    "--num_prototypes",
    "16",
    "--joint_projection_dim",
    "32",
]
LOSSES = [
    "InfoNCE",
    "UniCL",
    "CrossEntropy",
    "SigLIP",
    "SimReg",
    "SimReg-L1",
    "SimReg-SmoothL1",
    "VICReg",
    "BarlowTwins",
    "RKD",
    "CompRess-1q",
    "CompRess-2q",
    "SEED",
    "DINO",
    "ProtoCPC",
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder with pairs.tsv: coloured squares, their captions and their classes, and a small vocabulary."""
    root = tmp_path_factory.mktemp("pairs")
    colours = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "black": (20, 20, 20)}
    rng, lines = np.random.default_rng(0), ["filepath\ttitle\tlabel"]
    for number in range(PAIRS):
        label, (name, colour) = number % 4, list(colours.items())[number % 4]
        pixels = rng.integers(200, 255, (56, 64, 3), dtype=np.uint8)
        x, y = rng.integers(0, 32, 2)
        pixels[y : y + 24, x : x + 24] = colour
        Image.fromarray(pixels).save(root / f"{number}.jpg")
        lines.append(f"{number}.jpg\ta {name} square at {x} {y}\t{label}")
    (root / "pairs.tsv").write_text("\n".join(lines) + "\n")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "square", "at", *colours, *map(str, range(32))]
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    return root


def flags(pairs, output, *more):
    given = ["--train_data", pairs / "pairs.tsv", "--text_vocab", pairs, "--datasets_dir", pairs, "--output", output]
    return [str(flag) for flag in (*given, *SMALL, *more)]


def rows_of(programs, output):
    return [json.loads(line) for line in programs.log_rows(output)]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_resumes_to_the_same_bits(programs, pairs, tmp_path, loss):
    more = ["--loss", loss, "--csv_label_key", "label"] if loss in ("UniCL", "CrossEntropy") else ["--loss", loss]
    more += ["--image_head_n_layers", "1", "--text_head_n_layers", "1"] if loss == "CrossEntropy" else []
    programs.run("align", *flags(pairs, tmp_path / "whole", *more))
    programs.run("align", *flags(pairs, tmp_path / "broken", *more, "--stop_after_epoch", "1"))
    programs.run("align", *flags(pairs, tmp_path / "broken", *more, "--resume"))
    programs.same_run(tmp_path / "whole", tmp_path / "broken")
    losses = [row["loss"] for row in rows_of(programs, tmp_path / "whole")]
    assert len(losses) == 3 and np.isfinite(losses).all()


def test_resume_refuses_another_vocabulary(programs, pairs, tmp_path):
    words, run = tmp_path / "vocab.txt", flags(pairs, tmp_path / "run", "--text_vocab", tmp_path)
    words.write_text((pairs / "vocab.txt").read_text())
    programs.run_here("align", *run, "--stop_after_epoch", "1")
    words.write_text(words.read_text().replace("red", "pink"))
    with pytest.raises(UserError, match="the data changed since the run was started: --text_vocab"):
        programs.run_here("align", *run, "--resume")


def test_a_run_leaves_its_files_and_recall_of_held_out_pairs(programs, pairs, tmp_path):
    valid = ["--valid_data", pairs / "pairs.tsv", "--epochs", "1", "--eval_first"]
    programs.run("align", *flags(pairs, tmp_path / "run", *valid))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "args.json",
        "log.jsonl",
        "epoch_1.pt",
        "result.json",
        "report.html",
        "gallery.json",
        "checkpoints",
    } <= names
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["text_to_image_recall@1_n"] == PAIRS and 0 <= result["text_to_image_recall@1"] <= 100
    assert rows_of(programs, tmp_path / "run")[0]["epoch"] == 0
    saved = torch.load(tmp_path / "run" / "epoch_1.pt", weights_only=True)
    assert saved["epoch"] == 1 and {name.partition(".")[0] for name in saved["state_dict"]} == {
        "image_tower",
        "text_tower",
        "logit_scale",
        "quick_gelu",
    }


def test_two_processes_train_on_the_whole_batch_of_one(programs, pairs, tmp_path):
    """The first update of 2 x 4 pairs is that of 8: gradients cross the processes."""
    common = ["--epochs", "1", "--episode_size", "8", "--report_step", "1", "--opt", "sgd", "--warmup", "1"]
    weights = []
    for nproc in (1, 2):
        output = tmp_path / str(nproc)
        size = ["--batch_size", str(8 // nproc), "--image_model", "ViT-tiny"]
        programs.run("align", *flags(pairs, output, *common, *size), nproc=nproc)
        weights.append(load_latest(output / "checkpoints")[1]["model"])
    assert weights[0].keys() == weights[1].keys()
    for name, one in weights[0].items():
        assert torch.allclose(one, weights[1][name], atol=2e-6), name


def test_gradient_caching_changes_nothing_but_the_memory(programs, pairs, tmp_path):
    logs = []
    for name, more in (("plain", []), ("cached", ["--grad_cache", "3"])):
        run = flags(pairs, tmp_path / name, "--image_model", "ViT-tiny", "--report_step", "1", *more)
        programs.run("align", *run)
        logs.append([row["loss"] for row in rows_of(programs, tmp_path / name)])
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


@pytest.mark.parametrize("side", ["text", "image"])
def test_a_locked_tower_is_cached_and_trains_the_same(programs, pairs, tmp_path, side):
    logs = []
    more = [f"--lock_{side}_model", "--augmentation", "none", f"--{side}_head_n_layers", "1", "--report_step", "1"]
    for name, cache in (("tower", []), ("cached", ["--cache_teacher"])):
        programs.run("align", *flags(pairs, tmp_path / name, *more, *cache))
        logs.append([row["loss"] for row in rows_of(programs, tmp_path / name)])
    assert logs[0] == pytest.approx(logs[1], rel=2e-3)  # the cache holds float16
    names = load_latest(tmp_path / "cached" / "checkpoints")[1]["model"]
    assert not any(name.startswith(f"{side}_tower.") for name in names)


def test_episodes_of_protoclip_and_their_resume(programs, pairs, tmp_path):
    np.save(tmp_path / "external.npy", np.random.default_rng(0).normal(size=(PAIRS, 6)).astype(np.float32))
    more = [
        "--w_proto",
        "1",
        "--w_proto_external",
        "1",
        "--external_teacher",
        tmp_path / "external.npy",
        "--PBT",
        "--k",
        "4",
        "--projection_dim",
        "8",
        "--projection_hidden_dim",
        "16",
        "--target_temperature",
        "0.1",
        "--episode_size",
        "16",
        "--infonce_warmup_epoch",
        "1",
        "--epochs",
        "4",
        "--lit_start_epoch",
        "3",
        "--report_step",
        "1",
        "--checkpoint_steps",
        "1",
    ]
    programs.run("protoclip", *flags(pairs, tmp_path / "whole", *more))
    rows = rows_of(programs, tmp_path / "whole")
    assert [row["loss_proto"] > 0 for row in rows] == [False] * 2 + [True] * 2 + [False] * 4
    assert all(("loss_proto_external" in row) == (row["loss_proto"] > 0) for row in rows)
    assert [row["lr_image"] > 0 for row in rows] == [True] * 4 + [False] * 4

    published = ["--add-projection-head", "--distiller", "InfoNCE", *more]  # as of the original trainer
    code, text = programs.interrupt(
        "protoclip", *flags(pairs, tmp_path / "broken", *published), number=signal.SIGTERM, after=3
    )
    assert code == 75, text
    programs.run("protoclip", *flags(pairs, tmp_path / "broken", *published, "--resume"))
    programs.same_run(tmp_path / "whole", tmp_path / "broken")


def test_averaged_weights_are_what_is_written(programs, pairs, tmp_path):
    programs.run("align", *flags(pairs, tmp_path / "run", "--model_ema", "--model_ema_decay", "1.0", "--epochs", "1"))
    programs.run("align", *flags(pairs, tmp_path / "start", "--lr", "0", "--epochs", "1", "--wd", "0"))
    kept, start = (
        torch.load(tmp_path / name / "epoch_1.pt", weights_only=True)["state_dict"] for name in ("run", "start")
    )
    moved = load_latest(tmp_path / "run" / "checkpoints")[1]["model"]
    learned = [name for name, tensor in kept.items() if name.endswith("weight") and "bn" not in name]
    assert all(torch.equal(kept[name], start[name]) for name in learned)
    assert any(not torch.equal(kept[name], moved[name]) for name in learned)


def test_self_supervised_extras_add_their_losses(programs, pairs, tmp_path):
    programs.run("align", *flags(pairs, tmp_path / "run", "--BYOL", "--w_simcse", "0.5", "--epochs", "1"))
    assert {"loss_align", "loss_byol", "loss_simcse"} <= set(rows_of(programs, tmp_path / "run")[0])


def test_a_one_way_loss_leaves_its_teacher_as_it_was(programs, pairs, tmp_path):
    programs.run("align", *flags(pairs, tmp_path / "run", "--loss", "SEED", "--epochs", "1"))
    programs.run("align", *flags(pairs, tmp_path / "start", "--lr", "0", "--epochs", "1"))
    one, two = (
        torch.load(tmp_path / name / "epoch_1.pt", weights_only=True)["state_dict"] for name in ("run", "start")
    )
    text = [name for name in one if name.startswith("text_tower.")]
    assert text and all(torch.equal(one[name], two[name]) for name in text)


COMMANDS = [
    """--dataset-size 2500000 --episode-size 2500000 --train-data s3://bucket/pairs.csv --epochs 32 --save-frequency
    32 --batch-size 64 --workers 8 --linear-frequency 1 --zeroshot-frequency 1 --retrieval-frequency 1
    --nlp-eval-frequency 1 --eval-data-dir /data/Datasets --lr 5e-4 --warmup 2000 --wd 0.5 --max-grad-norm 5
    --image-model RN50 --image-model-tag openai --image-model-builder OpenCLIP --image-head-n-layers 0
    --text-model RN50 --text-model-tag openai --text-model-builder OpenCLIP --unlock-text-model
    --text-head-n-layers 0 --unlock-image-model --unlock-text-model --cache-dir cache/weights --distiller InfoNCE
    --report-to tensorboard --logs logs/codebase_test --copy-codebase --name CLIP-from-scratch-bs512-CC2.5M-32ep""",
    """--dataset-size 2500000 --episode-size 0 --train-data s3://bucket/pairs.csv --epochs 28 --save-frequency 28
    --batch-size 100 --workers 8 --linear-frequency 1 --zeroshot-frequency 1 --retrieval-frequency 1
    --nlp-eval-frequency 1 --eval-data-dir /data/Datasets --lr 1e-4 --warmup 2000 --wd 0.5 --max-grad-norm 5
    --image-model RN50 --image-model-tag openai --image-model-builder OpenCLIP --image-head-n-layers 0
    --text-model RN50 --text-model-tag openai --text-model-builder OpenCLIP --unlock-text-model
    --text-head-n-layers 0 --unlock-image-model --pretrained-image-model --unlock-text-model
    --pretrained-text-model --cache-dir cache/weights --distiller InfoNCE --report-to tensorboard --logs
    logs/codebase_test --copy-codebase --name U[RN50-h0]-U[CLIP-from-RN50]-bs800-8ep""",
    """--dataset-size 14000000 --episode-size 2000000 --train-data cache/yfcc_nori.csv --epochs 56 --save-frequency
    56 --batch-size 128 --workers 8 --linear-frequency 1 --zeroshot-frequency 1 --retrieval-frequency 1
    --nlp-eval-frequency 1 --eval-data-dir /data/Datasets --lr 1e-5 --warmup 2000 --wd 0.5 --max-grad-norm 5
    --image-model mobilenet_v3_large --image-model-builder torchvision --image-head-n-layers 2 --text-model RN50
    --text-model-tag openai --text-model-builder openclip --text-head-n-layers 0 --pretrained-image-model
    --lock-text-model --pretrained-text-model --cache-dir cache/weights --distiller InfoNCE --report-to
    tensorboard --logs logs/codebase_test --name L[mobilenet_v3_large-h2]-L[CLIP-from-RN50]-bs1024-YFCC-8ep-lr1e-5""",
]


@pytest.mark.parametrize("command", COMMANDS, ids=["scratch", "pretrained", "mobilenet"])
def test_a_published_command_parses_as_it_is_printed(command, capsys):
    from clip_vl.align import AlignFlags
    from clip_vl.flags.dual import recalled
    from clip_vl.flags.dual_training import (
        warn_of_name,
    )

    args = parse(AlignFlags, "doc", command.split())
    args = recalled(args).in_folder("align")
    warn_of_name(args)
    assert args.loss == "InfoNCE" and args.output.startswith("logs/codebase_test/") and args.num_workers == 8
    assert args.text_model_builder == "openclip" and args.weight_decay == 0.5 and args.datasets_dir == "/data/Datasets"
    said = capsys.readouterr().err
    assert "--zeroshot_frequency has no effect" in said
    is_third = args.image_model == "mobilenet_v3_large"  # its name says L[...], its flags train the tower
    assert ("calls the image tower locked; by the flags it trains" in said) == is_third and "text tower" not in said


BAD = [
    (["--csv_caption_key", "caption"], UserError, "'filepath', 'title', 'label'"),
    (["--loss", "InfoNSE"], UserError, "InfoNSE is not one of"),
    (["--lock_text_model", "--unlock_text_model"], UserError, "exclude each other"),
    (["--lock_text_model", "--lock_image_model", "--loss", "SimReg"], UserError, "everything is frozen"),
    (["--cache_teacher"], UserError, "locked tower"),
    (
        ["--image_head_n_layers", "1", "--text_head_n_layers", "1", "--joint_projection_dim", "-1"],
        UserError,
        "no width",
    ),
    (["--batch_size", "64"], UserError, "fewer than one batch"),
    (["--loss", "UniCL"], UserError, "label"),
    (["--external_teacher", "nothing.npy", "--add_projection_head", "--PBT"], UserError, "nothing.npy"),
    (["--opt", "nonsense"], UserError, "nonsense"),
    (["--train_data", "s3://bucket/pairs.csv"], UserError, "fetches nothing"),
    (["--grad_cache", "-1"], UserError, "grad_cache"),
    (["--save_frequency", "0"], UserError, "at least 1"),
    (["--use_bn_sync"], UserError, "for GPUs"),
    (["--opt", "sgd", "--beta1", "0.8"], UserError, "--beta1"),
    (["--w_simcse", "1", "--lock_text_model"], UserError, "locked"),
    (["--lock_image_model", "--cache_teacher", "--BYOL"], UserError, "one view"),
    (["--k", "25", "--add_projection_head"], UserError, "--k 25 clusters of an episode of 24"),
    (["--model_ema", "--model_ema_decay", "2"], UserError, "from 0 to 1"),
]


@pytest.mark.parametrize("more, error, sentence", BAD, ids=[" ".join(more[:2]) for more, *_ in BAD])
def test_bad_input_gets_one_sentence(programs, pairs, tmp_path, more, error, sentence):
    with pytest.raises(error, match=sentence):
        programs.run_here("protoclip" if "--k" in more or "--PBT" in more else "align",
                          *flags(pairs, tmp_path / "run", *more))  # fmt: skip


def test_too_many_damaged_images_end_a_run(programs, pairs, tmp_path):
    table = (pairs / "pairs.tsv").read_text().replace("\n3.jpg", "\nmissing.jpg")
    (pairs / "holes.tsv").write_text(table)
    with pytest.raises(DataError, match=r"missing\.jpg"):
        programs.run_here("align", *flags(pairs, tmp_path / "run", "--train_data", pairs / "holes.tsv"))
    more = ["--train_data", pairs / "holes.tsv", "--max_damaged", "0.1", "--epochs", "1"]
    done = programs.run("align", *flags(pairs, tmp_path / "tolerant", *more))
    assert "missing.jpg" in done.stdout and "another pair takes its place" in done.stdout


def test_a_loaded_checkpoint_brings_its_towers_along(programs, pairs, tmp_path):
    programs.run("align", *flags(pairs, tmp_path / "first", "--image_crop", "squash", "--epochs", "1"))
    given = [
        "--load",
        tmp_path / "first" / "epoch_1.pt",
        "--train_data",
        pairs / "pairs.tsv",
        "--batch_size",
        "8",
        "--epochs",
        "1",
        "--lr",
        "0",
        "--datasets_dir",
        pairs,
        "--precision",
        "fp32",
        "--output",
        tmp_path / "second",
    ]
    programs.run("align", *map(str, given))
    one, two = (torch.load(tmp_path / n / "epoch_1.pt", weights_only=True)["state_dict"] for n in ("first", "second"))
    assert one.keys() == two.keys() and torch.equal(
        one["text_tower.text_projection"], two["text_tower.text_projection"]
    )
    args = json.loads((tmp_path / "second" / "args.json").read_text())["args"]
    assert args["image_model"] == "RN-micro" and args["image_crop"] == "squash"


def test_a_dry_run_writes_nothing_and_flags_for_nothing_are_named(programs, pairs, tmp_path):
    more = ["--dry_run", "--checkpoint_steps", "1", "--PBT", "--model_ema_decay", "0.5"]
    done = programs.run_here("align", *flags(pairs, tmp_path / "run", *more))
    assert "nothing saved" in done.stdout and not list(tmp_path.rglob("*.safetensors"))
    assert "--PBT has no effect" in done.stderr and "--model_ema_decay has no effect" in done.stderr


def test_several_epochs_may_share_a_clustering(programs, pairs, tmp_path):
    more = [
        "--w_proto",
        "1",
        "--k",
        "4",
        "--projection_dim",
        "8",
        "--projection_hidden_dim",
        "16",
        "--episode_size",
        "16",
        "--clustering_frequency",
        "2",
    ]
    programs.run("protoclip", *flags(pairs, tmp_path / "run", *more))
    assert all(row["loss_proto"] > 0 for row in rows_of(programs, tmp_path / "run"))


def test_a_checkpoint_remembers_openais_gelu(programs, pairs, tmp_path):
    """Shapes cannot tell QuickGELU from GELU; a published model fine-tuned here must not come back with the other."""
    from clip_vl.align import AlignFlags
    from clip_vl.flags.dual import recalled
    from clip_vl.models.dual.build import build_dual_encoder
    from clip_vl.models.dual.spec import LossNeeds

    more = ["--image_model", "ViT-tiny", "--text_model", "ViT-tiny", "--epochs", "1", "--lr", "0", "--force_quick_gelu"]
    programs.run("align", *flags(pairs, tmp_path / "run", *more))
    (tmp_path / "run" / "args.json").unlink()  # the weights alone must say it
    given = ["--load", tmp_path / "run" / "epoch_1.pt", "--image_model", "ViT-tiny", "--text_model", "ViT-tiny"]
    args = parse(AlignFlags, "doc", [*map(str, given), "--text_vocab", str(pairs), "--image_resolution", "48"])
    args = recalled(args)
    model = build_dual_encoder(args.towers(), LossNeeds(scale=True))
    assert model.image_tower.activation == model.text_tower.activation == "quick_gelu"
    assert model.image_tower.transformer["resblocks"][0].quick_gelu
