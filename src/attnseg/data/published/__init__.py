"""Published splits, one table each with patient, case, role and, where known, digest."""
