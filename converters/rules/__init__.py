"""The rule language: tables that are read in both directions, and the definition of a format."""
