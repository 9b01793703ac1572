"""The parts of a data root: files and image folders, their purposes, and the shell commands that fetch them."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from clip_vl.datasets.images.collections import COCO_FOLDERS, VG_FOLDER
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.official.files import OFFICIAL

MAIN_PURPOSES = ("pretrain", "vqa", "test")
PURPOSES = (*MAIN_PURPOSES, "weights", *TASKS)
COCO = "https://s3.amazonaws.com/images.cocodataset.org"  # images.cocodataset.org has no certificate
VG_IMAGES = "https://cs.stanford.edu/people/rak248/VG_100K_2"
VG_TEXTS = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
LXMERT = "https://nlp.cs.unc.edu/data/lxmert_data"
LXMERT_TABLES = "https://raw.githubusercontent.com/airsplay/lxmert/master/data"
VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"
SNLI_VE = "https://storage.googleapis.com/allennlp-public-data/snli-ve"
FLICKR30K = "https://shannon.cs.illinois.edu/DenotationGraph"  # sends an address after a form is filled in
NLVR = "https://github.com/lil-lab/nlvr"
NLVR2_TEXTS = "https://raw.githubusercontent.com/lil-lab/nlvr/master/nlvr2/data"
NLVR2_IMAGES = "https://lil.nlp.cornell.edu/resources/NLVR2"
BERT = "https://huggingface.co/google-bert/bert-base-uncased/resolve/main"
CLIP = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True)
class Part:
    """A file or an image folder of a data root.

    path:    below the data root
    uses:    the purposes that need it; none: optional
    what:    its description
    fetch:   shell command, with {root} for the data root
    sha256:  digest of the published file
    instead: name of another file in the same folder that replaces it
    is_list: whether it is a list of entries that name images
    is_optional: whether its `uses` do not need it
    """

    path: str
    uses: tuple
    what: str
    fetch: str
    sha256: str | None = None
    instead: str | None = None
    is_list: bool = False
    is_optional: bool = False

    def find(self, root):
        """The path of the file or folder if it exists and is not empty; else None."""
        named = Path(root, self.path)
        for path in (named, named.with_name(self.instead or named.name)):
            if any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0:
                return path
        return None

    def command(self, root, again=False):
        """The shell command that fetches the part; `again`: after removing a damaged file, which wget would keep."""
        remove = f"rm {shlex.quote(str(Path(root, self.path)))} && " if again else ""
        return remove + self.fetch.format(root=shlex.quote(str(root)))


def _get(url, folder):
    return f"wget -c {url} -P {{root}}/{folder}"


def _get_zip(url, folder, only=""):
    """Command that fetches and unpacks an archive; with `only` that member alone, into the folder itself."""
    archive = f"{{root}}/{folder}/{url.rsplit('/', 1)[1]}"
    member = f" -j {archive} '*{only}'" if only else f" {archive}"
    return f"{_get(url, folder)} && unzip -q -n{member} -d {{root}}/{folder}"


def _coco_images(name):
    uses = {"train2014": ("pretrain", "vqa"), "val2014": ("pretrain", "vqa"), "test2015": ("test",)}
    return Part(f"mscoco/{name}", uses[name], f"COCO {name} images", _get_zip(f"{COCO}/zips/{name}.zip", "mscoco"))


def _vg_images():
    archives = [f"{VG_IMAGES}/{name}.zip" for name in ("images", "images2")]
    folder = str(Path(VG_FOLDER).parent)
    unpack = [f"unzip -q -n -j {{root}}/{folder}/{name}.zip -d {{root}}/{VG_FOLDER}" for name in ("images", "images2")]
    fetch = " && ".join([_get(archive, folder) for archive in archives] + unpack)
    return Part(VG_FOLDER, ("pretrain",), "Visual Genome images", fetch)


def _nlvr2_images(split):
    """The official archive has the images of train in a hundred folders; unzip -j drops the folders."""
    folder, archive = f"nlvr2_raw_images/{split}", f"{split}_img.zip"
    unpack = f"unzip -q -n -j {{root}}/nlvr2_raw_images/{archive} '*.png' -d {{root}}/{folder}"
    fetch = f"{_get(f'{NLVR2_IMAGES}/{archive}', 'nlvr2_raw_images')} && {unpack}"
    return Part(folder, ("nlvr2",), f"NLVR2 images of {split}", fetch, is_optional=split == "test2")


def _flickr30k():
    unpack = "tar -xzf flickr30k-images.tar.gz --strip-components 1 -C {root}/flickr30k_images"
    fetch = f"mkdir -p {{root}}/flickr30k_images && {unpack}  # the archive is given on request by {FLICKR30K}"
    return Part("flickr30k_images", ("snli_ve",), "Flickr30k images", fetch)


def _converted(task, split, what, is_optional=False):
    fetch = f"python -m clip_vl.prepare convert --need {task} --data_root {{root}}"
    return Part(f"{task}/{split}.json", (task,), what, fetch, is_list=True, is_optional=is_optional)


def _official_lines(name, what, url):
    """A file that gets another name, since `official` has no subfolders."""
    fetch = f"mkdir -p {{root}}/{OFFICIAL} && wget {url} -O {{root}}/{OFFICIAL}/{name}"
    return Part(f"{OFFICIAL}/{name}", (), what, fetch)


def _official_snli_ve(split):
    name = f"snli_ve_{split}.jsonl"
    fetch = f"{_get(f'{SNLI_VE}/{name}.gz', OFFICIAL)} && gunzip -k -f {{root}}/{OFFICIAL}/{name}.gz"
    return Part(f"{OFFICIAL}/{name}", (), "SNLI-VE hypotheses", fetch, instead=f"ve_{split}.db")


def _official_nlvr(split):
    """An archive of a folder of the official repository, which has the images as single files."""
    clone = f"{{{{ test -d {{root}}/{OFFICIAL}/nlvr || git clone -q --depth 1 {NLVR} {{root}}/{OFFICIAL}/nlvr; }}}}"
    fetch = f"{clone} && git -C {{root}}/{OFFICIAL}/nlvr archive -o ../nlvr_{split}.zip HEAD nlvr/{split}"
    return Part(f"{OFFICIAL}/nlvr_{split}.zip", (), f"NLVR {split}, sentences and images", fetch)


def _bert(name, what, uses, instead=None):
    folder = "bert-base-uncased"
    return Part(f"{folder}/{name}", uses, what, _get(f"{BERT}/{name}", folder), instead=instead)


def _table(path, uses, what, sha256):
    return Part(path, uses, what, _get(f"{LXMERT_TABLES}/{path}", str(Path(path).parent)), sha256)


def _lxmert(path, uses, what):
    return Part(path, uses, what, _get(f"{LXMERT}/{path}", str(Path(path).parent)), is_list=True)


def _official(name, what, url):
    return Part(f"{OFFICIAL}/{name}", (), what, _get_zip(url, OFFICIAL, only=name))


PARTS = (
    _lxmert("lxmert/mscoco_train.json", ("pretrain",), "sentences of COCO train2014"),
    _lxmert("lxmert/mscoco_nominival.json", ("pretrain",), "sentences of COCO val2014 without minival"),
    _lxmert("lxmert/mscoco_minival.json", ("pretrain",), "sentences of the held-out images"),
    _lxmert("lxmert/vgnococo.json", ("pretrain",), "sentences of the VG images outside COCO"),
    _table(
        "lxmert/all_ans.json", ("pretrain",), "answers of pre-training",
        "b860c6cd7b8fe3afa1e5308933664c37bc8728eff967e9845543169a06d012b8",
    ),
    _lxmert("vqa/train.json", ("vqa",), "VQA v2 questions of COCO train2014"),
    _lxmert("vqa/nominival.json", ("vqa",), "VQA v2 questions of COCO val2014 without minival"),
    _lxmert("vqa/minival.json", ("vqa",), "VQA v2 questions of the held-out images"),
    _lxmert("vqa/test.json", ("test",), "VQA v2 questions of COCO test2015"),
    _table(
        "vqa/trainval_ans2label.json", ("vqa", "test"), "VQA answers, by answer",
        "ab3b0707b4c78ff28587f0131cee4d63b0e0c0d22ad82a89e809521abdc412dc",
    ),
    _table(
        "vqa/trainval_label2ans.json", ("vqa", "test"), "VQA answers, by class",
        "e72e568a6303130f5a627db06360605ee3b306366ff463aa5153d782adc12a7d",
    ),
    *(_coco_images(name) for name in COCO_FOLDERS),
    _vg_images(),
    _bert("vocab.txt", "BERT's vocabulary", (*MAIN_PURPOSES, *TASKS)),
    _bert("config.json", "BERT's layer sizes", (*MAIN_PURPOSES, *TASKS)),
    _bert("model.safetensors", "BERT's weights", ("weights",), instead="pytorch_model.bin"),
)  # fmt: skip

TASK_PARTS = (
    *(_lxmert(f"gqa/{split}.json", ("gqa",), f"GQA questions of {split}") for split in ("train", "valid", "testdev")),
    _converted("gqa", "submit", "GQA questions of the server", is_optional=True),
    _table(
        "gqa/trainval_ans2label.json", ("gqa",), "GQA answers, by answer",
        "5d9d8353151c1b7bcb6e612fc532af2e7d418fa8c92056de4a4b5da2ba9fdf9a",
    ),
    _table(
        "gqa/trainval_label2ans.json", ("gqa",), "GQA answers, by class",
        "3ba2e3668760dfcfcfe40dc58711a7c551ca7da48be87a7fdd3fae9963f8264d",
    ),
    Part("gqa_raw_images/images", ("gqa",), "GQA images", _get_zip(f"{GQA}/images.zip", "gqa_raw_images")),
    *(_converted("snli_ve", split, f"SNLI-VE hypotheses of {split}") for split in ("train", "dev", "test")),
    _flickr30k(),
    *(_converted("nlvr2", split, f"NLVR2 statements of {split}") for split in ("train", "dev", "test1")),
    _converted("nlvr2", "test2", "NLVR2 statements of test2", is_optional=True),
    *(_nlvr2_images(split) for split in ("train", "dev", "test1", "test2")),
    *(_converted("nlvr", split, f"NLVR statements of {split}") for split in ("train", "dev", "test")),
    Part("nlvr_raw_images", ("nlvr",), "NLVR images", _converted("nlvr", "train", "").fetch),
)  # fmt: skip

OFFICIAL_PARTS = (
    _official("v2_OpenEnded_mscoco_train2014_questions.json", "VQA questions", f"{VQA}/v2_Questions_Train_mscoco.zip"),
    _official("v2_OpenEnded_mscoco_val2014_questions.json", "VQA questions", f"{VQA}/v2_Questions_Val_mscoco.zip"),
    _official("v2_OpenEnded_mscoco_test2015_questions.json", "VQA questions", f"{VQA}/v2_Questions_Test_mscoco.zip"),
    _official("v2_mscoco_train2014_annotations.json", "VQA answers", f"{VQA}/v2_Annotations_Train_mscoco.zip"),
    _official("v2_mscoco_val2014_annotations.json", "VQA answers", f"{VQA}/v2_Annotations_Val_mscoco.zip"),
    _official("captions_train2014.json", "COCO captions", f"{COCO}/annotations/annotations_trainval2014.zip"),
    _official("captions_val2014.json", "COCO captions", f"{COCO}/annotations/annotations_trainval2014.zip"),
    _official("image_data.json", "VG images and their COCO ids", f"{VG_TEXTS}/image_data.json.zip"),
    _official("region_descriptions.json", "VG region descriptions", f"{VG_TEXTS}/region_descriptions.json.zip"),
    _official("question_answers.json", "VG questions and answers", f"{VG_TEXTS}/question_answers.json.zip"),
    _official("train_balanced_questions.json", "GQA questions", f"{GQA}/questions1.2.zip"),
    _official("val_balanced_questions.json", "GQA questions", f"{GQA}/questions1.2.zip"),
    _official("testdev_balanced_questions.json", "GQA questions", f"{GQA}/questions1.2.zip"),
    _official("submission_all_questions.json", "GQA questions without answers", f"{GQA}/questions1.2.zip"),
    *(_official_snli_ve(split) for split in ("train", "dev", "test")),
    *(
        _official_lines(f"nlvr2_{split}.json", "NLVR2 statements", f"{NLVR2_TEXTS}/{split}.json")
        for split in ("train", "dev", "test1", "test2")
    ),
    *(_official_nlvr(split) for split in ("train", "dev", "test")),
)


def clip_parts(sha256_of):
    """OpenAI's CLIP checkpoints, whose addresses contain their digests; only RN50 is needed.

    sha256_of: {name: published digest}
    """
    return tuple(
        Part(
            path=f"clip/{name}.pt",
            uses=("weights",) if name == "RN50" else (),
            what=f"CLIP {name}, the image tower",
            fetch=_get(f"{CLIP}/{sha256}/{name}.pt", "clip"),
            sha256=sha256,
        )
        for name, sha256 in sha256_of.items()
    )
