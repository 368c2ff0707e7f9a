"""What a project's artifacts are called in Prefect."""


def artifact_key(project_name: str, what: str) -> str:
    """Prefect takes small letters, digits and dashes; the name of a project may have underscores.

    >>> artifact_key("clinic_inbox", "gate")
    'clinic-inbox-gate'
    """
    return f"{project_name}-{what}".replace("_", "-")
