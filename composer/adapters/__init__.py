"""Models in the hands of other libraries: one module each, which imports its library when it is imported itself."""
