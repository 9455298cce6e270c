"""Ray: sessions, the pool of actors, submitted jobs and telemetry.

``tasks`` runs whatever is not done of some :class:`fewchannels.cluster.work.Work`, a capture's or a sweep's, on the
actors of ``pool``. ``parallel`` spreads small pieces of work, on Ray or in this process. ``jobs`` sends commands to a
cluster.

Imported by others: attempts, jobs, notes, parallel, shares, sizing, tasks.
Imports: errors, machine, settings, models, runs.
"""
