import gzip
import math
from pathlib import Path

import pytest

from chexradinet.config import IngestConfig
from chexradinet.dataset import labels as tables
from chexradinet.dataset.labels import LabelTable
from chexradinet.dataset.labels.generic import read_generic_table
from chexradinet.errors import ConfigError, LabelTableError, SourceError, UnknownFindingError
from chexradinet.records import Box, LabelledBox, Split, View

HEAD = "file,patient,findings,view,age,sex,split,boxes\n"


def generic(folder: Path, *rows: str, head: str = HEAD, **settings: object) -> LabelTable:
    (folder / "labels.csv").write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    return read_generic_table(folder, IngestConfig(**settings))  # type: ignore[arg-type]


def test_folder_without_a_table_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match=r"file, patient, findings.*other\.csv"):
        read_generic_table(tmp_path, IngestConfig())


def test_two_tables_are_a_source_error(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(HEAD)
    with pytest.raises(SourceError, match=r"2 tables in .*a\.csv, b\.csv; keep exactly one"):
        read_generic_table(tmp_path, IngestConfig())


TABLE = "file,patient,findings\nä.png,p,Mass\n"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "labels.csv",
            TABLE.encode("utf-16"),
            r"labels\.csv is not UTF-8 text.*save it as CSV UTF-8",
        ),
        ("labels.csv", TABLE.encode("cp1252"), r"labels\.csv is not UTF-8 text"),
        ("labels.csv", TABLE.replace(",", ";").encode(), "semicolons between its columns"),
        ("labels.csv", TABLE.replace(",", "\t").encode(), "tabs between its columns"),
        ("labels.csv", b"file,label\na,b\n", r"labels\.csv has no column patient, findings"),
        ("labels.csv.gz", TABLE.encode(), r"labels\.csv\.gz is not a complete gzip file"),
        (
            "labels.csv.gz",
            gzip.compress(TABLE.encode(), mtime=0)[:-12],
            r"is not a complete gzip file",
        ),
        ("labels.csv", None, r"labels\.csv is a folder"),
        ("labels.xlsx", b"PK", "there is no CSV file"),
    ],
)
def test_file_that_is_not_the_table_is_told_with_what_keeps_it_from_being_it(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((SourceError, LabelTableError), match=told) as error:
        read_generic_table(tmp_path, IngestConfig())
    assert "keep exactly one" not in str(error.value)


def test_every_table_is_told_by_itself_and_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.CSV").write_text("file;patient;findings\n")
    (tmp_path / "b.csv").write_text("file,patient\n")
    with pytest.raises(
        SourceError, match=r"A\.CSV has semicolons.*; b\.csv has no column findings"
    ):
        read_generic_table(tmp_path, IngestConfig())
    (tmp_path / "LABELS.CSV.GZ").write_bytes(gzip.compress(TABLE.encode()))
    assert read_generic_table(tmp_path, IngestConfig()).findings == ("Mass",)


def test_boxes_without_end_are_an_error_of_their_row(tmp_path: Path) -> None:
    with pytest.raises(LabelTableError, match=r"row 2: boxes are lists in lists"):
        generic(tmp_path, "a,p,Mass," + "[" * 100_000, head="file,patient,findings,boxes\n")


@pytest.mark.parametrize("rows", [[], ["a.png,p,No Finding,,,,,"]])
def test_table_without_a_finding_needs_findings_named(tmp_path: Path, rows: list[str]) -> None:
    with pytest.raises(LabelTableError, match=r"no row of labels\.csv names a finding"):
        generic(tmp_path, *rows)
    assert generic(tmp_path, *rows, findings=("Mass",)).findings == ("Mass",)


def test_generic_row_is_read_in_full(tmp_path: Path) -> None:
    boxes = '"[{""finding"": ""mass"", ""top"": 1, ""left"": 2, ""bottom"": 3.5, ""right"": 4}]"'
    table = generic(tmp_path, f"sub/ä b.png,p1,Infiltrate|Mass,PA,057Y,female,val,{boxes}")
    (row,) = table.rows
    assert table.findings == ("Infiltration", "Mass")
    assert (row.file, row.patient_id, row.view, row.age) == ("sub/ä b.png", "p1", View.PA, 57)
    assert (row.sex, row.split) == ("F", Split.VALIDATION)
    assert row.labels == {"Infiltration": 1.0, "Mass": 1.0}
    assert row.boxes == (LabelledBox("Mass", Box(1, 2, 3.5, 4)),)


def test_no_finding_is_absent_and_an_empty_cell_is_unknown(tmp_path: Path) -> None:
    table = generic(tmp_path, "a,p,Mass", "b,p,No Finding", "c,p,", head="file,patient,findings\n")
    assert [row.labels["Mass"] for row in table.rows[:2]] == [1.0, 0.0]
    assert math.isnan(table.rows[2].labels["Mass"])


def test_findings_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = ["a,p,Mass", "b,p,Edema|Hernia", "c,p,Effusion"]
    head = "file,patient,findings\n"
    one, other = generic(tmp_path, *rows, head=head), generic(tmp_path, *rows[::-1], head=head)
    assert one.findings == other.findings == ("Effusion", "Mass", "Edema", "Hernia")


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ("a.png,p,Nodul,,,,,", UnknownFindingError, r"labels\.csv, row 2: .*mean 'Nodule'"),
        ("a.png,p,Mass|No Finding,,,,,", LabelTableError, r"row 2 says .*a finding and none"),
        ("a.png,,Mass,,,,,", LabelTableError, r"row 2 has no file or no patient"),
        ("a.png,p", LabelTableError, r"row 2 has 2 cells, too few"),
        ("a.png,p,Mass,,,,holdout,", LabelTableError, r"row 2: split is 'holdout'"),
        ("a.png,p,Mass,,,,,{", LabelTableError, r"row 2: boxes must be a JSON list"),
        ('a.png,p,Mass,,,,,"[{""finding"": ""Mass""}]"', LabelTableError, "row 2: boxes must be"),
        (
            'a.png,p,Mass,,,,,"[{""finding"":""Mass"",""top"":2,""left"":0,""bottom"":2,""right"":1}]"',
            LabelTableError,
            "no area",
        ),
        (
            'a.png,p,Mass,,,,,"[{""finding"":""X"",""top"":0,""left"":0,""bottom"":2,""right"":1}]"',
            UnknownFindingError,
            "row 2: unknown finding 'X'",
        ),
    ],
)
def test_bad_row_is_named(tmp_path: Path, row: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generic(tmp_path, row)


def test_file_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelTableError, match=r"names 1 images more than once, .*'a\.png'"):
        generic(tmp_path, "a.png,p,Mass,,,,,", "./a.png,q,Mass,,,,,")


def test_missing_column_is_named_beside_those_found(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="patient"):
        generic(tmp_path, "a,Mass", head="file,findings\n")


def test_binary_file_named_csv_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(bytes(range(256)))
    with pytest.raises(SourceError, match="is not UTF-8 text"):
        read_generic_table(tmp_path, IngestConfig())


def test_table_that_turns_binary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(HEAD.encode() + b"a.png,p,Mass,,,,,\n" * 2000 + b"\xff\n")
    with pytest.raises(LabelTableError, match=r"is not UTF-8 text|no CSV table"):
        read_generic_table(tmp_path, IngestConfig())


def test_byte_order_mark_and_carriage_returns_are_read(tmp_path: Path) -> None:
    text = "\ufeffFile,Patient,Findings\r\na.png,p,Mass\r\n\r\n"
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert len(read_generic_table(tmp_path, IngestConfig()).rows) == 1


def test_rows_of_equal_labels_share_one_mapping(tmp_path: Path) -> None:
    table = generic(tmp_path, *(f"{n}.png,p,Mass,,,,," for n in range(3)))
    assert len({id(row.labels) for row in table.rows}) == 1


SHORT = "file,patient,findings\n"


@pytest.mark.parametrize(
    ("head", "row", "told"),
    [
        (SHORT, "a.png,1,Mass,Nodule", "row 2 has 4 cells, the header 3"),
        ("file,patient,findings,\n", "a.png,1,Mass,Nodule", "row 2 has 4 cells, the header 3"),
        (SHORT, "a.png,1,Mass,,,Nodule", "row 2 has 6 cells, the header 3"),
        (HEAD, "a.png,1,Mass,Nodule,PA,50,F,,", "row 2: view is 'Nodule', the name of a"),
        (SHORT, "a.png,1", "row 2 has 2 cells, too few"),
        (SHORT, 'a.png,1,"Mass', "unexpected end of data"),
        ("file,patient,findings,findings\n", "a.png,1,Mass,", "names column findings 2 times"),
        ("File,patient,findings,FILE\n", "a.png,1,Mass,b.png", "names column file 2 times"),
        (
            "file,patient,findings,findings.1\n",
            "a.png,1,Mass,Mass",
            "names column findings 2 times",
        ),
        ("file,patient,Findings,find-ings\n", "a.png,1,Mass,Mass", "names column findings 2 times"),
    ],
)
def test_a_row_or_a_header_that_does_not_say_which_cell_is_which_is_refused(
    tmp_path: Path, head: str, row: str, told: str
) -> None:
    with pytest.raises(LabelTableError, match=told):
        generic(tmp_path, row if row.count('"') % 2 else f"{row}\n{row}", head=head)


def test_empty_cells_at_the_end_and_an_index_of_pandas_are_no_cells_too_many(
    tmp_path: Path,
) -> None:
    (row,) = generic(tmp_path, "a.png,1,Mass,,,", head=SHORT).rows
    assert row.labels == {"Mass": 1}
    (row,) = generic(tmp_path, "0,a.png,1,Mass", head=f",{SHORT}").rows
    assert (row.file, row.labels) == ("a.png", {"Mass": 1})
    (row,) = generic(tmp_path, 'a.png, 1, "Mass|Nodule"', head=SHORT).rows
    assert row.labels == {"Mass": 1, "Nodule": 1}


def test_small_compressed_table_that_inflates_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_line = gzip.compress(SHORT.encode() + b"a" * (4 << 20))
    (tmp_path / "labels.csv.gz").write_bytes(one_line)
    with pytest.raises(LabelTableError, match="more than 1048576 characters in one line"):
        read_generic_table(tmp_path, IngestConfig())
    monkeypatch.setattr(tables, "_MAX_TABLE", 1 << 20)
    rows = b"".join(b"%d.png,1,Mass\n" % number for number in range(100_000))
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(SHORT.encode() + rows))
    with pytest.raises(LabelTableError, match="more than 1048576 characters; split it"):
        read_generic_table(tmp_path, IngestConfig())
    monkeypatch.setattr(tables, "_MAX_LINES", 1000)
    with pytest.raises(LabelTableError, match="more than 1000 lines; split it"):
        read_generic_table(tmp_path, IngestConfig())


def test_a_table_of_more_different_rows_than_fit_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chexradinet.dataset.labels.generic._MAX_COMBINATIONS", 2)
    rows = ["a.png,1,Mass", "b.png,2,Nodule", "c.png,3,Mass", "d.png,4,Mass|Nodule"]
    assert len(generic(tmp_path, *rows[:3], head=SHORT).rows) == 3
    with pytest.raises(LabelTableError, match="more than 2 combinations of labels"):
        generic(tmp_path, *rows, head=SHORT)


def test_own_findings_are_learnt_under_their_name_with_their_synonyms(tmp_path: Path) -> None:
    table = generic(
        tmp_path,
        *("a.png,1,TB|Mass", "b.png,2,koch", "c.png,3,tuberculosis", "d.png,4,No Finding"),
        head=SHORT,
        findings="Tuberculosis=TB/Koch,Mass",
    )
    assert table.findings == ("Tuberculosis", "Mass")
    assert [list(row.labels.values()) for row in table.rows] == [[1, 1], [1, 0], [1, 0], [0, 0]]
    with pytest.raises(LabelTableError, match=r"no row of labels\.csv names Silicosis"):
        generic(tmp_path, "a.png,1,Mass", head=SHORT, findings="Silicosis,Mass")


def test_own_findings_can_be_a_file_and_come_back_from_a_settings_record(tmp_path: Path) -> None:
    path = tmp_path / "findings.yaml"
    path.write_text("- mass\n- name: Lung cavity\n  synonyms: [cavity, cavern]\n- name: Bulla\n")
    config = IngestConfig(findings=str(path))  # type: ignore[arg-type]
    assert config.finding_names == ("Mass", "Lung_cavity", "Bulla")
    again = IngestConfig(**config.struct())
    assert again == config
    assert again.vocabulary.canonical("CAVERN") == "Lung_cavity"


@pytest.mark.parametrize(
    ("findings", "told"),
    [
        ("Nodul", "did you mean 'Nodule'"),
        ("1x", "is not a finding's name"),
        ("A,Mass=Nodule", "is not a finding's name"),
        ("Cyst=TB,Caverna=TB", "'TB' is a spelling of Cyst and of Caverna"),
        ("nowhere.yaml", "cannot be read"),
    ],
)
def test_findings_that_cannot_be_meant_are_refused(findings: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        IngestConfig(findings=findings)  # type: ignore[arg-type]


def test_a_name_close_to_a_known_one_can_be_meant() -> None:
    names = "Pleural Effusion left="
    assert IngestConfig(findings=names).finding_names == ("Pleural_Effusion_left",)  # type: ignore[arg-type]
