"""Published rows: complete, arithmetically checked, in agreement with what methods declare, and refused where mistyped."""

import pytest
from support import ROOT

from petlbench.leaderboard import published as module
from petlbench.leaderboard.published import PublishedError, base_name, declared, load_published, parameters
from petlbench.methods import registry
from petlbench.methods.base import Published

ROWS = load_published()
SOURCES = registry.discover()


def rows(**wanted):
    """Rows with these values, looked for in the row itself where the flattened one lacks the name."""
    return [
        one
        for one in ROWS
        if all(
            getattr(one, key, None) == value or getattr(one.row, key, None) == value for key, value in wanted.items()
        )
    ]


@pytest.mark.parametrize(
    ("file", "table", "dataset", "count"),
    [
        ("pe_rsitr", "Tab. I", "rsicd", 30),
        ("pe_rsitr", "Tab. II", "rsitmd", 29),
        ("pe_rsitr", "Tab. III", "ucm", 27),
        ("pir", "Tab. 1", "rsicd", 15),
        ("pir", "Tab. 1", "rsitmd", 14),
        ("remoteclip", "Tab. 2", "rsicd", 5),
        ("remoteclip", "Tab. 2", "rsitmd", 5),
        ("georsclip", "RSCTIR Task, RSICD Test set", "rsicd", 16),
        ("georsclip", "RSCTIR Task, RSITMD Test set", "rsitmd", 15),
        ("rrsitr", "comparison", "rsicd", 9),
    ],
)
def test_tables_are_whole(file, table, dataset, count):
    assert len(rows(file=file, table=table, dataset=dataset)) == count


def test_exactly_the_known_rows_have_a_mean_that_is_not_their_recalls():
    flagged = {
        (one.file, one.dataset, one.row.method): (one.row.mR, round(one.mean, 2)) for one in ROWS if one.misprinted
    }
    assert flagged == {
        ("pe_rsitr", "rsicd", "AMFMN-soft"): (16.02, 16.16),
        ("pe_rsitr", "rsitmd", "AdaptFormer"): (34.81, 34.51),
        ("pe_rsitr", "ucm", "Cross-Modal Adapter"): (53.62, 53.35),
        ("remoteclip", "rsicd", "CLIP-CL"): (33.96, 33.84),
    }


def test_the_score_to_compare_with_is_the_mean_of_the_recalls():
    (row,) = rows(file="pe_rsitr", dataset="rsitmd", method="AdaptFormer")
    assert row.score == pytest.approx(34.506667, abs=1e-6) and row.row.mR == 34.81
    (alone,) = rows(file="evit", dataset="rsicd")
    assert alone.recalls is None and alone.mean is None and alone.score == 19.47 and not alone.misprinted


def test_the_mean_to_show_is_the_printed_one_unless_it_is_misprinted():
    (misprinted,) = rows(file="pe_rsitr", dataset="rsitmd", method="AdaptFormer")
    assert misprinted.printed == misprinted.score
    (rounded,) = rows(file="pe_rsitr", dataset="rsicd", method="CLIP-Adapter")
    assert rounded.printed == rounded.row.mR == 21.65 and round(rounded.score, 2) == 21.64
    (alone,) = rows(file="evit", dataset="rsicd")
    assert alone.printed == 19.47


def test_how_a_source_measures_says_nothing_of_rows_that_it_quotes():
    (own,) = rows(file="pir", dataset="rsicd", method="PIR (CL+AL)")
    assert (own.seeds, own.ties, own.split.train_images) == (1, "higher index first, by an unstable sort", 7862)
    quoted = [one for one in ROWS if one.row.quoted]
    assert {one.file for one in quoted} == {"pe_rsitr", "pir", "harma", "georsclip"}
    for one in quoted:
        assert (one.seeds, one.ties, one.selection) == (None, None, one.row.selection or "unknown"), one
        assert (one.split.train_images, one.split.val_images, one.split.cards) == (None, None, ()), one
        assert one.split.test_images in (1093, 452, 210)


def test_six_recalls_that_stand_in_two_tables_were_quoted_in_one():
    """Two papers do not measure the same six numbers; at most one of the rows is its source's own."""
    places = {}
    for one in ROWS:
        if one.recalls is not None:
            places.setdefault((one.dataset, *one.recalls.values()), []).append(one)
    repeated = [found for found in places.values() if len(found) > 1]
    assert len(repeated) > 20
    for found in repeated:
        assert sum(not one.row.quoted for one in found) <= 1, [one.where for one in found]


def test_a_row_of_the_main_table_to_the_digit():
    (row,) = rows(file="pe_rsitr", dataset="ucm", ours="mrs_adapter")
    assert list(row.recalls) == ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10"]
    assert list(row.recalls.values()) == [22.71, 55.81, 80.33, 18.82, 62.84, 93.72]
    assert (row.row.params, row.row.mR, row.mark, row.selection, row.seeds) == ("0.16M", 55.71, "seen", "unknown", None)
    assert (row.known.weights, row.known.activation, row.known.resolution) == ("OpenAI", "quick_gelu", 224)


def test_what_was_recalled_is_marked_and_says_so():
    recalled = [one for one in ROWS if one.mark == "recalled"]
    assert {one.file for one in recalled} == {"harma", "mtgfe"}
    assert all("(recalled, not read)" in one.where for one in recalled)
    assert {one.mark for one in rows(file="harma", table="issues of the repository")} == {"seen"}
    assert not any("recalled" in one.where for one in ROWS if one.mark == "seen")


def test_what_was_chosen_on_test_is_marked():
    for file, method in (("pir", "PIR (CL+AL)"), ("harma", "HarMA, GeoRSCLIP"), ("mps_clip", "MPS-CLIP")):
        found = rows(file=file, method=method)
        assert found and {one.selection for one in found} == {"test"}
    assert {one.selection for one in rows(file="rrsitr")} == {"val"}
    assert {one.selection for one in ROWS if one.row.method == "Zero-shot CLIP"} == {"none"}


@pytest.mark.parametrize("name", sorted({one.row.ours for one in ROWS if one.row.ours}))
def test_methods_and_variants_that_rows_name_exist(name):
    cls = registry.load(SOURCES[name])
    variants = {one.row.variant for one in ROWS if one.row.ours == name and one.row.variant}
    assert variants <= set(cls.variants)
    for one in ROWS:  # on CLIP ViT-B/32, the printed size is that of the variant
        if one.row.ours == name and one.row.variant and one.file == "pe_rsitr" and name != "uniadapter":
            low, high = parameters(one.row.params)
            assert low <= cls.variants[one.row.variant].trainable <= high, (one.row, cls.variants[one.row.variant])


@pytest.mark.parametrize("name", [n for n, s in SOURCES.items() if s.builtin])
def test_what_methods_declare_is_what_the_files_say(name):
    """Both hold these numbers, because a method is one file and a plugin has no other place; they must not drift apart."""
    for one in registry.load(SOURCES[name]).published:
        same = [
            row
            for row in rows(ours=name, dataset=one.dataset)
            if row.recalls and tuple(row.recalls.values()) == one.values and not row.row.quoted
        ]
        assert len(same) == 1, (name, one)
        (row,) = same
        assert (row.mark == "seen") == one.seen
        assert (
            parameters(row.size) == pytest.approx(parameters(one.trainable))
            or one.trainable == row.size
            or (parameters(row.size)[0] <= 0 and one.trainable == "0")
        )
        assert one.selection == ("unknown" if row.selection == "none" else row.selection)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("0.16M", (155e3, 165e3)),
        ("151M", (150.5e6, 151.5e6)),
        ("161M of 185M", (160.5e6, 161.5e6)),
        ("0", (0, 0)),
        ("-", None),
    ],
)
def test_printed_sizes_are_ranges(size, expected):
    assert parameters(size) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("name", "base"),
    [("ucm", "ucm"), ("ucm-precomp", "ucm"), ("ucmx", None), ("rsicd_mine", "rsicd"), ("scenes", None)],
)
def test_cards_belong_to_the_published_set_they_hold(name, base):
    assert base_name(name, ["rsicd", "rsitmd", "ucm"]) == base


GOOD = """
title: T
paper: P
read_in: a table
mark: seen
selection: val
selection_note: said there
ties: null
seeds: null
tables:
  - table: Tab. 1
    dataset: rsicd
    split: {test_images: 10, test_captions: 50}
    rows:
      - {method: A, i2t: [1.0, 2.0, 3.0], t2i: [4.0, 5.0, 6.0], mR: 3.5}
"""


def test_a_file_as_it_should_be(tmp_path):
    (tmp_path / "one.yaml").write_text(GOOD)
    (row,) = load_published(tmp_path)
    assert (row.file, row.where, row.score, row.misprinted) == ("one", "T, Tab. 1", 3.5, False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[1.0, 2.0, 3.0]", "[1.0, 3.0, 2.0]", r"one\.yaml.*i2t R@1, 5, 10 must not fall"),
        ("[1.0, 2.0, 3.0]", "[1.0, 2.0, 300.0]", r"i2t\.2.*has the value 300"),
        ("t2i: [4.0, 5.0, 6.0], ", "", "one direction without the other"),
        ("i2t: [1.0, 2.0, 3.0], t2i: [4.0, 5.0, 6.0], mR: 3.5", "params: 1M", "neither recalls nor mR"),
        ("mR: 3.5", "mR: 3.5, variant: big", "names a variant of no method"),
        (
            "mR: 3.5",
            "mR: 3.5, parms: 1M",
            r"yaml:15: key `tables\.0\.rows\.0\.parms` is unknown; did you mean `params`",
        ),
        ("mark: seen", "mark: guessed", r"one\.yaml:5: key `mark` has the value 'guessed'"),
        ("mark: seen\n", "", "key `mark` is missing"),
        ("title: T", "title: [T", r"one\.yaml.*not valid YAML"),
        ("title: T", "title: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, old, new, said):
    assert old in GOOD
    (tmp_path / "one.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(PublishedError, match=said):
        load_published(tmp_path)


def test_the_same_row_twice_is_refused(tmp_path):
    (tmp_path / "one.yaml").write_text(GOOD + GOOD[GOOD.index("      - {") :])
    with pytest.raises(PublishedError, match="two rows for 'A'"):
        load_published(tmp_path)


def test_no_files_is_an_error_not_an_empty_table(tmp_path):
    with pytest.raises(PublishedError, match="no file with published rows"):
        load_published(tmp_path)


def test_rows_of_a_plugin_join_without_a_file():
    one = Published(
        dataset="ucm",
        source="Me, Tab. 9",
        values=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        trainable="1M",
        selection="val",
        seen=False,
    )
    (row,) = declared("mine", "Mine", [one])
    assert (row.row.ours, row.score, row.mark, row.known.architecture) == ("mine", 3.5, "recalled", None)
    assert row.where == "Me, Tab. 9 (recalled, not read)"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"values": (3.0, 2.0, 1.0, 4.0, 5.0, 6.0)},
            r"method mine, published row of Me: .*i2t R@1, 5, 10 must not fall",
        ),
        ({"backbone": {"resolutoin": 224}}, r"key `backbone\.resolutoin` is unknown; did you mean `resolution`"),
        ({"split": {"test_captions": 1050}}, r"key `split\.test_images` is missing"),
    ],
)
def test_a_mistake_in_a_row_of_a_plugin_is_named(changed, said):
    row = {"dataset": "ucm", "source": "Me", "values": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), **changed}
    with pytest.raises(PublishedError, match=said):
        declared("mine", "Mine", [Published(**row)])


def test_every_file_is_where_the_package_looks():
    assert module.FOLDER.resolve() == ROOT / "leaderboard" / "published"
    assert {path.stem for path in module.FOLDER.glob("*")} == {one.file for one in ROWS}
