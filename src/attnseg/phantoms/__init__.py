"""Made-up datasets in the layouts of the real ones."""
