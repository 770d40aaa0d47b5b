"""The rule language: tables that are read in both directions, and what a format is."""
