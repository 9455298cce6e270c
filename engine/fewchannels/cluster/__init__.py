"""Ray: sessions, the pool of actors, submitted jobs and telemetry.

``tasks`` runs the unfinished tasks of a :class:`fewchannels.cluster.work.Work`, a capture or a sweep, on the actors of
``pool``. ``parallel`` spreads small pieces of work, on Ray or in this process. ``jobs`` sends commands to a cluster.

Imported by others: attempts, jobs, notes, parallel, shares, sizing, tasks.
Imports: errors, machine, settings, models, runs.
"""
