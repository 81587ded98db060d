import contextlib
import dataclasses
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from prefchat_jax import Chat, ChatSettings
from prefchat_jax.chat.memory import Memory
from prefchat_jax.chat.styles import Style, register_style, unregister_style
from prefchat_jax.cli.chat import ChatFlags, open_conversation
from prefchat_jax.cli.commands import COMMANDS, complete, run_command
from prefchat_jax.cli.conversation import Conversation
from prefchat_jax.cli.main import main
from prefchat_jax.cli.piped import answer_lines
from prefchat_jax.cli.terminal import history_file, talk
from prefchat_jax.errors import UserError

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from prefchat_jax.cli.main import main; sys.exit(main())",
    "chat",
    "--weights",
]


@pytest.fixture(scope="module")
def chat(run):
    with Chat.load(run.run.path, settings=ChatSettings(min_confidence=0.0)) as made:
        yield made


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _piped(chat, text, **settings):
    out = io.StringIO()
    as_json = settings.pop("as_json", False)
    answer_lines(
        Conversation(chat, **settings),
        as_json=as_json,
        source=io.StringIO(text),
        target=out,
    )
    return out.getvalue()


def _command(run, *arguments, stdin="", **options):
    return subprocess.run(
        [*COMMAND, str(run.run.path), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


# --- explain


def test_an_explanation_adds_up(chat):
    history = [("user", "hello"), ("assistant", "We are open from nine to five.")]
    found = chat.explain("where is my parcel", history=history, style="creative")
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert list(found.probabilities) == sorted(
        found.probabilities, key=lambda name: -found.probabilities[name]
    )
    assert len(found.probabilities) == 4
    for candidate in found.candidates:
        assert sum(candidate.terms.values()) == pytest.approx(candidate.score, abs=1e-5)
    scores = [candidate.score for candidate in found.candidates]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    reply = chat.reply("where is my parcel", history=history, style="creative")
    ours = dataclasses.replace(found.reply, milliseconds=reply.milliseconds)
    assert ours == reply
    assert found.confidences[0] == pytest.approx(reply.confidence)
    assert found.searched == (("where is my parcel", 1.0),) and found.earlier == 2


def test_an_explanation_is_text_in_columns(chat):
    text = str(chat.explain("and how long?", history=[("user", "where is my parcel")]))
    assert "searched   0.350 where is my parcel" in text
    assert "1 of 1 earlier turns count" in text
    lines = text.splitlines()
    head = lines[lines.index("candidates") + 1]
    end = head.index("score") + len("score")
    for line in lines[lines.index("candidates") + 2 :]:
        assert re.fullmatch(r"\s*\d+\s+\d\.\d{3}", line[:end])
    assert "\x1b" not in text


def test_the_ten_best_are_cut_from_more(chat):
    found = chat.explain("parcel")
    many = dataclasses.replace(found, probabilities={str(i): 1 / 12 for i in range(12)})
    assert len(many.buckets) == 10 and len(many.probabilities) == 12


# --- pipes


def test_each_line_of_a_pipe_is_answered(chat):
    out = _piped(chat, "where is my parcel\n\nmoney back\n")
    assert [line.split(".")[0] for line in out.splitlines()] == [
        "Open Orders to track it",
        "First open Orders",
    ]


def test_json_has_one_object_a_line_and_no_commands(chat):
    out = _piped(chat, "where is my parcel\n\n/quit\nmoney back\n", as_json=True)
    objects = [json.loads(line) for line in out.splitlines()]
    assert len(objects) == 4 and out.isascii()
    first = objects[0]
    assert set(first) == {
        *("text", "bucket", "confidence", "abstained", "style", "buckets"),
        *("candidates", "milliseconds"),
    }
    assert first["bucket"] == "parcel" and not first["abstained"]
    best = first["candidates"][0]
    assert sum(best["terms"].values()) == pytest.approx(best["score"], abs=1e-4)


def test_why_and_explain_show_more(chat):
    plain = _piped(chat, "where is my parcel\n")
    why = _piped(chat, "where is my parcel\n", why=True)
    full = _piped(chat, "where is my parcel\n", explain=True)
    assert why.startswith(plain) and "[parcel] confidence" in why
    assert full.startswith(plain) and "decision   answered" in full
    assert "[parcel] confidence" not in full and "\x1b" not in full


def test_a_co_process_is_answered_line_by_line_without_jax(run):
    code = COMMAND[2].replace(
        "sys.exit(main())", "main(); print('jax' in sys.modules, 'rich' in sys.modules)"
    )
    for device in ("auto", "cpu"):
        argv = [sys.executable, "-c", code, *COMMAND[3:], str(run.run.path)]
        with subprocess.Popen(
            [*argv, "--json", "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            for message in ("where is my parcel", "money back"):
                process.stdin.write(f"{message}\n")
                process.stdin.flush()
                assert select.select([process.stdout], [], [], 30)[0]
                assert json.loads(process.stdout.readline())["bucket"]
            process.stdin.close()
            assert process.stdout.readline().split()[0] == "False"


def test_a_broken_pipe_ends_quietly(run):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, str(run.run.path)],
        input="where is my parcel\n" * 3,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_bytes_that_are_no_text_are_answered(run):
    done = subprocess.run(
        [*COMMAND, str(run.run.path), "--json"],
        input=b"where is my parcel \xff\xfe\n",
        capture_output=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["bucket"] == "parcel" and not done.stderr


# --- the terminal


def _talk(chat, *lines, **settings):
    """What a terminal shows; an exception among the lines is raised there."""
    given = iter(lines)

    def read(prompt):
        line = next(given, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    console = Console(file=io.StringIO(), width=150)
    conversation = Conversation(chat, **settings)
    talk(conversation, console, read)
    return console.file.getvalue(), conversation


def test_commands_change_the_conversation(chat):
    out, made = _talk(chat, "/style concise", "/creativity 0.7", "/why", "/explain on")
    assert (made.style, made.creativity) == ("concise", 0.7)
    assert made.why and made.explain
    out, made = _talk(chat, "hello", "/clear", "/stats", "/why on", "/why off")
    assert made.history == [] and len(made.exchanges) == 1 and not made.why
    assert re.search(r"messages +1\b", out)
    out, _ = _talk(chat, "where is my parcel", "/top 2", "/explain")
    assert re.search(r" 1  \d\.\d{3}  \[parcel\] Open Orders", out)
    assert " 3  0." not in out and "decision   answered" in out
    out, made = _talk(chat, "/help", "/quit", "hello")
    assert all(command.usage in out for command in COMMANDS.values())
    assert not made.exchanges


@pytest.mark.parametrize(
    "line",
    [
        "/style loud",
        "/style",
        "/creativity much",
        "/creativity 2",
        "/creativity nan",
        "/top 0",
        "/top all",
        "/top 3",
        "/why maybe",
        "/explain",
        "/explain maybe",
        "/memory",
        "/clear all",
        "/stats x",
        "/help me",
        "/quit now",
        "/nonsense",
        "/stlye concise",
    ],
)
def test_a_wrong_argument_is_one_line_and_the_chat_goes_on(line, chat):
    before, _ = _talk(chat, "where is my parcel")
    after, made = _talk(chat, line, "where is my parcel")
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    assert len(made.exchanges) == 1


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("/stlye concise", "/style"),
        ("/hepl", "/help"),
        ("/tpo 3", "/top"),
        ("/Quit", "/quit"),
        ("/mem search parcel", "/memory"),
    ],
)
def test_a_mistyped_command_is_no_question(line, meant, chat, capsys):
    line_of_error = f"no command {line.split()[0]}, did you mean {meant}?"
    out, made = _talk(chat, line)
    assert line_of_error in out and not made.exchanges
    assert _piped(chat, f"{line}\n") == ""
    assert capsys.readouterr().err == f"{line_of_error}\n"


@pytest.mark.parametrize(
    "line", ["/etc is full", "/ or not", "/me waves", "quit", "style"]
)
def test_other_lines_of_a_pipe_are_messages(line, chat):
    assert _piped(chat, f"{line}\n") != ""


def test_ctrl_c_leaves_the_line_and_ctrl_d_the_chat(chat):
    _, made = _talk(chat, KeyboardInterrupt(), "where is my parcel", EOFError(), "x")
    assert [exchange.message for exchange in made.exchanges] == ["where is my parcel"]


def test_completion():
    assert complete("/cr") == ["/creativity"]
    assert complete("/") == list(COMMANDS)
    assert complete("/style c") == ["creative", "concise"]
    assert complete("/why o") == ["on", "off"]
    assert complete("hello") == complete("/style concise x") == complete("/no c") == []
    register_style(Style(name="pirate"))
    try:
        assert complete("/style pi") == ["pirate"]
    finally:
        unregister_style("pirate")


def test_a_real_terminal_edits_completes_and_keeps_a_history(run, tmp_path):
    pytest.importorskip("readline")
    terminal, inside = pty.openpty()
    # A shell has what it runs in the background ignore Ctrl-C, tests too.
    code = (
        "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); " + COMMAND[2]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *COMMAND[3:], str(run.run.path)],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(inside)
    seen = b""

    def until(text, seconds=60):
        nonlocal seen
        end = time.monotonic() + seconds
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 4096)
        seen = seen.split(text, 1)[1]

    try:
        until(b"> ")
        os.write(terminal, b"half a line")
        until(b"half a line")
        time.sleep(0.5)  # Python misses Ctrl-C before it waits for the next key.
        os.write(terminal, b"\x03")
        until(b"> ")
        os.write(terminal, b"/styl\tconc\t\n")
        until(b"style is concise")
        until(b"> ")  # Before it the terminal is not readline's.
        os.write(terminal, b"where is my parcel\n")
        until(b"Open Orders")
        until(b"> ")
        os.write(terminal, b"\x04")
        with contextlib.suppress(OSError):  # Linux ends a terminal with an error.
            while select.select([terminal], [], [], 30)[0] and os.read(terminal, 4096):
                pass
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert "where is my parcel" in history_file().read_text()
    assert history_file().stat().st_mode & 0o077 == 0


# --- flags


def test_flags_reach_the_conversation(chat):
    given = ChatFlags(
        weights="r",
        style_mode="concise",
        creativity=0.9,
        response_temperature=0.3,
        seed=7,
        why=True,
        explain=True,
    )
    made = open_conversation(chat, given)
    assert (made.style, made.creativity, made.temperature) == ("concise", 0.9, 0.3)
    assert (made.seed, made.why, made.explain) == (7, True, True)


def test_a_registered_style_is_a_style_mode():
    register_style(Style(name="pirate"))
    try:
        assert ChatFlags(weights="r", style_mode="pirate").style_mode == "pirate"
    finally:
        unregister_style("pirate")


WRONG = {
    "style_mode": ["loud"],
    "creativity": ["1.5"],
    "response_temperature": ["-1"],
    "seed": ["-1"],
    "json": ["--why"],
    "memory_db": ["m.db"],
    "user": ["ann"],
    "device": ["npu"],
    "explain": ["maybe"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_flag_is_one_line(name, run, capsys):
    argv = ["chat", "--weights", str(run.run.path), f"--{name}", *WRONG[name]]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("prefchat: error: ")
    assert name in error or WRONG[name][0] in error


def test_memory_goes_on_after_a_restart_and_is_the_users_own(run, tmp_path):
    file = str(tmp_path / "m.db")
    flags = ["--min_confidence", "0", "--memory_db", file]
    said = lambda name, text: _command(run, *flags, "--user", name, stdin=text).stdout
    alone = said("bob", "and how long?\n")
    said("ann", "where is my parcel\n")
    assert said("ann", "and how long?\n/memory\n").startswith("Open Orders")
    listed = said("ann", "/memory search parcel\n")
    assert "where is my parcel" in listed
    assert "parcel" not in said("bob", "/memory search parcel\n")
    assert said("ann", "/memory forget 999\n") == ""
    assert said("ann", "/memory forget all\n").startswith("forgot 4 turns")
    assert said("ann", "/memory\n") == "nothing remembered of ann\n"
    assert said("ann", "and how long?\n") == alone


def test_forgetting_one_of_two_equal_turns_keeps_the_other(chat, tmp_path):
    with Memory(tmp_path / "m.db", "ann") as memory:
        _, made = _talk(chat, "hello", "money back", "hello", memory=memory)
        first, *_, last, reply = memory.turns()
        before = list(made.history)
        assert run_command(made, f"/memory forget {last.id}") == "forgot 1 turn"
        assert made.history == [*before[:4], before[5]]
        assert [exchange.message for exchange in made.exchanges] == []
        assert run_command(made, f"/memory forget {first.id}") == "forgot 1 turn"
        assert made.history == [*before[1:4], before[5]]
        with pytest.raises(UserError, match="no such turn"):
            run_command(made, f"/memory forget {first.id}")
        made.say("where is my parcel")
        run_command(made, f"/memory forget {reply.id}")
        assert not made.exchanges  # Its history held the reply.


def test_what_is_forgotten_is_not_explained(chat, tmp_path):
    with Memory(tmp_path / "m.db", "ann") as memory:
        _, made = _talk(chat, "money back", "hello", memory=memory)
        last = memory.turns()[2]
        run_command(made, f"/memory forget {last.id}")
        assert "money back" in str(run_command(made, "/explain"))
        assert run_command(made, "/memory forget all") == "forgot 3 turns"
        assert made.history == []
        with pytest.raises(UserError, match="no message yet"):
            run_command(made, "/explain")


def test_a_recent_reply_is_held_back_after_a_restart(chat, tmp_path):
    with Memory(tmp_path / "m.db", "ann") as memory:
        first = Conversation(chat, memory).say("where is my parcel")
        again = Conversation(chat, memory).say("where is my parcel")
    assert first.candidates[0].terms["repeat"] == 0
    repeated = [c for c in again.candidates if c.response == first.text]
    assert np.all([c.terms["repeat"] < 0 for c in repeated]) and repeated
