"""Tables of captions: CSV, TSV, Parquet, JSON, JSON lines; and what is said of tables that are wrong."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from data_files import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from support import refused

from petlbench.datasets.load import load
from petlbench.datasets.options import TableOptions
from petlbench.datasets.readers.table import read_table

ROWS = [
    {"image": "b.jpg", "caption": "a port, seen from above", "split": "train", "class": "port"},
    {"image": "b.jpg", "caption": "NA", "split": "train", "class": "port"},
    {"image": "a.jpg", "caption": 'the "old" lake', "split": "validation", "class": "lake"},
    {"image": "c.jpg", "caption": "null", "split": "TEST", "class": ""},
]


def write(folder, name, rows=ROWS):
    path = folder / name
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        quoted = (mark.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines)
        path.write_text("\n".join(quoted) + "\n", encoding="utf-8")
    return path


def text(folder, content, name="set.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["set.csv", "set.tsv", "set.parquet", "set.json", "set.jsonl"])
def test_every_kind_of_table_gives_the_same_splits(tmp_path, name):
    splits = read_table(write(tmp_path, name), tmp_path / "images")
    assert list(splits) == ["train", "val", "test"]
    assert splits["train"].captions == ("a port, seen from above", "NA") and splits["train"].owner.tolist() == [0, 0]
    assert splits["val"].captions == ('the "old" lake',) and splits["test"].captions == ("null",)
    assert splits["train"].images[0].path == tmp_path / "images" / "b.jpg"
    assert splits["train"].classes == ("lake", "port") and splits["test"].labels.tolist() == [-1]


def test_several_caption_columns_and_names_of_ones_own(tmp_path):
    path = text(tmp_path, "Filename;raw;raw_2;raw_1\na_1.jpg;x;z;y\nb_1.jpg;v;;\n")
    split = read_table(path, tmp_path, TableOptions(labels="prefix"))["train"]
    assert (
        split.captions == ("x", "y", "z", "v") and split.owner.tolist() == [0, 0, 0, 1] and split.classes == ("a", "b")
    )
    path = text(tmp_path, "bild,satz,teil,art\na.jpg,x,aus,see\nb.jpg,y,train,see\n")
    refused(lambda: read_table(path, tmp_path), "image_column", "bild, satz, teil, art")
    refused(lambda: read_table(path, tmp_path, TableOptions(image_column="bild")), "caption_columns")
    options = TableOptions(image_column="bild", caption_columns="satz", split_column="teil", class_column="art")
    refused(lambda: read_table(path, tmp_path, options), f"{path}:2", "'aus'", "splits={aus: train}")
    splits = read_table(path, tmp_path, options.model_copy(update={"splits": {"aus": "drop"}}))
    assert splits["train"].captions == ("y",) and splits["train"].classes == ("see",)
    refused(lambda: read_table(path, tmp_path, TableOptions(image_column="bilt")), "`bilt`", "did you mean `bild`?")


def test_cells_with_lists_and_captions_by_picture_name(tmp_path):
    rows = [{"file_name": "a.jpg", "captions": ["x", "y"]}, {"file_name": "b.jpg", "captions": ["z"]}]
    for name in ("set.parquet", "set.json"):
        assert read_table(write(tmp_path, name, rows), tmp_path)["train"].captions == ("x", "y", "z")
    path = text(tmp_path, '{"a.jpg": ["x", "y"], "b.jpg": "z"}', "names.json")
    assert read_table(path, tmp_path)["train"].owner.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "cell",
    ["['a port', \"a lake's shore\"]", '["a port", "a lake\'s shore"]', "['a port'\n \"a lake's shore\"]"],
    ids=["list", "json", "array"],
)
def test_lists_that_became_text_are_lists_again(tmp_path, cell):
    quoted = cell.replace('"', '""')
    split = read_table(text(tmp_path, f'image,caption\na.jpg,"{quoted}"\nb.jpg,[sic] a field\n'), tmp_path)["train"]
    assert split.captions == ("a port", "a lake's shore", "[sic] a field") and split.owner.tolist() == [0, 0, 1]


@pytest.mark.parametrize("cell", ["['a port', None]", "['a port' + 'x']", "['a port]", "['a', b'port']"])
def test_what_only_begins_like_a_list_is_refused(tmp_path, cell):
    path = text(tmp_path, f'image,caption\na.jpg,"{cell}"\n')
    refused(lambda: read_table(path, tmp_path), f"{path}:2", "`caption`", "begins like a list of captions")


def test_a_table_for_each_split(tmp_path):
    for part in ("train", "val", "test"):
        text(tmp_path, f"image,caption\n{part}.jpg,of {part}\n", f"rs_{part}.csv")
    assert {name: split.captions for name, split in read_table(tmp_path, tmp_path).items()} == {
        "train": ("of train",),
        "val": ("of val",),
        "test": ("of test",),
    }
    text(tmp_path, "image,caption\ntrain.jpg,again\n", "rs_test.csv")
    refused(lambda: read_table(tmp_path, tmp_path), "'train.jpg'", "in train and in test")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("file,words\na.jpg,x\n", ["no column", "file, words", "image_column"]),
        ("image,words\na.jpg,x\n", ["no column with captions", "image, words", "caption_columns"]),
        ("image,caption\na.jpg,x, y\n", [":2: 3 cells", "2 columns", "quote captions that hold ','"]),
        ("image,caption\na.jpg\n", [":2: 1 cells"]),
        ("image,caption\na.jpg,x\n,y\n", [":3", "column `image` is empty"]),
        ("image,caption\na.jpg,x\nb.jpg, \n", [":3", "'b.jpg'", "blank caption", "blank=drop"]),
        ("image,caption,split\na.jpg,x,trian\n", [":2", "'trian'", "did you mean `train`?"]),
        ("image,caption,split\na.jpg,x,\n", [":2", "column `split` is empty"]),
        ("image,caption,split\na.jpg,x,train\na.jpg,y,test\n", [":3", "split of 'a.jpg'", ":2"]),
        ("image,caption,class\na.jpg,x,lake\na.jpg,y,port\n", [":3", "class of 'a.jpg'", "'lake'"]),
        ("image,caption,caption\na.jpg,x,y\n", [":1", "two columns are named 'caption'"]),
        ('image,caption\na.jpg,"x\n', [":2", "check the quotes"]),
        ("image,caption\n../a.jpg,x\n", ["'../a.jpg'", "leads out"]),
        ("image,caption\n/a.jpg,x\n", ["'/a.jpg'", "leads out"]),
        ("image,caption\n", ["no rows"]),
        ("", ["first line is blank"]),
        ("image,caption\na.jpg,süß\n".encode("latin-1"), [":2", "not UTF-8"]),
        ("image,caption\na.jpg,x\n".encode("utf-16"), ["UTF-16", "save the file as UTF-8"]),
    ],
)
def test_wrong_tables_are_named_with_the_line(tmp_path, content, told):
    path = text(tmp_path, content)
    refused(lambda: read_table(path, tmp_path), str(path), *told)


def test_lines_are_counted_through_quoted_line_ends(tmp_path):
    path = text(tmp_path, 'image,caption\na.jpg,"two\nlines"\nb.jpg\n')
    refused(lambda: read_table(path, tmp_path), f"{path}:4: 1 cells")


def test_damaged_parquet_and_json(tmp_path):
    path = write(tmp_path, "set.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    refused(lambda: read_table(path, tmp_path), str(path), "cannot be read", "copy it again")
    path = text(tmp_path, '[{"image": "a.jpg",\n "caption": }]', "set.json")
    refused(lambda: read_table(path, tmp_path), f"{path}:2:", "not valid JSON")
    refused(lambda: read_table(text(tmp_path, '["a.jpg"]', "set.json"), tmp_path), "[0]", "a text")
    refused(lambda: read_table(text(tmp_path, "{}", "set.json"), tmp_path), "an object", "list of objects")
    path = text(tmp_path, '{"image": "a.jpg", "caption": "x"}\n{"image": "b.jpg"\n', "set.jsonl")
    refused(lambda: read_table(path, tmp_path), f"{path}:2:", "not valid JSON")
    refused(
        lambda: read_table(text(tmp_path, '[{"image": "a.jpg", "caption": 3}]', "x.json"), tmp_path), "[0]", "holds 3"
    )
    nested = pa.Table.from_pylist([{"image": {"bytes": b"", "path": "a"}, "caption": "x"}])
    pa.parquet.write_table(nested, tmp_path / "inside.parquet")
    refused(lambda: read_table(tmp_path / "inside.parquet", tmp_path), "`image`", "format=huggingface")


def test_the_custom_card_reads_a_folder_of_pictures_and_a_table(tmp_path):
    write(tmp_path, "captions.csv")
    for seed, name in enumerate("abc"):
        write_picture(tmp_path / "tiles" / f"{name}.png", seed=seed)
    splits = load("custom", tmp_path)
    assert splits["train"].images[0].path == tmp_path / "tiles" / "b.png", "folder and extension are found"
    assert splits["train"].images[0].name == "b.jpg"
    assert splits["train"].images[0].open().size == (40, 32)
    (tmp_path / "tiles" / "b.png").unlink()
    refused(load("custom", tmp_path)["train"].images[0].open, "b.png", "picture not found", "b.jpg")


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip), min_size=1, max_size=8
    )
)
@settings(max_examples=25, deadline=None)
def test_any_caption_survives_quoting(tmp_path_factory, captions):
    folder = tmp_path_factory.mktemp("set")
    rows = [{"image": f"{n}.jpg", "caption": caption} for n, caption in enumerate(captions)]
    split = read_table(write(folder, "set.csv", rows), folder)["train"]
    assert split.captions == tuple(caption.strip() for caption in captions)
