"""What each quirk of the released code changes in the NIAH scores: the effect column of docs/audit.md."""
