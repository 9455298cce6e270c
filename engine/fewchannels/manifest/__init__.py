"""Manifests: any table of prompts becomes one validated Parquet file, one row per sample (a prompt and a seed).

``ingest`` writes a manifest, everything else reads one. The columns are those of ``schemas/manifest.yaml``, then the
source's own. A sample's id covers everything that determines its image, so the same prompt and seed have the same id
in any file.

Imported by others: itself, columns, rows.
Imports: errors, files, tables, demo.
"""

from fewchannels.manifest.choice import choose
from fewchannels.manifest.columns import ALIASES, PROMPT_COLUMNS
from fewchannels.manifest.manifest import Manifest, SettingsUsed, digest
from fewchannels.manifest.read import (
    Sample,
    columns,
    is_manifest,
    other_columns,
    read_samples,
    sample_ids,
    samples_at,
    summary,
)
from fewchannels.manifest.report import IngestReport, OwnSetting
from fewchannels.manifest.rows import BadRow, BadRowsError, sample_id
from fewchannels.manifest.split import ManifestPart, split
from fewchannels.manifest.write import ingest, parse_seeds, select

__all__ = [
    "ALIASES",
    "PROMPT_COLUMNS",
    "BadRow",
    "BadRowsError",
    "IngestReport",
    "Manifest",
    "ManifestPart",
    "OwnSetting",
    "Sample",
    "SettingsUsed",
    "choose",
    "columns",
    "digest",
    "ingest",
    "is_manifest",
    "other_columns",
    "parse_seeds",
    "read_samples",
    "sample_id",
    "sample_ids",
    "samples_at",
    "select",
    "split",
    "summary",
]
