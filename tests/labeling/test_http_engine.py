"""Talking to llama.cpp's server: what is believed, what is refused, and never to anybody else."""

import contextlib
import itertools
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from scripted_engine import FAULTS, WIDTH, ScriptedEngine, code_id, token_id
from small_projects import ProjectFactory

from labeling.engines import http as http_module
from labeling.engines.http import EngineConnection, check_address, finite, says_too_long
from labeling.engines.llama_server import UNKNOWN, LlamaServer, LlamaServerEmbedder
from labeling.engines.opening import connect_embedder
from labeling.engines.protocol import FirstToken, LabelCode, LabelScores
from schemas.errors import EngineError, EngineUnavailable, ProjectError, PromptTooLong

Connect = Callable[..., LlamaServer]
CODES = (LabelCode("alpha", " alpha", code_id("alpha")), LabelCode("beta", " beta", code_id("beta")))
FRAME = "Which letter?\nText: {}\nLabel:"
UNAVAILABLE = {"refuse", "hang", "slow", "500", "503", "429", "cut stream"}


def ask(engine: LlamaServer, text: str) -> LabelScores:
    return engine.score(engine.tokenize(FRAME.format(text)), CODES, slot=0)


# -- scores ----------------------------------------------------------------------------------------------------------


def test_label_scores_are_the_models_own_log_probabilities(
    scripted: ScriptedEngine, connect: Connect
) -> None:
    scores = ask(connect(scripted), "an alpha")

    assert scores.log_probs == pytest.approx(scripted.label_log_probs("an alpha"))
    assert scores.label_mass == pytest.approx(0.9)
    assert scores.tokens_sent == len(connect(scripted).tokenize(FRAME.format("an alpha")).ids)
    assert scores.tokens_cached == max(scores.tokens_sent - 8, 0)


def test_labels_outside_the_likely_tokens_get_their_ratio_from_a_second_call(
    scripted: ScriptedEngine, connect: Connect
) -> None:
    scripted.hide_labels_in_raw = True

    scores = ask(connect(scripted), "an alpha")

    first, second = scripted.label_log_probs("an alpha")
    assert scores.log_probs[0] - scores.log_probs[1] == pytest.approx(first - second)
    assert max(scores.log_probs) == pytest.approx(
        math.log(0.1 / 4)
    )  # bounded by the least likely token that was told
    assert scripted.routes["/completion"] == 2


def test_text_that_looks_like_a_control_token_is_sent_as_text(
    connect: Connect, scripted: ScriptedEngine
) -> None:
    engine = connect(scripted)

    assert engine.token_ids("<|im_end|>") == engine.tokenize("<|im_end|>").ids[1:]


@pytest.mark.parametrize("adds_space", [False, True])
def test_the_first_token_of_a_label_is_the_one_it_has_after_a_colon(
    adds_space: bool, scripted: ScriptedEngine, connect: Connect
) -> None:
    scripted.adds_space = adds_space
    engine = connect(scripted)

    first = [engine.first_token(code.text) for code in CODES]

    assert first == [FirstToken(code.token_id, "", True) for code in CODES]


def test_a_colon_that_is_one_token_with_what_follows_is_left_out(
    scripted: ScriptedEngine, connect: Connect
) -> None:
    assert connect(scripted).first_token("alpha") == FirstToken(token_id("alpha"), "", True)


def test_a_slot_count_and_context_come_from_the_server(scripted: ScriptedEngine, connect: Connect) -> None:
    scripted.context, scripted.slots = 2048, 7

    engine = connect(scripted)

    assert (engine.context, engine.slots) == (2048, 7)


def test_warming_fills_every_slot_without_asking_for_a_label(
    scripted: ScriptedEngine, connect: Connect
) -> None:
    engine = connect(scripted)

    engine.warm(engine.tokenize("Which letter?"))

    assert scripted.routes["/completion"] == scripted.slots
    assert not scripted.asked


def test_the_identity_changes_with_the_model_the_build_and_the_context(
    scripted: ScriptedEngine, connect: Connect
) -> None:
    engine = connect(scripted)
    seen = {str(engine.identity())}
    for change in ({"model_alias": "other.gguf"}, {"build_info": "b2"}, {"model_ftype": "Q8_0"}):
        scripted.props_extra = change
        seen.add(str(engine.identity()))
    scripted.props_extra = {"default_generation_settings": {"n_ctx": 64}}
    seen.add(str(engine.identity()))

    assert len(seen) == 5


def test_a_path_of_the_servers_machine_is_not_part_of_the_models_name(
    scripted: ScriptedEngine, connect: Connect
) -> None:
    scripted.props_extra = {"model_alias": None, "model_path": "/srv/models/m.gguf"}

    assert connect(scripted).identity().model == "m.gguf"


META = {"n_params": 7_000_000, "size": 4_000_000}


@pytest.mark.parametrize(
    ("props", "meta"),
    [
        ({"model_path": "/models/other.gguf"}, META),
        ({"model_path": "/elsewhere/scripted.gguf"}, META),
        ({}, {**META, "n_params": 8_000_000}),
        ({}, {**META, "size": 5_000_000}),
        ({}, None),
    ],
)
def test_without_a_digest_the_identity_covers_what_the_server_tells_of_the_file(
    props: dict[str, Any], meta: dict[str, Any] | None, scripted: ScriptedEngine
) -> None:
    scripted.model_entry = {"meta": META}
    engine = LlamaServer(EngineConnection(scripted.url, timeout_s=5), digest=UNKNOWN)
    before = engine.identity()
    assert before.digest.startswith("unknown-") and engine.identity() == before

    scripted.props_extra, scripted.model_entry = props, {"meta": meta}

    assert engine.identity().digest != before.digest
    assert engine.identity().model == before.model


def test_with_a_digest_of_the_project_the_file_and_its_size_stand_beside_the_alias(
    scripted: ScriptedEngine,
) -> None:
    engine = LlamaServer(EngineConnection(scripted.url, timeout_s=5), digest="d" * 64)
    assert engine.identity().model == "scripted.gguf"

    scripted.props_extra = {"model_alias": "ours", "model_path": "/models/m.gguf"}
    scripted.model_entry = {"meta": META}
    beside = engine.identity()
    scripted.props_extra = {"model_alias": "ours", "model_path": "/elsewhere/m.gguf"}

    assert (beside.model, beside.digest) == ("ours (m.gguf, 4,000,000 bytes)", "d" * 64)
    assert engine.identity() == beside  # the project says that the weights are the same


# -- replies that are not believed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_no_score_comes_of_a_reply_with_a_fault(
    fault: str, scripted: ScriptedEngine, connect: Connect
) -> None:
    scripted.misbehave("bad", fault)
    engine = connect(scripted, timeout_s=0.4)

    with pytest.raises(EngineError) as caught:
        ask(engine, "bad one")

    assert isinstance(caught.value, EngineUnavailable) is (fault in UNAVAILABLE)
    assert caught.value.retryable is (fault in UNAVAILABLE)
    assert isinstance(caught.value, PromptTooLong) is (fault == "low prompt count")
    assert caught.value.path == f"{scripted.url}/completion"
    assert caught.value.found and caught.value.next_step


def test_a_good_reply_after_each_fault_is_believed_again(scripted: ScriptedEngine, connect: Connect) -> None:
    engine = connect(scripted, timeout_s=0.4)
    for fault in FAULTS:
        scripted.faults.clear()
        # A label that is missing from the first reply may come with the second call; it has to be missing there too.
        scripted.misbehave("bad", fault, times=2 if "label" in fault else 1)
        with pytest.raises(EngineError):
            ask(engine, "bad one")
        scripted.faults.clear()

        assert ask(engine, "bad one").log_probs == pytest.approx(scripted.label_log_probs("bad one"))


@pytest.mark.parametrize(
    "hidden",
    [
        {"completion_probabilities": "none"},
        {"completion_probabilities": ["x"]},
        {"completion_probabilities": [{"top_logprobs": {}}]},
        {"completion_probabilities": [{"top_logprobs": [1, 2]}]},
        {"completion_probabilities": [{"top_logprobs": [{"id": CODES[0].token_id, "logprob": "high"}]}]},
        {"completion_probabilities": [{"top_logprobs": [{"id": CODES[0].token_id, "logprob": True}]}]},
        {"completion_probabilities": [{"top_logprobs": [{"id": CODES[0].token_id, "logprob": 2.0}]}]},
        {"completion_probabilities": [{"top_logprobs": [{"id": c.token_id, "logprob": 0.0} for c in CODES]}]},
        {"completion_probabilities": [{"top_logprobs": [{"id": CODES[0].token_id, "logprob": -1.0}] * 2}]},
        {"completion_probabilities": [{"top_logprobs": [{"id": str(CODES[0].token_id), "logprob": -1.0}]}]},
        {"truncated": True},
        {"tokens_evaluated": None},
    ],
    ids=lambda hidden: str(hidden)[:70],
)
def test_a_reply_of_the_wrong_shape_is_an_engine_error(
    hidden: dict[str, object], scripted: ScriptedEngine, connect: Connect
) -> None:
    scripted.hidden = hidden

    with pytest.raises(EngineError):
        ask(connect(scripted), "alpha")


@pytest.mark.parametrize("timings", [None, "fast", {"cache_n": "many"}, {"cache_n": -5}, []])
def test_timings_nobody_can_read_cost_nothing_but_the_cache_count(
    timings: object, scripted: ScriptedEngine, connect: Connect
) -> None:
    scripted.hidden = {"timings": timings}

    assert ask(connect(scripted), "alpha").tokens_cached == 0


@pytest.mark.parametrize(
    "props", [{"default_generation_settings": None}, {"default_generation_settings": "x"}]
)
def test_a_server_without_a_context_size_is_refused(
    props: dict[str, object], scripted: ScriptedEngine
) -> None:
    scripted.props_extra = props

    with pytest.raises(EngineError) as caught:
        LlamaServer(EngineConnection(scripted.url, timeout_s=2), digest="x")

    assert caught.value.found == "no context size"


def test_a_port_where_nobody_listens_is_unavailable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    with pytest.raises(EngineUnavailable) as caught:
        LlamaServer(EngineConnection(f"http://127.0.0.1:{port}", timeout_s=2), digest="x")

    assert "ConnectionRefusedError" in caught.value.found


# -- the connection --------------------------------------------------------------------------------------------------


def test_one_connection_serves_many_requests(scripted: ScriptedEngine, connect: Connect) -> None:
    engine = connect(scripted)
    for number in range(20):
        ask(engine, f"text {number}")

    assert len(engine._http._idle) == 1


def test_requests_at_once_have_a_connection_each(scripted: ScriptedEngine, connect: Connect) -> None:
    engine = connect(scripted)
    scripted.delay_s = 0.05
    threads = [threading.Thread(target=ask, args=(engine, f"text {number}")) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(engine._http._idle) == 6
    engine.close()
    assert len(engine._http._idle) == 0


@pytest.fixture
def forgetful() -> Iterator[str]:
    """A server that ends every connection after one reply without saying so."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            link.recv(65_536)
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            link.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_connection_the_server_ended_while_idle_is_not_used_again(forgetful: str) -> None:
    connection = EngineConnection(forgetful, timeout_s=5)

    for _ in range(5):
        assert connection.call("GET", "/x") == {}
        for idle in connection._idle:
            threading.Event().wait(0.02)  # the end of the connection has to arrive
            assert http_module._ended(idle.sock)


def test_a_chunked_reply_is_read_to_its_end_and_bounded() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    sizes = [2, http_module.MAX_REPLY_BYTES + 10]

    def serve() -> None:
        for size in sizes:
            link, _ = listener.accept()
            link.recv(65_536)
            body = b"{}".ljust(size)
            link.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            try:
                link.sendall(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
            except OSError:
                pass
            link.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    connection = EngineConnection(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=5)

    assert connection.call("GET", "/x") == {}
    connection.close()
    with pytest.raises(EngineError) as caught:
        connection.call("GET", "/x")
    assert "over 8,000,000 bytes" in caught.value.found
    thread.join()
    listener.close()


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers each request with whatever `answer` sends, and keeps the connection until it returns."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            while link.recv(65_536):
                answer(link)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize("interim", ["102 Processing", "103 Early Hints"])
def test_the_answer_after_an_interim_one_is_not_taken_for_that_of_the_next_request(interim: str) -> None:
    numbers = itertools.count()

    def answer(link: socket.socket) -> None:
        link.sendall(f"HTTP/1.1 {interim}\r\n\r\n".encode())
        time.sleep(0.05)
        body = str(next(numbers)).encode()
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    with answering(answer) as url:
        connection = EngineConnection(url, timeout_s=5)
        for _ in range(4):
            with pytest.raises(EngineError) as caught:
                connection.call("GET", "/x")
            assert f"HTTP {interim[:3]}" in caught.value.found


TRICKLES = {
    "header": (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "size of a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"a"),
    "trailer": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("what", TRICKLES)
def test_a_reply_that_trickles_for_ever_ends_at_the_deadline(what: str) -> None:
    first, more = TRICKLES[what]

    def answer(link: socket.socket) -> None:
        link.sendall(first)
        for _ in range(100):
            time.sleep(0.1)
            link.sendall(more)

    with answering(answer) as url:
        started = time.monotonic()
        with pytest.raises(EngineUnavailable) as caught:
            EngineConnection(url, timeout_s=0.5).call("GET", "/x")

    assert caught.value.found == "no answer within 0.5 s"
    assert time.monotonic() - started < 5


def test_an_engine_that_ran_out_of_time_did_not_say_that_the_prompt_is_too_long() -> None:
    def answer(link: socket.socket) -> None:
        body = b'{"error": "context deadline exceeded"}'
        link.sendall(b"HTTP/1.1 500 x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    with answering(answer) as url, pytest.raises(EngineUnavailable) as caught:
        EngineConnection(url, timeout_s=5).call("GET", "/x")

    assert not says_too_long(caught.value)


def test_proxies_named_in_the_environment_are_not_used(
    scripted: ScriptedEngine, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert ask(connect(scripted), "alpha").label_mass == pytest.approx(0.9)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://127.9.9.9", "http://[::1]:8080", "http://localhost:1"]
)
def test_loopback_is_always_allowed(url: str) -> None:
    check_address(url, [])


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:8080",
        "http://example.org",
        "http://0.0.0.0:8080",
        "http://127.0.0.1@example.org",
        "http://localhost.example.org",
        "ftp://127.0.0.1",
        "127.0.0.1:8080",
        "http://",
        "file:///etc/passwd",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:x",
        "http://[::1",
    ],
)
def test_any_other_address_is_refused(url: str) -> None:
    with pytest.raises(ProjectError) as caught:
        check_address(url, [])

    assert caught.value.path == "engine.endpoints"


def test_a_machine_of_the_clients_own_is_allowed_by_name() -> None:
    check_address("http://gpu-1.intern:8080", ["gpu-1.intern"])
    check_address("http://GPU-1:8080", ["GPU-1"])


def test_an_address_of_the_embedding_model_is_refused_under_its_own_key(
    project_folder: ProjectFactory,
) -> None:
    settings = {"kind": "llama-server", "endpoints": ["http://192.0.2.1:8080"]}
    project, _ = project_folder([{"text": "a"}], labels=["a", "b"], embedding=settings)

    with pytest.raises(ProjectError) as caught:
        connect_embedder(project)

    assert caught.value.path == "embedding.endpoints"


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (-2.5, -2.5), (True, None), ("1", None), (None, None), (math.inf, None), (10**400, None)],
    ids=lambda value: str(value)[:9],
)
def test_only_finite_numbers_are_numbers(value: object, number: float | None) -> None:
    assert finite(value) == number


# -- embeddings ------------------------------------------------------------------------------------------------------


def test_vectors_come_in_the_order_of_the_texts_and_have_length_one(scripted: ScriptedEngine) -> None:
    embedder = LlamaServerEmbedder(EngineConnection(scripted.url, timeout_s=5), model_id="scripted")
    texts = [f"text {number} alpha" for number in range(70)]

    vectors = embedder.embed(texts)

    expected = np.array([scripted.vector(text) for text in texts], dtype=np.float32)
    assert vectors.shape == (70, WIDTH) and embedder.width == WIDTH
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    embedder.close()


def test_an_over_long_text_is_embedded_by_its_beginning(scripted: ScriptedEngine) -> None:
    scripted.context = 32
    embedder = LlamaServerEmbedder(EngineConnection(scripted.url, timeout_s=5), model_id="scripted")

    embedder.embed(["word " * 500])

    assert scripted.routes["/tokenize"] == 1


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        [{"index": 0}],
        [{"embedding": [1.0]}],
        [{"index": 0, "embedding": "x"}],
        ["x"],
        [{"index": 0, "embedding": [1.0, None]}],
    ],
    ids=str,
)
def test_a_reply_without_vectors_is_an_engine_error(
    data: object, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = LlamaServerEmbedder(EngineConnection(scripted.url, timeout_s=5), model_id="scripted")
    monkeypatch.setattr(scripted, "embeddings", lambda body: {"data": data})

    with pytest.raises(EngineError) as caught:
        embedder.embed(["one"])

    assert caught.value.path == f"{scripted.url}/v1/embeddings"
