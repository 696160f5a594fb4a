"""Published splits, one table each: patient, case, role and, once known, digest."""
