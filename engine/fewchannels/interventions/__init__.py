"""Interventions: sweeps of edited generations, and what they say.

``conditions`` are the ways to edit, ``rows`` says who shares a batch, ``editor`` is the tap that edits, ``worker`` does
one task in an actor. ``metrics`` compares images, ``effects`` summarizes a sweep, ``live`` edits while
somebody watches, and ``calls`` records and edits the calls of a pipeline of the user's own.

Imported by others: begin, conditions, editor, effects.contrasts, effects.exclusions, effects.figures, effects.measure,
    effects.summary, effects.sweep_findings, estimate, live.ask, live.session, live.trajectory, metrics, metrics.images,
    metrics.learned, protocols, rows, run, settings, sweep.
Imports: errors, files, settings, tables, demo, manifest, measures, models, runs, cluster, captures, analyses.
"""
