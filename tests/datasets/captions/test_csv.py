"""Tables of captions: held to the csv module's own writer, and what each bad line is told."""

import csv
import pickle

import pytest

from clip_vl.datasets.captions import csv as caption_csv
from clip_vl.datasets.captions.csv import open_csv
from clip_vl.datasets.captions.table import BATCH, TableWriter
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.storage.cache import writable_root
from clip_vl.engine.errors import DataError, UserError
from clip_vl.flags.captions import SourceFlags

HEADER = "filepath,title\n"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


def opened(folder, text, **settings):
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return open_csv(path, SourceFlags(**settings), folder / "cache")


def told(folder, text, error=DataError, **settings):
    with pytest.raises(error) as caught:
        opened(folder, text, **settings)
    return str(caught.value).replace(str(folder), "DIR")


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_rows_come_back_as_the_csv_module_wrote_them(tmp_path, separator):
    captions = ['a "quoted" word', "commas, tabs\tand; bars|", "two\nlines", "zwölf Äpfel", " spaces "]
    path = tmp_path / "pairs.tsv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["number", "title", "filepath"])
        writer.writerows([i, caption, f"images/{i}.jpg"] for i, caption in enumerate(captions))
    source = open_csv(path, SourceFlags(), tmp_path / "cache")
    assert [source.captions(row) for row in range(len(source))] == [[caption.strip()] for caption in captions]
    assert source.name(2) == str(tmp_path / "images/2.jpg")
    assert source.label(0) == -1 and source.num_classes == 0


def test_the_files_bytes_are_read_and_a_missing_one_is_damaged(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"content")
    source = opened(tmp_path, HEADER + "a.jpg,one\nb.jpg,two\na.jpg,three\n")
    assert source.read(0) == b"content"
    with pytest.raises(DamagedImage, match=r"b\.jpg: cannot be read: No such file"):
        source.read(1)
    assert source.image_id(0) == source.image_id(2) != source.image_id(1)


def test_classes_are_read_and_counted(tmp_path):
    source = opened(tmp_path, "filepath,title,y\na.jpg,one,3\nb.jpg,two,-1\n", csv_label_key="y")
    assert [source.label(0), source.label(1), source.num_classes] == [3, -1, 4]


def test_a_pickled_source_is_its_paths_and_reads_the_same(tmp_path):
    source = opened(tmp_path, HEADER + "".join(f"{i}.jpg,caption {i}\n" for i in range(5000)))
    data = pickle.dumps(source)
    assert len(data) < 1000
    assert pickle.loads(data).captions(4321) == ["caption 4321"]


def test_the_table_is_built_once_and_again_for_changed_content(tmp_path, monkeypatch):
    first = opened(tmp_path, HEADER + "a.jpg,one\n")
    monkeypatch.setattr(caption_csv, "_read_rows", None)
    assert opened(tmp_path, HEADER + "a.jpg,one\n").digest == first.digest
    with pytest.raises(TypeError):
        opened(tmp_path, HEADER + "a.jpg,changed\n")


def test_no_more_than_a_batch_of_rows_is_in_memory_while_building(tmp_path, monkeypatch):
    ahead, most = [0], [0]

    def counted(rows):
        for row in rows:
            ahead[0] += 1
            most[0] = max(most[0], ahead[0])
            yield row

    def extend(writer, records, write=TableWriter.extend):
        write(writer, records)
        ahead[0] -= len(records)

    read = caption_csv._read_rows
    monkeypatch.setattr(caption_csv, "_read_rows", lambda *given: counted(read(*given)))
    monkeypatch.setattr(TableWriter, "extend", extend)
    source = opened(tmp_path, HEADER + "".join(f"images/{i:08d}.jpg,caption {i}\n" for i in range(20_000)))
    assert len(source) == 20_000 and ahead == [0]
    assert most[0] <= BATCH


def test_a_flickr_file_is_split_at_its_first_jpg(tmp_path):
    text = 'image,caption\n1.jpg,A man, a dog\n1.jpg,"Two ""big"" dogs, too"\n2.JPG,says a.jpg, twice\n'
    source = opened(tmp_path, text)
    assert source.captions(0) == ["A man, a dog", 'Two "big" dogs, too']
    assert source.captions(1) == ["says a.jpg, twice"]
    source = opened(tmp_path, "image,caption\n1.png,a cat, and a dog\nb.tiff,a dog, and a cat\n")
    assert [source.captions(row) for row in (0, 1)] == [["a cat, and a dog"], ["a dog, and a cat"]]
    assert "pairs.csv:2: the name of an image file" in told(tmp_path, "image,caption\n1.xyz,a cat, and\n")


def test_image_and_caption_may_be_plain_csv_of_any_extension(tmp_path):
    source = opened(tmp_path, 'image,caption\r\na.xyz,"a red car, parked"\r\na.xyz,"two\r\nlines"\r\nb.png,x\r\n')
    assert [source.captions(row) for row in (0, 1)] == [["a red car, parked", "two\r\nlines"], ["x"]]
    assert opened(tmp_path, "image\tcaption\na.png\tx\n").captions(0) == ["x"]


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("a.jpg,one,two", "DIR/pairs.csv:3: the row has 3 columns, the header 2"),
        (",a dog", "DIR/pairs.csv:3: '' is no path of an image"),
        ('a.jpg,"cut short', "DIR/pairs.csv:3: the row that starts here cannot be read"),
        ('a.jpg,"a" dog', "DIR/pairs.csv:3: the row that starts here cannot be read"),
        ("../a.jpg,a dog", "DIR/pairs.csv:3: '../a.jpg' leaves the folder of the images"),
        ("x/../../a.jpg,a dog", "DIR/pairs.csv:3: 'x/../../a.jpg' leaves the folder of the images"),
        ("/etc/passwd,a dog", "DIR/pairs.csv:3: '/etc/passwd' is not below DIR"),
        ("s3://bucket/a.jpg,a dog", "DIR/pairs.csv:3: 's3://bucket/a.jpg' is a remote address"),
        ("a\x00.jpg,a dog", "DIR/pairs.csv:3:"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, sentence):
    assert told(tmp_path, f"{HEADER}good.jpg,a cat\n{line}\n").startswith(sentence)


def test_an_absolute_path_below_the_folder_of_the_images_is_the_same_image(tmp_path):
    images = tmp_path / "images"
    source = opened(tmp_path, f"{HEADER}{images}/a.jpg,one\na.jpg,two\n", images_dir=str(images))
    assert source.name(0) == source.name(1) == str(images / "a.jpg")


def test_a_blank_caption_is_left_out_and_a_list_is_several_captions(tmp_path, capsys):
    source = opened(tmp_path, HEADER + 'a.jpg,"[""one"", ""two"", "" ""]"\nb.jpg, \nc.jpg,three\n')
    assert [source.captions(row) for row in range(len(source))] == [["one", "two"], ["three"]]
    assert "2 of 5 captions are left out (the caption is blank: 2, first " in capsys.readouterr().out
    with pytest.raises(DataError, match=r"2 of 3 captions are left out .*share of 0\.5 may be"):
        opened(tmp_path, HEADER + "a.jpg,\nb.jpg, \nc.jpg,three\n")
    assert len(opened(tmp_path, HEADER + "a.jpg,\nb.jpg, \nc.jpg,three\n", max_left_out=0.7)) == 1
    assert "half of a surrogate" in told(tmp_path, HEADER + 'a.jpg,"[""party \\ud83c""]"\n')


def test_splits_pick_rows_by_their_column(tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("filepath,title,split\na.jpg,one,train\nb.jpg,two,test\nc.jpg,three,val\n")

    def captions(splits):
        source = open_csv(tmp_path / "pairs.csv", SourceFlags(), tmp_path / "cache", splits)
        return [source.captions(row)[0] for row in range(len(source))]

    assert captions(["test"]) == ["two"] and captions(["train", "val"]) == ["one", "three"] and len(captions(None)) == 3
    assert "pairs.csv: the rows of all splits are read; " in capsys.readouterr().out
    with pytest.raises(UserError, match="has no row of the split dev; it has test, train, val"):
        captions(["dev"])


def test_wrong_columns_and_classes_are_answered_with_what_is_there(tmp_path):
    sentence = told(tmp_path, "path,text\na.jpg,one\n", UserError)
    assert sentence == "DIR/pairs.csv has no column 'filepath' (--csv_img_key); its columns are 'path', 'text'"
    sentence = told(tmp_path, "filepath,title,y\na.jpg,one,cat\n", csv_label_key="y")
    assert "2 columns 'title'" in told(tmp_path, "filepath,title,title\na.jpg,one,two\n", UserError)
    assert sentence == "DIR/pairs.csv:2: the class 'cat' must be an integer from 0, or -1 for none"
    assert "must be one character" in told(tmp_path, HEADER, UserError, csv_separator="::")
    assert "is empty" in told(tmp_path, "")
    assert "holds no captioned image" in told(tmp_path, HEADER)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(HEADER.encode() + b"a.jpg,caf\xe9\n")
    with pytest.raises(DataError, match="byte 0xe9 is not UTF-8"):
        open_csv(tmp_path / "pairs.csv", SourceFlags(), tmp_path / "cache")
