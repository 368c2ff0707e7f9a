"""What serves the flows: the Prefect server, the runner, prefect.yaml."""
