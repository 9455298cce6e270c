"""What ingestion refuses, and in which words."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifest_files import rows_of

from fewchannels import manifest
from fewchannels.errors import InputError, StorageError
from fewchannels.manifest.rows import MAX_CHARACTERS


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        (b"  ,1,,,,", "prompt", "is empty"),
        (b"b\xffd,1,,,,", "prompt", "not UTF-8"),
        (b"x,1,,,,\xe9", "extra", "not UTF-8"),
        (b"a\0b,1,,,,", "prompt", "NUL"),
        (b"a" * (MAX_CHARACTERS + 1) + b",1,,,,", "prompt", "10,001 characters"),
        (b"x,-1,,,,", "seed", "from 0 to 9223372036854775807"),
        (b"x,9223372036854775808,,,,", "seed", "from 0 to 9223372036854775807"),
        (b"x,1_0,,,,", "seed", "not a whole number"),
        (b"x,1,0,,,", "width", "from 1 to"),
        (b"x,1,512.5,,,", "width", "not a whole number"),
        (b"x,1,9999999,,,", "width", "from 1 to"),
        (b"x,1,,many,,", "steps", "not a whole number"),
        (b"x,1,,,nan,", "guidance", "finite"),
        (b"x,1,,,1e39,", "guidance", "finite"),
        (b"x,1,,,1_0,", "guidance", "finite"),
        (b"x,1,,,", None, "has 5 fields, and the header has 6"),
        (b"x,1,,,,,", None, "has 7 fields, and the header has 6"),
        (b'"x"y,1,,,,', None, "not CSV"),
        (b'x,1,,,,"never closed', None, "not CSV"),
    ],
)
def test_a_bad_row_is_named_by_file_line_column_value_and_rule(
    make, tmp_path: Path, row: bytes, column: str | None, says: str
) -> None:
    content = b'prompt,seed,width,steps,guidance,extra\n"two\nlines",1,,,,\n\n' + row + b"\n"
    with pytest.raises(manifest.BadRowsError, match="1 of 2 rows are bad") as failure:
        make("a.csv", content)
    (bad,) = failure.value.bad_rows
    assert (bad.file, bad.line, bad.column) == (str(tmp_path / "a.csv"), 5, column)
    assert says in bad.rule
    assert len(bad.value) <= 60
    assert bad.value.isprintable()
    assert f"a.csv:5:{f' {column!r}:' if column else ''} {bad.value} " in str(failure.value)
    assert not list(tmp_path.glob("*manifest*"))

    report = make("a.csv", content, on_error="skip")
    assert (report.n_rows, report.n_written, report.n_bad, report.n_blank) == (2, 1, 1, 1)
    assert report.bad_rows == (bad,)
    assert rows_of(report.output)[0]["prompt"] == "two\nlines"


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        ('{"prompt": "x", ', None, "is not JSON"),
        ('{"prompt": "x", "note": "y", "prompt": "z"}', None, "one object has 'prompt' twice"),
        ('["x"]', None, "not a JSON object"),
        ("null", None, "not a JSON object"),
        ("[" * 5000, None, "is not JSON"),
        ('{"text": "x"}', "prompt", "is empty"),
        ('{"prompt": 5}', "prompt", "not text"),
        ('{"prompt": "\\ud800"}', "prompt", "not UTF-8"),
        ('{"prompt": "x", "note": "\\udc00"}', "note", "not UTF-8"),
        ('{"prompt": "x", "seed": true}', "seed", "not a whole number"),
        ('{"prompt": "x", "seed": 1e300}', "seed", "not a whole number"),
        ('{"prompt": "x", "guidance": Infinity}', "guidance", "finite"),
        ('{"prompt": "x", "guidance": 1' + "0" * 400 + "}", "guidance", "finite"),
    ],
)
def test_a_bad_line_of_json_is_named_and_can_be_skipped(make, line: str, column: str | None, says: str) -> None:
    content = f'{{"prompt": "good", "note": "n"}}\n\n{line}\n'
    with pytest.raises(manifest.BadRowsError) as failure:
        make("a.jsonl", content)
    (bad,) = failure.value.bad_rows
    assert (bad.line, bad.column) == (3, column)
    assert says in bad.rule
    assert make("a.jsonl", content, on_error="skip").n_written == 1


def test_an_array_whose_object_has_a_name_twice_is_refused(make) -> None:
    with pytest.raises(InputError, match=r"a\.json:2: is not JSON: one object has 'seed' twice"):
        make("a.json", '[{"prompt": "x"},\n {"prompt": "y", "seed": 1, "seed": 2}]')


def test_bad_rows_of_a_json_array_and_of_parquet_are_counted_from_one(make, tmp_path: Path) -> None:
    report = make("a.json", '[\n {"prompt": "x"},\n {"prompt":\n  ""}, 7,\n\n {"prompt": "y"}]\n', on_error="skip")
    assert [bad.line for bad in report.bad_rows] == [3, 4]
    good, broken = b"good", b"\xff"
    text = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 4, 5], "int32")), pa.py_buffer(good + broken))
    pq.write_table(pa.table({"prompt": text}), tmp_path / "a.parquet")
    report = manifest.ingest([tmp_path / "a.parquet"], tmp_path / "m.parquet", on_error="skip")
    assert [(bad.line, bad.column, bad.value) for bad in report.bad_rows] == [(2, "prompt", r"'\udcff'")]


def test_all_bad_rows_are_counted_and_the_first_ten_are_kept_in_order(make) -> None:
    text = "prompt,seed\n" + "".join(f"p{i},{'-' if i % 2 else ''}{i}\n" for i in range(20_000))
    with pytest.raises(manifest.BadRowsError, match="10,000 of 20,000 rows are bad; nothing was written") as failure:
        make("a.csv", text)
    assert [bad.line for bad in failure.value.bad_rows] == list(range(3, 23, 2))
    assert "and 9,990 more" in str(failure.value)
    assert "--on-error skip" in str(failure.value)


def test_when_every_row_is_bad_nothing_is_written_even_when_skipping(make, tmp_path: Path) -> None:
    with pytest.raises(manifest.BadRowsError, match="2 of 2 rows"):
        make("a.csv", "prompt,n\n,1\n,2\n", on_error="skip")
    assert not (tmp_path / "manifest.parquet").exists()


def test_a_failed_ingest_leaves_the_earlier_manifest_as_it_was(make, tmp_path: Path) -> None:
    make("a.txt", "x\n")
    before = (tmp_path / "manifest.parquet").read_bytes()
    with pytest.raises(InputError):
        make("a.txt", b"y\n\xff\n")
    assert (tmp_path / "manifest.parquet").read_bytes() == before


def test_csv_reads_as_pandas_reads_it_with_byte_order_mark_and_windows_line_ends(make) -> None:
    text = '\ufeffprompt,note\r\n"a ""red"" star, large","1\r\n2"\r\nplain,\r\n'
    report = make("a.csv", text)
    assert [row["prompt"] for row in rows_of(report.output)] == list(pd.read_csv(io.StringIO(text[1:])).prompt)
    assert rows_of(report.output)[0]["note"] == "1\r\n2"


def test_quotes_in_tsv_are_part_of_the_text_and_suspicious_ones_are_noted(make) -> None:
    report = make(
        "a.tsv", 'Prompt\tCategory\n"G I G" painted "large\tsigns\na sign, "PEACE"\tsigns\n"all of it"\tsigns\n'
    )
    assert [row["prompt"] for row in rows_of(report.output)] == [
        '"G I G" painted "large',
        'a sign, "PEACE"',
        '"all of it"',
    ]
    (note,) = report.notes
    assert "1 rows have a field that begins and ends with a quote" in note


def test_blank_lines_are_counted_and_lines_keep_their_numbers(make) -> None:
    report = make("a.txt", b"one\n\n  \ntwo\r\n\xff\n", on_error="skip")
    assert (report.n_rows, report.n_blank, report.n_written) == (3, 2, 2)
    assert report.bad_rows[0].line == 5


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "prompt\n", "has no rows"),
        ("a.txt", "\n\n", "has no rows"),
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", "nonsense\n", "is not JSON"),
        ("a.json", "[]", "has no rows"),
        ("a.json", '{"prompt": "x"}', "not an array of objects"),
        ("a.json", '[{"prompt": "x"}\n{"prompt": "y"}]', "a.json:2: the array is malformed"),
        ("a.json", '[{"prompt": "x"},\n\n oops]', "a.json:3: is not JSON"),
        ("a.parquet", "PAR1 not really", "not readable Parquet"),
        ("a.docx", "x", "has the suffix .docx; a source must have .csv"),
        ("a", "x", "has the suffix nothing"),
        ("a.csv", "id,name\n1,2\n", r"no column is called prompt.*'id', 'name'.*--prompt-column"),
        ("a.csv", "prompt,x,X\n1,2,3\n", "'x' and 'X'"),
        ("a.csv", "Text,CAPTION,id\n1,2,3\n", "'Text' and 'CAPTION' could each be the prompt.*--prompt-column"),
        ("a.csv", "prompt,prompts\n1,2\n", "'prompt' and 'prompts' could each be the prompt"),
        ("a.csv", "prompt;seed\na cat, black;1\n", "separated by ';': save it with commas"),
        ("a.csv", "prompt|seed\na cat|1\n", "separated by '[|]': save it with commas"),
        ("a.csv", "id;prompt,long;text;seed\n1;a cat;1\n", "separated by ';'"),
        ("a.csv", "prompt\tseed\na cat\t1\n", "separated by tabs: save it with commas"),
        ("a.tsv", "prompt,seed\na cat,1\n", "separated by commas: save it with commas as .csv"),
        ("a.json", '{"7": {"prompt": "x"}, "8": {"prompt": "y"}}', "2 objects, the first is '7'.*an array"),
        ("a.json", '["a cat", "a dog"]', "for plain prompts, one per line, use .txt"),
        ("a.csv", "prompt,cfg,guidance\n1,2,3\n", "'cfg' and 'guidance' both mean 'guidance'"),
        ("a.csv", b"\xff\xfep\0r\0", "UTF-16"),
        ("a.csv", b"prompt,b\xe9\nx,y\n", "not UTF-8"),
        ("a.jsonl", '{"prompt": 1}\n', "prompts are text"),
    ],
)
def test_a_source_that_cannot_be_a_table_of_prompts_is_refused_in_words(
    make, tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        make(name, content)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_missing_sources_and_wrong_arguments_are_refused_in_words(make, tmp_path: Path) -> None:
    output = tmp_path / "m.parquet"
    for sources, says in [
        ([], "no source"),
        (["nowhere.csv"], "there is no file 'nowhere.csv'"),
        (["demo:many"], "demo:N with N from 1"),
        (["demo:0"], "demo:N with N from 1"),
    ]:
        with pytest.raises(InputError, match=says):
            manifest.ingest(sources, output)
    with pytest.raises(InputError, match=r"unknown prompt column of .* 'promt'\. Did you mean 'prompt'"):
        make("a.csv", "prompt\nx\n", prompt_column="promt")
    with pytest.raises(InputError, match="unknown on_error 'ignore'"):
        make("a.csv", "prompt\nx\n", on_error="ignore")
    with pytest.raises(InputError, match="is a folder"):
        manifest.ingest([tmp_path / "a.csv"], tmp_path)
    with pytest.raises(StorageError, match="cannot write"):
        manifest.ingest([tmp_path / "a.csv"], tmp_path / "a.csv" / "m.parquet")
