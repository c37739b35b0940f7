"""What the viewer reads of runs, and what its server answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs_fixture
from viewing_play import line, make, rollout

from ponder.cli.main import main
from ponder.errors import UserError
from ponder.runs.files import append_line, keep_lines
from ponder.runs.run import Run
from ponder.viewing import rows
from ponder.viewing.catalog import Catalog
from ponder.viewing.server import HEADERS, PAGE, Server
from ponder.viewing.static import embedded, page
from ponder.viewing.watched import Watched

NASTY = "<script>alert(1)</script></script><img src=x onerror=alert(2)> \ud800 \u202e \x00 ]]>"


def cell(row: Any, name: str) -> Any:
    return row[rows.FIELDS.index(name)]


@contextlib.contextmanager
def serving(*names: Path) -> Iterator[Server]:
    server = Server(Catalog([str(n) for n in names]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    is_json = answer.headers.get("Content-Type") == "application/json"
    return answer.status, json.loads(body) if is_json and body else body, answer.headers


# Reading a run --------------------------------------------------------------------------------------------------------


def test_every_problem_is_listed_with_what_it_is_filtered_by(tmp_path):
    run = Watched(make(tmp_path / "run", 30, 2, seed=0), "run")
    state = run.state()
    assert len(state["rows"]) == 60
    assert {cell(r, "problem") for r in state["rows"]} == {f"made-up-test-{i}" for i in range(30)}
    for shown, written in zip(
        state["rows"], (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines(), strict=True
    ):
        line = json.loads(written)
        assert cell(shown, "kinds") == [line["verdict"]["kind"]]
        assert cell(shown, "stop") == line["stop"]
        assert cell(shown, "tokens") == line["spend"]["prompt_tokens"] + line["spend"]["sampled_tokens"]
        assert cell(shown, "cut") == (line["samples"][0]["finish"] == "length")
    assert state["evaluation"]["accuracy"]["n"] == 30


def test_a_group_of_a_training_shows_all_its_verdicts_and_its_mean_reward(tmp_path):
    row = rows.row(json.dumps(rollout(3, 0, (1.0, 0.0, 0.0, 1.0))).encode())
    assert cell(row.cells, "kinds") == ["correct", "wrong", "wrong", "correct"]
    assert cell(row.cells, "reward") == 0.5
    assert cell(row.cells, "step") == 3


def test_only_what_is_new_is_read_and_sent_while_a_run_is_written(tmp_path):
    made = make(tmp_path / "run", 5, 1, seed=0)
    run = Watched(made, "run")
    first = run.state()
    append_line(made / "rollouts.jsonl", line(random.Random(0), 5, 0, 2, 3, "correct"))
    append_line(made / "metrics.jsonl", {"step": 1, "reward": 0.5})
    with (made / "rollouts.jsonl").open("a") as file:
        file.write('{"problem": "half')
    more = run.state(first["generation"], len(first["rows"]), len(first["metrics"]))
    assert [cell(r, "problem") for r in more["rows"]] == ["made-up-test-5"]
    assert more["metrics"] == [{"step": 1, "reward": 0.5}]
    assert (more["after"], more["generation"], more["notes"]) == (5, first["generation"], [])
    assert not run.state(more["generation"], 6, 1)["rows"]


def test_rows_that_a_resumed_training_takes_back_are_sent_anew(tmp_path):
    made = tmp_path / "run"
    with Run.create(made, "", 0, ["ponder"]) as run:
        for step in (1, 2, 3):
            run.log_rollout(rollout(step, step, (0.0, 1.0)))
        watched = Watched(made, "run")
        first = watched.state()
        run.truncate_after(2)
        then = watched.state(first["generation"], 3, 0)
    assert then["generation"] != first["generation"]
    assert [cell(r, "step") for r in then["rows"]] == [1, 2]
    with pytest.raises(UserError, match="written anew"):
        watched.lines(first["generation"], [0])


def test_a_deleted_run_keeps_what_had_been_read_and_says_so_once(tmp_path):
    said: list[str] = []
    made = make(tmp_path / "run", 4, 1, seed=0)
    run = Watched(made, "run", on_error=said.append)
    first = run.state()
    shutil.rmtree(made)
    for _ in range(2):
        then = run.state(first["generation"], 4, 0)
    assert "was deleted while it was viewed" in then["error"]
    assert then["generation"] == first["generation"]
    assert said == [then["error"]]
    with pytest.raises(UserError, match="was deleted"):
        run.lines(first["generation"], [0])
    make(made, 2, 1, seed=1)
    assert len(run.state(first["generation"], 4, 0)["rows"]) == 2
    assert run.error == ""


def test_a_run_that_becomes_one_of_another_version_is_an_error_of_that_run_alone(tmp_path):
    with serving(make(tmp_path / "a", 3, 1, seed=0), make(tmp_path / "b", 3, 1, seed=0)) as server:
        ask(server, "/api/state?run=0")
        (tmp_path / "a" / "manifest.json").write_text('{"format": "ponder-run-9"}')
        assert "not a manifest that this version of ponder reads" in ask(server, "/api/state?run=0")[1]["error"]
        assert ask(server, "/api/state?run=1")[1]["error"] == ""


def test_lines_that_are_no_searches_are_counted_and_named_and_the_others_shown(tmp_path):
    made = make(tmp_path / "run", 2, 1, seed=0)
    bad = ["[1]", "{}", '{"problem": 1, "samples": 3}', "not json", '{"problem": "x", "samples": [{"text": 5}]}']
    with (made / "rollouts.jsonl").open("a") as file:
        file.write("\n".join(bad) + "\n\n" + json.dumps(line(random.Random(0), 9, 0, 2, 3, "wrong")) + "\n")
    (made / "metrics.jsonl").write_text("7\n")
    state = Watched(made, "run").state()
    assert [cell(r, "problem") for r in state["rows"]] == ["made-up-test-0", "made-up-test-1", "made-up-test-9"]
    assert "is not a search that this version of ponder reads" in state["notes"][0]
    assert state["notes"][-1] == "6 lines could not be read"


def test_text_that_json_readers_refuse_is_listed_and_shown(tmp_path):
    odd = line(random.Random(0), 0, 0, 2, 3, "wrong")
    odd["samples"][0]["text"] = NASTY
    with Run.create(tmp_path / "run", "", 0, ["ponder"]) as run, (run.path / "rollouts.jsonl").open("w") as file:
        file.write(json.dumps({**odd, "seconds": float("nan")}) + "\n")
    with serving(tmp_path / "run") as server:
        state = ask(server, "/api/state?run=0")[1]
        assert cell(state["rows"][0], "seconds") is None
        shown = ask(server, f"/api/lines?run=0&n=0&generation={state['generation']}")[1]["lines"][0]
        assert shown["samples"][0]["text"] == NASTY
        assert shown["seconds"] is None


def test_search_looks_in_prompts_responses_and_reasons_whatever_the_case(tmp_path):
    found = line(random.Random(0), 0, 0, 2, 3, "wrong")
    found["prompt"] = [{"role": "system", "content": "Be BRIEF"}, {"role": "user", "content": "wie heißt Ägypten?"}]
    found["samples"].append({**found["samples"][0], "id": 1, "text": "another Branch"})
    found["verdict"] = {**found["verdict"], "reason": "is 7, not 6"}
    with Run.create(tmp_path / "run", "", 0, ["ponder"]) as run:
        run.log_rollout(found)
        run.log_rollout(line(random.Random(1), 1, 0, 2, 3, "wrong"))
    with serving(tmp_path / "run") as server:
        ask(server, "/api/state?run=0")
        for text in ("be brief", "ÄGYPTEN", "another branch", "not 6", "made-up-test-0"):
            path = f"/api/search?{urllib.parse.urlencode({'run': 0, 'q': text})}"
            assert ask(server, path)[1] == {"found": [0]}, text
        assert ask(server, "/api/search?run=0&q=zebra")[1] == {"found": []}


def test_ids_and_log_probabilities_are_not_sent_to_the_page(tmp_path):
    found = line(random.Random(0), 0, 0, 2, 3, "wrong")
    found["samples"][0] |= {"prompt_ids": [1, 2], "segments": [{"ids": [3]}]}
    assert {"segments", "prompt_ids"}.isdisjoint(rows.full(json.dumps(found).encode())["samples"][0])


# Which runs -----------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_runs_newest_first_and_new_ones_join(tmp_path):
    for name, start in (("old", "2026-01-01"), ("new", "2026-02-01")):
        run = make(tmp_path / "deep" / name, 1, 1, seed=0)
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "start": start}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"format": "ponder-run-0"}')
    catalog = Catalog([str(tmp_path)])
    assert [Path(r["name"]).name for r in catalog.listed()["runs"]] == ["new", "old"]
    make(tmp_path / "later", 1, 1, seed=0)
    assert [Path(r["name"]).name for r in catalog.listed()["runs"]] == ["new", "old", "later"]


def test_a_run_that_is_named_twice_is_shown_once(tmp_path):
    run = make(tmp_path / "run", 1, 1, seed=0)
    assert len(Catalog([str(run), f"{run}/", str(tmp_path / "." / "run")]).runs) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("missing", "missing: no such run directory"),
        ("empty", "not a run directory (no manifest.json), and no folder of runs"),
        ("file", "no such run directory"),
        ("version", "not a manifest that this version of ponder reads (ponder-run-1)"),
        ("broken", "manifest.json: not valid JSON"),
    ],
)
def test_what_is_no_run_is_refused_in_one_sentence(tmp_path, capsys, given, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, text in (("version", '{"format": "ponder-run-2"}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    assert main(["view", str(tmp_path / given)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_without_runs_it_says_how_to_name_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["view"]) == 2
    assert "there is no run in runs/: name run directories" in capsys.readouterr().err


# The server -----------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence(tmp_path, capsys):
    run = make(tmp_path / "run", 1, 1, seed=0)
    with serving(run) as server:
        port = server.server_address[1]
        assert main(["view", str(run), "--port", str(port)]) == 2
    assert f"--port {port}: is in use" in capsys.readouterr().err
    for port in ("70000", "-1"):
        assert main(["view", str(run), "--port", port]) == 2
        assert "from 0 (any free port) to 65535" in capsys.readouterr().err


def test_the_usual_port_in_use_gives_another_one(tmp_path, monkeypatch, capsys):
    run = make(tmp_path / "run", 1, 1, seed=0)
    with serving(run) as server:
        monkeypatch.setattr(Server, "serve_forever", lambda _: None)
        monkeypatch.setattr("ponder.cli.view.PORT", server.server_address[1])
        assert main(["view", str(run)]) == 0
    said = capsys.readouterr()
    assert f"port {server.server_address[1]} is in use" in said.err
    assert said.out.startswith("http://127.0.0.1:")
    assert said.out.strip() != server.url


def test_the_command_prints_its_address_and_ends_with_ctrl_c(tmp_path):
    run = make(tmp_path / "run", 1, 1, seed=0)
    code = "import sys; from ponder.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "view", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        port = int(url.rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert b"ponder view" in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_it_listens_on_this_machine_alone(tmp_path):
    with serving(make(tmp_path / "run", 1, 1, seed=0)) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil:1", "", "[::2]:1", "localhost:x"],
)
@pytest.mark.parametrize("path", ["/", "/api/state?run=0"])
def test_other_names_of_this_machine_are_refused(tmp_path, host, path):
    with serving(make(tmp_path / "run", 1, 1, seed=0)) as server:
        status, body, _ = ask(server, path, Host=host)
    assert status == 403
    assert set(body) == {"error"}


@pytest.mark.parametrize("host", ["localhost", "LocalHost:7667", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8"])
def test_its_own_names_are_answered_with_any_port_for_tunnels(tmp_path, host):
    with serving(make(tmp_path / "run", 1, 1, seed=0)) as server:
        assert ask(server, "/api/runs", Host=host)[0] == 200


def test_only_the_page_and_its_questions_are_served(tmp_path):
    run = make(tmp_path / "run", 1, 1, seed=0)
    (tmp_path / "secret.html").write_text("secret")
    (run / "model").mkdir()
    (run / "model" / "secret.html").write_text("secret")
    paths = [
        "/secret.html",
        "/../secret.html",
        "/%2e%2e/secret.html",
        "//secret.html",
        "/manifest.json",
        "/model/secret.html",
    ]
    paths += [f"/{'../' * 9}etc/passwd", "/api/lines/../../secret.html", "/server.py", "/page/app.js", "/api/"]
    with serving(run) as server:
        for path in paths:
            status, body, _ = ask(server, path)
            assert (status, body) == (404, {"error": "there is no such page"}), path
        for path in ("/", *(f"/{p.name}" for p in PAGE.iterdir())):
            status, body, headers = ask(server, path)
            assert status == 200, path
            assert all(headers[name] == value for name, value in HEADERS.items())
        assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(tmp_path, method):
    with serving(make(tmp_path / "run", 1, 1, seed=0)) as server:
        assert ask(server, "/api/runs", method)[0] == 501


@pytest.mark.parametrize(
    "question",
    [
        *("state", "state?run=", "state?run=x", "state?run=7", "state?run=-1", "state?run=0&after=x", "lines?run=0"),
        *("lines?run=0&n=a", "lines?run=0&n=-1", "lines?run=0&n=9", "search?run=0", "compare?a=0", "compare?a=0&b=4"),
    ],
)
def test_a_wrong_question_gets_one_sentence_and_the_server_goes_on(tmp_path, question):
    with serving(make(tmp_path / "run", 1, 1, seed=0)) as server:
        status, body, _ = ask(server, f"/api/{question}")
        assert status == 400
        assert isinstance(body["error"], str)
        assert ask(server, "/api/runs")[0] == 200


def test_a_reader_that_goes_away_does_not_end_the_server(tmp_path, capfd):
    with serving(make(tmp_path / "run", 2000, 1, seed=0)) as server:
        for _ in range(3):
            with socket.create_connection(server.server_address[:2]) as rude:
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                rude.sendall(b"GET /api/state?run=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ask(server, "/api/runs")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_bug_is_one_sentence_and_the_server_goes_on(tmp_path, monkeypatch):
    with serving(make(tmp_path / "run", 1, 1, seed=0)) as server:
        monkeypatch.setattr(Watched, "about", lambda _: {}[1])
        assert ask(server, "/api/about?run=0")[0] == 400
        monkeypatch.setattr(Watched, "about", lambda _: 1 / 0)
        status, body, _ = ask(server, "/api/about?run=0")
        assert (status, body["error"]) == (500, "ZeroDivisionError: division by zero; this is a bug of the viewer")
        assert ask(server, "/api/runs")[0] == 200


@pytest.mark.parametrize("name", ["config.toml", "rollouts.jsonl", "metrics.jsonl", "evaluation.json", "curves.json"])
def test_a_link_out_of_a_run_is_not_followed(tmp_path, name):
    run, secret = make(tmp_path / "run", 1, 1, seed=0), tmp_path / "secret"
    secret.write_text('{"secret": 1, "train": [{"step": 1, "secret": 1}], "accuracy": {"secret": 1}}\n')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    with serving(run) as server:
        answers = [ask(server, f"/api/{question}?run=0")[1] for question in ("state", "about")]
    assert 'secret"' not in json.dumps(answers)
    if name != "curves.json":
        assert "leads out of the run" in json.dumps(answers)


def test_a_result_that_cannot_be_read_leaves_the_rows(tmp_path):
    run = make(tmp_path / "run", 3, 1, seed=0)
    (run / "evaluation.json").write_text('{"accuracy": 3}')
    (run / "curves.json").write_text('{"train": 3}')
    state = Watched(run, "run").state()
    assert len(state["rows"]) == 3
    assert "not the result of an evaluation that this version of ponder reads" in state["evaluation_error"]


def test_the_paired_difference_is_that_of_ponder_report(tmp_path, capsys):
    a, b = make(tmp_path / "a", 40, 1, seed=1, right=0.3), make(tmp_path / "b", 40, 1, seed=2, right=0.8)
    assert main(["report", str(a), str(b), "--json"]) == 0
    with serving(a, b) as server:
        assert ask(server, "/api/compare?a=0&b=1")[1] == json.loads(capsys.readouterr().out)


def test_runs_that_cannot_be_compared_give_the_sentence_why(tmp_path):
    with serving(make(tmp_path / "a", 4, 1, seed=1), make(tmp_path / "b", 5, 1, seed=1)) as server:
        status, body, _ = ask(server, "/api/compare?a=0&b=1")
    assert status == 200
    assert "did not answer the same problems" in body["error"]


def test_an_evaluation_that_is_under_way_is_compared_when_it_is_done(tmp_path):
    done = make(tmp_path / "done", 4, 1, seed=1)
    with Run.create(tmp_path / "going", "", 0, ["ponder", "eval"]) as run, serving(done, run.path) as server:
        for text in (done / "rollouts.jsonl").read_text().splitlines():
            run.log_rollout(json.loads(text))
        assert "is under way" in ask(server, "/api/compare?a=0&b=1")[1]["error"]
        run.write_json("evaluation.json", json.loads((done / "evaluation.json").read_text()))
        run.finish("done")
        assert ask(server, "/api/compare?a=0&b=1")[1]["difference"]["value"] == 0


def test_metrics_and_held_out_points_of_a_training_are_sent(tmp_path):
    with serving(runs_fixture.make(tmp_path / "run")) as server:
        state = ask(server, "/api/state?run=0")[1]
        about = ask(server, "/api/about?run=0")[1]
    assert [m["step"] for m in state["metrics"]] == list(range(1, 121))
    assert [p["step"] for p in state["train"]] == list(range(0, 121, 20))
    assert about["configs"] == {"config.toml": 'model = "ponder-tiny"\nseed = 0\n', "rl.toml": runs_fixture.rl_config()}


# One file -------------------------------------------------------------------------------------------------------------


def test_the_file_holds_all_rows_and_texts_and_asks_for_nothing(tmp_path, capsys):
    a, b = make(tmp_path / "a", 25, 1, seed=1), make(tmp_path / "b", 25, 1, seed=2)
    out = tmp_path / "both.html"
    assert main(["view", str(a), str(b), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text()
    held = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [len(run["lines"]) for run in held["runs"]] == [25, 25]
    assert held["compared"]["0,1"]["difference"]["n"] == 25
    assert "src=" not in text.partition("<body>")[0]
    assert "default-src 'none'" in text


def test_no_text_can_end_the_element_that_holds_it(tmp_path):
    odd = line(random.Random(0), 0, 0, 2, 3, "wrong")
    odd["samples"][0]["text"] = NASTY
    with Run.create(tmp_path / "run", "", 0, ["ponder"]) as run:
        run.log_rollout(odd)
    written = page(embedded(Catalog([str(run.path)])))
    assert "<img" not in written
    assert "<script>alert" not in written


def test_a_file_that_cannot_be_written_is_refused(tmp_path, capsys):
    run = make(tmp_path / "run", 1, 1, seed=0)
    assert main(["view", str(run), "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
    assert main(["view", str(run), "--out", str(tmp_path / "x.html"), "--port", "1"]) == 2
    assert "needs no --port" in capsys.readouterr().err


def test_the_page_is_part_of_the_package():
    import tomllib

    held = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert "viewing/page/*" in held["tool"]["setuptools"]["package-data"]["ponder"]
    assert {p.suffix for p in PAGE.iterdir()} == {".html", ".css", ".js", ".svg"}


def test_reading_a_run_changes_nothing_in_it(tmp_path):
    run = make(tmp_path / "run", 3, 1, seed=0)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.iterdir()}
    watched = Watched(run, "run")
    watched.lines(watched.state()["generation"], [0, 1, 2])
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.iterdir()} == before
    assert os.listdir(run) == list(before)


def test_rows_are_the_same_whether_read_at_once_or_as_they_grew(tmp_path):
    run = make(tmp_path / "run", 20, 1, seed=0)
    whole = (run / "rollouts.jsonl").read_bytes()
    lines = [json.loads(row) for row in whole.splitlines()]
    keep_lines(run / "rollouts.jsonl", [])
    grown = Watched(run, "run")
    grown.refresh()
    rng = random.Random(3)
    with (run / "rollouts.jsonl").open("ab") as file:
        at = 0
        while at < len(whole):
            size = rng.randint(1, 4000)
            file.write(whole[at : at + size])
            file.flush()
            at += size
            grown.refresh()
    assert [r.cells for r in grown.rows] == [r.cells for r in _fresh(run).rows]
    assert grown.lines(grown.generation, range(20)) == lines


def _fresh(run: Path) -> Watched:
    found = Watched(run, "run")
    found.refresh()
    return found
