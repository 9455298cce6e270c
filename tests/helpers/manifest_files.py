"""Tables of prompts as files of every kind, and ids by their written definition."""

import csv
import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet", "txt")
PROMPTS = ["a red star", "ein grüner Kreis", '"OPEN" on a door', "  padded\t", "日本の橋", "42", "null"]


def expected_id(prompt: str, seed: int = 0, *settings: tuple[str, str]) -> str:
    """The id by its written definition, apart from the code under test."""
    text = "\0".join([prompt, str(seed), *(part for pair in settings for part in pair)])
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def expected_prompt(prompt: str) -> str:
    return unicodedata.normalize("NFC", prompt.strip())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of the kind that the path's ending names."""
    names = list(rows[0])
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".tsv":
        lines = [names, *([str(row[name]) for name in names] for row in rows)]
        path.write_bytes("".join("\t".join(line) + "\n" for line in lines).encode())
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes("".join(f"{row['prompt']}\n" for row in rows).encode())
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()
