"""Finding records and looking at one: filters, pages, whose a record is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, StringConstraints

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
    Order.QUEUE: "As queued",
    Order.UNSURE: "Least sure first",
    Order.SURE: "Surest first",
}
FINDING_WORDS = {
    "label_error": "Perhaps mislabelled",
    "annotator_disagreement": "People disagree",
}

Words = Annotated[str, StringConstraints(max_length=200)]
Percent = Annotated[str, StringConstraints(pattern=r"^\s*(100|[0-9]{1,2})?\s*$")]
Number = Annotated[str, StringConstraints(pattern=r"^[0-9]{0,9}$")]
To = Annotated[str, StringConstraints(max_length=60, pattern=r"^(|pool:[0-9]{1,9}|person:.+)$")]


class Filters(BaseModel):
    """The fields of the search form, as text: an empty one does not matter."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    round: Number = ""
    state: State = State.ALL
    label: Words = ""
    answer: Words = ""
    who: Words = ""
    kind: Words = ""
    text: Words = ""
    least: Percent = ""
    most: Percent = ""
    order: Order = Order.QUEUE
    after: Annotated[str, StringConstraints(max_length=90)] = ""

    def search(self, number: int, kinds: Mapping[str, set[str]]) -> Search:
        """What the database is asked."""
        return Search(
            number=number,
            state=self.state,
            label=self.label,
            answer=self.answer,
            annotator=self.who,
            record_ids=kinds.get(self.kind, set()) if self.kind else None,
            text=self.text,
            least=int(self.least) / 100 if self.least.strip() else None,
            most=int(self.most) / 100 if self.most.strip() else None,
            order=self.order,
            after=self.after,
        )

    def told(self) -> dict[str, str]:
        """The fields that say something, for links and hidden fields."""
        return {key: str(value) for key, value in self.model_dump(mode="json").items() if value}


class GiveFound(Filters):
    """The search form again, with who gets what it finds."""

    to: To = ""


@router.get("/records")
@needs(Right.FIND_RECORDS)
def records_page(request: Request, filters: Annotated[Filters, Query()]) -> Response:
    """What fits the filters, a page at a time."""
    db = request.app.state.db
    numbers = rounds.round_numbers(db)
    if not numbers:
        return render(request, "records.html", numbers=[])
    number = int(filters.round) if filters.round else numbers[-1]
    viewer = request.state.account
    stands = rounds.state_of(db, number)
    sight = finding.sight_of(viewer, stands) if stands is not None else Sight.OWN
    kinds = _kinds(request, number)
    search = filters.search(number, kinds)
    page = finding.find(db, viewer.id, search)
    names = _names(request)
    labellers = [person for person in accounts.people(db) if person.may(Right.LABEL)]
    return render(
        request,
        "records.html",
        numbers=numbers,
        number=number,
        filters=filters,
        told=filters.told() | {"round": str(number)},
        kinds={name: FINDING_WORDS.get(name, name.replace("_", " ").capitalize()) for name in kinds},
        rows=[_row(found, names, stands) for found in page.found],
        more=f"/records?{urlencode(filters.told() | {'after': page.after})}" if page.after else "",
        narrowed=search != replace(Search(number=number), order=search.order, after=search.after),
        people=labellers if sight is Sight.ALL else [],
        may_give=viewer.may(Right.MANAGE_QUEUE) and stands in OPEN_STATES,
        pools=pools.pools(db),
        names=names,
        states=STATE_WORDS,
        orders=ORDER_WORDS,
        state_words=STATES[stands.value] if stands is not None else "",
        **schema_context(request),
    )


@router.post("/records/give")
@needs(Right.MANAGE_QUEUE)
def give_found(request: Request, form: Annotated[GiveFound, Form()]) -> Response:
    """Say whose everything is that fits the filters and is not finished."""
    number = int(form.round or 0)
    found = finding.all_found(
        request.app.state.db, request.state.account.id, form.search(number, _kinds(request, number))
    )
    _give(request, found, form.to)
    return RedirectResponse(f"/records?{urlencode(Filters(**form.told()).told())}", 303)


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
def give(request: Request, item_id: int, to: Annotated[To, Form()]) -> Response:
    """Say whose the record is: anybody's, a pool's or one person's."""
    _give(request, [min(max(item_id, 0), 2**31 - 1)], to)
    return RedirectResponse(f"/records/{item_id}", 303)


def _give(request: Request, item_ids: Sequence[int], to: str) -> None:
    kind, _, name = to.partition(":")
    pools.give_to(
        request.app.state.db,
        item_ids,
        by=request.state.account.id,
        pool_id=int(name) if kind == "pool" else None,
        account_id=name if kind == "person" else None,
    )


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
