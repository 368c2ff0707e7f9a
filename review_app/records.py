"""Finding records and looking at one: filters, pages, whose a record is."""

from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from labeling.database import accounts, finding, pools, queue, rounds
from labeling.database.accounts import Right
from labeling.database.finding import Answer, Found, Order, Search, Sight, State
from labeling.flagged import load_findings
from review_app.access import needs
from review_app.pages import OPEN_STATES, problem_page, render, schema_context
from review_app.wording import STATES, likely_words, value_lines, value_words
from schemas.errors import Forbidden
from schemas.review import RoundState

router = APIRouter()

STATE_WORDS = {
    State.ALL: "All records",
    State.OPEN: "Not finished",
    State.DONE: "Finished",
    State.MINE: "Decided by me",
    State.FLAGGED: "Flagged",
}
ORDER_WORDS = {
    Order.QUEUE: "As they come to people",
    Order.UNSURE: "Least sure first",
    Order.SURE: "Surest first",
}
FINDING_WORDS = {
    "label_error": "Perhaps mislabelled",
    "annotator_disagreement": "People disagree",
}

Item = Annotated[int, Query(ge=1, le=2**31 - 1)]
Words = Annotated[str, Query(max_length=200)]
Percent = Annotated[str, Query(pattern=r"^\s*(100|[0-9]{1,2})?\s*$")]
Number = Annotated[str, Query(pattern=r"^[0-9]{0,9}$")]


@router.get("/records")
@needs(Right.FIND_RECORDS)
def records_page(
    request: Request,
    round: Number = "",
    state: State = State.ALL,
    label: Words = "",
    answer: Words = "",
    who: Words = "",
    kind: Words = "",
    text: Words = "",
    least: Percent = "",
    most: Percent = "",
    order: Order = Order.QUEUE,
    after: Annotated[str, Query(max_length=60)] = "",
) -> Response:
    """What fits the filters, a page at a time."""
    db = request.app.state.db
    numbers = rounds.round_numbers(db)
    if not numbers:
        return render(request, "records.html", numbers=[])
    number = int(round) if round else numbers[-1]
    viewer = request.state.account
    stands = rounds.state_of(db, number)
    sight = finding.sight_of(viewer, stands) if stands is not None else Sight.OWN
    kinds = _kinds(request, number)
    search = Search(
        number=number,
        state=state,
        label=label,
        answer=answer,
        annotator=who,
        record_ids=kinds.get(kind, set()) if kind else None,
        text=text,
        least=int(least) / 100 if least.strip() else None,
        most=int(most) / 100 if most.strip() else None,
        order=order,
        after=after,
    )
    page = finding.find(db, viewer.id, search)
    names = _names(request)
    return render(
        request,
        "records.html",
        numbers=numbers,
        number=number,
        search=search,
        least=least.strip(),
        most=most.strip(),
        kind=kind,
        kinds={name: FINDING_WORDS.get(name, name.replace("_", " ").capitalize()) for name in kinds},
        rows=[_row(found, names, stands) for found in page.found],
        more=_link(request, page.after) if page.after else "",
        narrowed=search != replace(Search(number=number), order=search.order, after=search.after),
        people=[person for person in accounts.people(db) if person.may(Right.LABEL)]
        if sight is Sight.ALL
        else [],
        names=names,
        states=STATE_WORDS,
        orders=ORDER_WORDS,
        state_words=STATES[stands.value] if stands is not None else "",
        **schema_context(request),
    )


@router.get("/records/{item_id}")
@needs(Right.FIND_RECORDS)
def record_page(request: Request, item_id: int) -> Response:
    """One record: its text, what was suggested, and the answers this person may see."""
    db = request.app.state.db
    if not 1 <= item_id < 2**31:
        return _none(request)
    try:
        looked = finding.look(db, request.state.account.id, item_id)
    except Forbidden:
        return _none(request)
    may_give = request.state.account.may(Right.MANAGE_QUEUE) and looked.state in OPEN_STATES
    return render(
        request,
        "record.html",
        row=_row(looked.record, _names(request), looked.state),
        remarks=looked.remarks,
        findings=_findings(request, looked.record),
        state_words=STATES[looked.state.value],
        may_give=may_give,
        pools=pools.pools(db),
        people=[person for person in accounts.people(db) if person.may(Right.LABEL)] if may_give else [],
        **schema_context(request),
    )


@router.post("/records/{item_id}/take")
@needs(Right.LABEL)
def take(request: Request, item_id: int) -> Response:
    """Reserve this record and go to it."""
    lease_s = request.app.state.settings.project.review.lease_s
    held = (
        queue.take_chosen(request.app.state.db, request.state.account.id, [item_id], lease_s=lease_s)
        if 1 <= item_id < 2**31
        else []
    )
    if not held:
        return problem_page(
            request, 409, "a record that is decided, or with somebody else", "Go back and choose another."
        )
    return RedirectResponse(f"/review?first={held[0].assignment_id}", 303)


@router.post("/records/{item_id}/give")
@needs(Right.MANAGE_QUEUE)
def give(
    request: Request,
    item_id: int,
    to: Annotated[str, Form(max_length=60, pattern=r"^(|pool:[0-9]{1,9}|person:.+)$")],
) -> Response:
    """Say whose the record is: anybody's, a pool's or one person's."""
    kind, _, name = to.partition(":")
    pools.give_to(
        request.app.state.db,
        min(max(item_id, 0), 2**31 - 1),
        by=request.state.account.id,
        pool_id=int(name) if kind == "pool" else None,
        account_id=name if kind == "person" else None,
    )
    return RedirectResponse(f"/records/{item_id}", 303)


def _none(request: Request) -> Response:
    return problem_page(
        request,
        404,
        "no record of that number that you may see",
        "Go back to the records and choose another.",
    )


def _names(request: Request) -> dict[str, str]:
    """Display names, for those who lead people; everybody else reads pseudonyms or nothing."""
    if not request.state.account.may(Right.INVITE_LABELLERS):
        return {}
    return {person.id: person.display_name for person in accounts.people(request.app.state.db)}


def _kinds(request: Request, number: int) -> dict[str, set[str]]:
    """Record ids by kind of finding; nothing for those whom findings could sway."""
    account = request.state.account
    if not (account.may(Right.SEE_BOARD) or account.may(Right.ADJUDICATE)):
        return {}
    settings = request.app.state.settings
    found = load_findings(settings.project, settings.folder, number)
    kinds: dict[str, set[str]] = {}
    for record_id, kind in found.select("record_id", "kind").iter_rows():
        if record_id is not None:
            kinds.setdefault(kind, set()).add(record_id)
    return dict(sorted(kinds.items()))


def _findings(request: Request, record: Found) -> list[str]:
    account = request.state.account
    if not (account.may(Right.SEE_BOARD) or account.may(Right.ADJUDICATE)):
        return []
    settings = request.app.state.settings
    found = load_findings(settings.project, settings.folder, record.round)
    return [
        sentence
        for record_id, sentence in found.select("record_id", "sentence").iter_rows()
        if record_id == record.record_id
    ]


def _row(found: Found, names: dict[str, str], state: RoundState | None) -> dict[str, Any]:
    suggestion = found.suggestion
    return {
        "found": found,
        "suggested": None if suggestion is None else value_lines(suggestion["value"]),
        "likely": None if suggestion is None else likely_words(suggestion.get("confidence")),
        "evidence": [] if suggestion is None else suggestion.get("evidence", []),
        "answers": [_answer(answer, names, state) for answer in found.answers],
    }


def _answer(answer: Answer, names: dict[str, str], state: RoundState | None) -> dict[str, Any]:
    who = "You" if answer.own else names.get(answer.annotator_id or "", answer.annotator_id or "Somebody")
    return {
        "answer": answer,
        "who": who,
        "said": value_words(answer.action, answer.value),
        "lines": value_lines(answer.value),
        "at": answer.decided_at.strftime("%d %b %H:%M UTC"),
        "changeable": answer.own and state in OPEN_STATES,
    }


def _link(request: Request, after: str) -> str:
    told = {key: value for key, value in request.query_params.items() if key != "after" and value}
    return "/records?" + urlencode({**told, "after": after})
