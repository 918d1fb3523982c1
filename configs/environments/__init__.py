"""The environments of the example specs; each registers itself with gymnasium when it is imported."""
