"""One reader per dataset: the only code that knows a layout on disk."""
