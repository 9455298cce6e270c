"""Runs on disk: their format, and reading, writing and maintaining them.

``storage`` is a folder or an object store with one interface. It is used by ``layout`` (shapes), ``arrays`` (Zarr),
``parts`` (Parquet), ``ledger`` (records), ``changes``, ``lease`` and ``results``. ``sql`` answers queries, ``upkeep``
verifies, repairs, merges, exports, pushes and pulls. The specification is ``schemas/store.md``. Nothing here runs a
model.

Imported by others: arrays, changes, choices, description, documents, identity, images, layout, lease, ledger, listing,
    opened, parts, place, provenance, results, run, shards, sql.answer, sql.catalog, sql.columns, sql.limits,
    sql.matching, sql.named_queries, sql.progress, sql.question, sql.ranking, sql.writing, storage, sweep,
    upkeep.contents, upkeep.datasets, upkeep.hub, upkeep.merge, upkeep.problems, upkeep.pull, upkeep.push,
    upkeep.repair, upkeep.verify.
Imports: errors, files, machine, settings, tables, manifest, measures, models.
"""
