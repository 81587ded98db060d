"""What is shown of runs and sweeps: charts, pages, and the report of every run."""
