"""Opening by recording: models whose own forward is replayed, operation by operation."""
