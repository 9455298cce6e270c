"""The tool from Python and notebooks: what ``import fewchannels as fc`` hands out.

``calls`` records and edits the calls of a pipeline of the user's own. ``prompts``, ``capture``, ``sweeps``, ``run``,
``result``, ``report`` and ``explorer`` are the commands as functions: they return objects that a notebook shows.

Imported by others: calls.comparing, calls.editing, calls.edits, calls.loading, calls.recorded, calls.recording,
    capture, comparison, explorer, inspection, prompts, report, result, run, sweeps.
Imports: errors, files, settings, tables, manifest, measures, models, runs, cluster, captures, analyses, interventions,
    views.
"""
