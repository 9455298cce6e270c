"""Interventions: sweeps of edited generations, and their findings.

``conditions`` defines the edits, ``rows`` the batches, ``editor`` is the tap that edits, ``worker`` runs one task in an
actor. ``metrics`` compares images, ``effects`` summarizes a sweep, and ``live`` edits interactively.

Imported by others: begin, conditions, editor, effects.contrasts, effects.exclusions, effects.figures, effects.measure,
    effects.summary, effects.sweep_findings, estimate, live.ask, live.session, live.trajectory, metrics, metrics.images,
    metrics.learned, protocols, rows, run, settings, sweep.
Imports: errors, files, settings, tables, demo, manifest, measures, models, runs, cluster, captures, analyses.
"""
