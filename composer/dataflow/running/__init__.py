"""A run of an experiment: its models, schedule, folder and log; on this process or on a Ray cluster."""
