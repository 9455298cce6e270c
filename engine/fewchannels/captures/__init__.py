"""A manifest, a model and settings become a run.

``job`` checks everything before any work, ``begin`` creates the run, ``run`` runs it to its end, ``worker`` runs one
task in an actor, and ``recorder`` is the tap that records hidden states.

Imported by others: begin, budget, config, estimate, job, memory, recompute, recorder, run, worker.
Imports: errors, machine, settings, tables, manifest, measures, models, runs, cluster.
"""
