"""What a program says wherever its output leads: one line or silence, never a traceback."""

import io
import os
import sys

import pytest

from common.training import launch, output


def forked(act) -> tuple[int, str]:
    """Exit code of a forked process that does ``act(read, write)`` of a pipe, and what it wrote."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act(read, write)
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    os.close(write)
    with open(read) as text:
        said = text.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def stream(descriptor: int):
    return open(descriptor, "w", closefd=False)


def test_what_an_encoding_lacks_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    launch.run(lambda _: print("81.25 ± 0.50 └> 犬 \udcff"))
    assert written.getvalue() == rb"81.25 \xb1 0.50 \u2514> \u72ac \udcff" + b"\n"


def test_a_reader_that_goes_away_is_one_line():
    """``program | head -1``: print after print until the pipe breaks."""
    for unbuffered in [False, True]:

        def act(read, write):
            gone, out = os.pipe()
            os.close(gone)
            raw = open(out, "wb", 0)  # noqa: SIM115
            sys.stdout = io.TextIOWrapper(raw, write_through=True) if unbuffered else stream(out)
            sys.stderr = stream(write)
            sys.argv = ["program.py"]
            launch.run(lambda _: print("epoch 0", flush=True))

        assert forked(act) == (
            1,
            "program.py: error: the output cannot be written any more (Broken pipe); a training "
            "goes on from its last checkpoint with --resume auto (arbloss: resume auto)\n",
        )


def test_a_reader_that_goes_away_ends_a_tool_without_a_word():
    def act(read, write):
        gone, out = os.pipe()
        os.close(gone)
        sys.stdout, sys.stderr = stream(out), stream(write)
        launch.run(lambda _: print("a line", flush=True), trains=False)

    assert forked(act) == (141, "")


def test_a_full_disk_below_the_output_is_one_line():
    def act(read, write):
        sys.stdout, sys.stderr = open("/dev/full", "w"), stream(write)  # noqa: SIM115
        sys.argv = ["program.py"]
        launch.run(lambda _: print("epoch 0", flush=True))

    code, said = forked(act)
    assert code == 1
    assert "the output cannot be written any more (No space left on device)" in said
    assert said.count("\n") == 1


def test_help_into_a_closed_pipe_is_silent():
    def act(read, write):
        gone, out = os.pipe()
        os.close(gone)
        sys.stdout, sys.stderr = stream(out), stream(write)

        def main(_):
            print("usage: …")
            raise SystemExit(0)

        try:
            launch.run(main)
        finally:
            sys.stdout.flush()  # as the interpreter does at its end

    assert forked(act) == (0, "")


def test_the_error_itself_may_have_nowhere_to_go():
    def act(read, write):
        gone, out = os.pipe()
        os.close(gone)
        sys.stderr = stream(out)
        launch.run(lambda _: print("note", file=sys.stderr, flush=True))

    assert forked(act) == (1, "")


def test_closed_streams_are_no_files_of_the_run(tmp_path):
    """``program >&- 2>&-``: the next file must not become standard error."""

    def act(read, write):
        for descriptor in (1, 2):
            os.close(descriptor)
        sys.stdout = sys.stderr = None

        def main(_):
            with open(tmp_path / "log", "w") as log:
                os.write(write, str(log.fileno() > 2).encode())
            print("nobody hears this")
            sys.stderr.write("nor this\n")

        launch.run(main)

    assert forked(act) == (0, "True")
    assert (tmp_path / "log").read_text() == ""


def test_errors_of_files_and_networks_are_not_taken_for_the_output():
    assert not output.refused(FileNotFoundError(2, "No such file or directory", "x.txt"))
    assert not output.refused(ConnectionRefusedError(111, "Connection refused"))
    with pytest.raises(FileNotFoundError):
        launch.run(lambda _: open("no/such/file"))  # noqa: SIM115
