"""`tunesmith serve` and `tunesmith chat` as processes: addresses, signals, exit codes, pipes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

COMMAND = [sys.executable, "-m", "tunesmith.cli.main"]
QUESTION = {"role": "user", "content": "what does the light mean"}
Served = tuple[subprocess.Popen[str], str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tunesmith.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("models") / "tiny-base", "llama")


def long_request(url: str, **more: Any) -> Any:
    """A stream of about a thousand tokens."""
    body = {"model": "tiny-base", "messages": [QUESTION], "max_tokens": 200, "n": 8, "temperature": 2, "stream": True}
    return httpx.stream("POST", f"{url}/v1/chat/completions", json=body | more, timeout=60)


@pytest.fixture
def serving(base: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts `tunesmith serve` on a free port and gives the process and its address."""
    processes = []

    def begin(*options: str) -> Served:
        command = [*COMMAND, "--home", str(tmp_path), "serve", str(base), "--port", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout
        line = process.stdout.readline().strip()
        assert line, process.stderr.read() if process.stderr else ""
        return process, line

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_the_address_is_the_result_on_stdout(serving: Callable[..., Served]) -> None:
    process, url = serving("--json")
    value = json.loads(url)
    assert value["models"] == ["tiny-base"]
    assert value["base_url"] == f"{value['url']}/v1"
    assert value["url"].startswith("http://127.0.0.1:")
    assert httpx.get(f"{value['url']}/readyz").status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_sigterm_finishes_what_is_in_flight_and_exits_0(serving: Callable[..., Served]) -> None:
    process, url = serving()
    with long_request(url) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while httpx.get(f"{url}/readyz").status_code != 503:
            assert time.monotonic() < end
        refused = httpx.post(f"{url}/v1/chat/completions", json={"model": "tiny-base", "messages": [QUESTION]})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        text = "\n".join(lines)
    assert text.count('"finish_reason": "') == 8
    assert text.rstrip().endswith("data: [DONE]")
    assert "error" not in text
    assert process.wait(20) == 0


def test_a_second_signal_stops_now(serving: Callable[..., Served]) -> None:
    process, url = serving()
    threads = [threading.Thread(target=_read_all, args=(url,)) for _ in range(30)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while "tunesmith_num_requests_waiting 2" not in httpx.get(f"{url}/metrics", timeout=30).text:
        assert time.monotonic() < end
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive(), "a client was not cut off"
    assert process.wait(20) == 130


def _read_all(url: str) -> None:
    try:
        with long_request(url) as response:
            response.read()
    except httpx.HTTPError:
        pass  # it was cut off, as the test wants


def test_a_port_in_use_is_one_line_with_the_process_and_the_remedy(base: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("--home", str(tmp_path), "serve", str(base), "--port", str(port))
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert f"port {port} is taken by process {os.getpid()} (" in last
    assert f"--port {port + 1}" in last
    assert "[port_in_use]" in last


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    done = run("--home", str(tmp_path), "serve", "nobody")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert '"nobody"' in done.stderr
    assert list(tmp_path.glob("runs")) == []


def test_piped_questions_are_answered_line_by_line(base: Path, tmp_path: Path) -> None:
    words = ("--home", str(tmp_path), "chat", str(base), "--max-tokens", "5")
    done = run(*words, stdin="what does the light mean\n\npress the button\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    alone = run(*words, stdin="press the button\n")
    assert alone.stdout.splitlines() == done.stdout.splitlines()[1:]


def test_piped_questions_as_json_are_one_object(base: Path, tmp_path: Path) -> None:
    done = run("--json", "--home", str(tmp_path), "chat", str(base), "--max-tokens", "3", stdin="hello\n")
    value = json.loads(done.stdout)
    (answer,) = value["answers"]
    assert value["model"] == "tiny-base"
    assert (answer["question"], answer["num_tokens"], answer["finish_reason"]) == ("hello", 3, "length")


def test_a_terminal_talk_has_turns_and_commands(base: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    words = [*COMMAND, "--home", str(tmp_path), "chat", str(base), "--max-tokens", "3"]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    seen = _read_until(master, "you    ")
    assert "/reset" in seen
    for line, answer in (("hello", "model  "), ("/reset", "forgotten"), ("/what", "/quit")):
        os.write(master, f"{line}\n".encode())
        assert answer in _read_until(master, "you    ")
    os.write(master, b"\x04")
    assert process.wait(20) == 0
    os.close(master)


def _read_until(master: int, mark: str) -> str:
    text = ""
    while mark not in text:
        text += os.read(master, 4096).decode(errors="replace")
    return text
