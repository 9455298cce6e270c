"""The Python interface for programs and notebooks: the functions of ``import fewchannels as fc``.

``calls`` records and edits the calls of a user's own pipeline. ``prompts``, ``capture``, ``sweeps``, ``run``,
``result``, ``report`` and ``explorer`` provide the commands as functions, which return objects that a notebook can
display.

Imported by others: calls.comparing, calls.editing, calls.edits, calls.loading, calls.recorded, calls.recording,
    capture, comparison, explorer, inspection, prompts, report, result, run, sweeps.
Imports: errors, files, settings, tables, manifest, measures, models, runs, cluster, captures, analyses, interventions,
    views.
"""
