"""Measure how each quirk of the released code changes NIAH scores, for the effect column of docs/audit.md."""
