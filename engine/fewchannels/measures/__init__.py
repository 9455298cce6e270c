"""Pure arithmetic on arrays: scores, overlap, ranks, registers, clusters, intervals. No I/O."""
