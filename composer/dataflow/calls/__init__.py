"""An experiment as data: its models and calls, checked as a graph; as a table and as a picture."""
