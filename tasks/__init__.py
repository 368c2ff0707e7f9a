"""Prefect tasks: the only place where labeling code meets retries, caching, progress and artifacts."""
