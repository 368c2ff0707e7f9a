"""`countersign demo`: the shipped clinic inbox through all five phases."""

import shutil
from pathlib import Path
from typing import Any

from countersign.output import say
from countersign.rehearsing import Rehearsal, rehearsal_text
from labeling import paths
from labeling.engines.model_files import default_names, model_file


def demonstrate(folder: Path) -> tuple[dict[str, Any], str]:
    """Copies the demo project to `folder` and rehearses it there; returns the outcome and what to tell people.

    A demo that was run before is run anew beside it: every run has its own rehearsal folder.
    """
    for name in default_names():
        model_file(name, fetch=True)
    if not (folder / "project.yaml").exists():
        shutil.copytree(paths.configs() / "demo", folder, dirs_exist_ok=True)
    say(f"The demo project is in {folder.resolve()}.")
    say("340 invented messages to a clinic's front desk; two independent labellings play the annotators.")
    rehearsal = Rehearsal(project=folder, truth="label", annotator_columns=("label_a", "label_b"))
    answer = rehearsal.run()
    steps = f"""
{rehearsal_text(answer)}

Open the report:     {answer["report"]}
Do it by hand:       countersign run {folder}      (stops where people have to act)
                     countersign up {folder}       (review app at http://127.0.0.1:8321, Prefect UI at http://127.0.0.1:4200)
Look one label up:   countersign trace {answer["project"]} msg-0001
Prove the trail:     countersign verify {answer["project"]}"""
    return answer, steps
