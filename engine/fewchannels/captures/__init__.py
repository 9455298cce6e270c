"""A manifest, a model and settings become a run.

``job`` checks everything before any work, ``begin`` lays the run out, ``run`` sees it to its end, ``worker`` does one
task in an actor, and ``recorder`` is the tap that says what is kept.

Imported by others: begin, budget, config, estimate, job, memory, recompute, recorder, run, worker.
Imports: errors, machine, settings, tables, manifest, measures, models, runs, cluster.
"""
