"""Shelf: files to columns. Readers by format, sources, tables, splitting."""
