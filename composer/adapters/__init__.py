"""Models in the hands of other libraries: one folder each, which imports its library when it is first used."""
