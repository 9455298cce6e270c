"""Ray: sessions, the pool of actors, submitted jobs and telemetry."""
