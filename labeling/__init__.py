"""What is true whether or not Prefect exists: engines, scoring, statistics, storage, queue and audit."""
