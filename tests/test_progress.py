"""The terminal's view of a run: a moving bar, plain lines elsewhere, the stages' table in 80 columns."""

import io
import itertools
import re

import numpy as np
import pytest
from rich.console import Console

from gadjax.progress import RunProgress, figures_that_matter, stage_table

FIGURES = {
    "before": {"nll": 5.1234, "rouge_l": 0.1, "length_mean": 61.24},
    "warmup": {
        "nll": 1.5,
        "rouge_l": 0.41,
        **{f"ngram_f1_{n}": n / 10 for n in range(1, 6)},
        "length_mean": 1261.2,
        "coverage": 0.25,
        "sampled_distinct_2": 0.61,
        "discriminator_accuracy": 0.93,
        "two_sample": 0.812,
        "two_sample_low": 0.76,
        "two_sample_high": 0.862,
    },
    "gad": {"nll": float("nan"), "two_sample": 1.0, "two_sample_low": 1.0, "two_sample_high": 1.0},
}


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def plain_console():
    return Console(file=io.StringIO(), width=80)


def terminal():
    return Console(file=io.StringIO(), width=80, force_terminal=True, force_interactive=True, color_system=None)


def shown(console):
    return console.file.getvalue()


def run_plain(total, seconds_per_step, *, done=0, **options):
    """The lines that a stage prints where there is no terminal."""
    console, clock = plain_console(), Clock()
    with RunProgress(console=console, clock=clock, **options) as progress:
        progress.start_stage("gad", total, done)
        for step in range(done + 1, total + 1):
            clock.now += seconds_per_step
            progress.advance({"loss": step / 8, "D acc": 0.75})
    return shown(console).splitlines()


def test_without_a_terminal_a_line_for_each_tenth():
    lines = run_plain(total=200, seconds_per_step=1)
    assert len(lines) == 1 + 10
    assert lines[0] == "GAD 0/200, ? left: compiling the first step of GAD"
    assert lines[1] == "GAD 20/200, 3:00 left: loss 2.5  D acc 0.75  1 s/step"
    assert lines[-1] == "GAD 200/200, 0:00 left: loss 25  D acc 0.75  1 s/step"
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_without_a_terminal_never_silent_for_long():
    lines = run_plain(total=1000, seconds_per_step=10)
    steps = [int(re.match(r"GAD (\d+)/", line).group(1)) for line in lines]
    assert max(b - a for a, b in itertools.pairwise(steps)) == 3
    assert lines[2].startswith("GAD 6/1000, 2:45:40 left"), "994 steps of 10 seconds"


def test_time_left_leaves_out_the_compiling_step_and_earlier_processes():
    console, clock = plain_console(), Clock()
    progress = RunProgress(console=console, clock=clock)
    progress.start_stage("warmup", total=10, done=5)
    for seconds in (500, 2, 4):
        clock.now += seconds
        progress.advance({})
    lines = shown(console).splitlines()
    assert lines == [
        "warmup 5/10, ? left: compiling the next step of warmup",
        "warmup 6/10, ? left",
        "warmup 7/10, 0:06 left: 2 s/step",
        "warmup 8/10, 0:06 left: 3 s/step",  # two steps at (2 + 4) / 2 seconds
    ]


def test_the_pace_leaves_out_what_later_steps_compile():
    """Of the third step's 62 seconds, 60 are spent on compiling: of a generator that begins to learn, say."""
    console, clock = plain_console(), Clock()
    progress = RunProgress(console=console, clock=clock)
    progress.start_stage("warmup", total=10)
    for seconds, compiled in ((500, 400), (2, 0), (62, 60), (2, 3)):
        clock.now += seconds
        progress.advance({}, compiled)
    progress.advance({}, compiled=100.0)  # on several threads: more than has passed
    paces = [line.split(", ", 1)[1] for line in shown(console).splitlines()]
    assert paces[1:] == [
        "? left",
        "0:16 left: 2 s/step",
        "0:14 left: 2 s/step",
        "0:06 left: 1 s/step",
        "0:00 left: 0 s/step",
    ]


def test_what_is_done_between_steps_is_said():
    """Without a terminal in a line, before a stage too; on a terminal in place of the figures, which come back."""
    plain = plain_console()
    for console in (plain, terminal()):
        progress = RunProgress(console=console, clock=Clock())
        with progress.doing("measuring on 128 held-out prompts"):
            assert shown(console) == "measuring on 128 held-out prompts\n", "before it is done"
        progress.start_stage("gad", 200)
        progress.advance({"loss": 1.5})
        with progress.doing("measuring on 128 held-out prompts"):
            during = shown(console)
        progress.end_stage()
        after = shown(console).removeprefix(during)
        if console is plain:
            assert during.splitlines()[-1] == "GAD 1/200, ? left: measuring on 128 held-out prompts"
            assert after == ""
        else:
            assert "loss 1.5" in after and after.rindex("loss 1.5") > after.rfind("measuring")


def test_a_terminal_gets_a_bar_with_figures_below():
    console, clock = terminal(), Clock()
    with RunProgress(console=console, clock=clock) as progress:
        progress.start_stage("warmup", 4)
        for _ in range(3):
            clock.now += 60
            progress.advance({"loss": 1.23456, "kl": 0.0, "reward": -1234.5, "tiny": 1.5e-7, "bad": float("nan")})
        progress.say("held-out nll [1.5]")
    text = shown(console)
    assert "compiling the first step of warmup" in text
    last = text[text.rindex("warmup") :].splitlines()
    assert "━" in last[0] and "3/4" in last[0] and "1:00 left" in last[0]
    assert "loss 1.23  kl 0  reward -1234  tiny 1.5e-07  bad nan" in last[1]
    assert "held-out nll [1.5]" in text


def test_the_terminal_is_given_back_after_an_error():
    console = terminal()
    with pytest.raises(KeyboardInterrupt), RunProgress(console=console) as progress:
        progress.start_stage("gad", 10)
        assert shown(console).rindex("\x1b[?25l") >= 0
        raise KeyboardInterrupt
    text = shown(console)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor shows again"


def test_stages_follow_each_other():
    console = plain_console()
    progress = RunProgress(console=console)
    progress.start_stage("seqkd", 1)
    progress.advance({})
    progress.start_stage("gad", 1)
    progress.advance({})
    progress.end_stage()
    assert [line.split(",")[0] for line in shown(console).splitlines()] == [
        "SeqKD 0/1",
        "SeqKD 1/1",
        "GAD 0/1",
        "GAD 1/1",
    ]
    with pytest.raises(ValueError, match="start_stage"):
        progress.advance({})


def count_rows(console, total, seconds_per_chunk=1, chunk=512):
    clock = Clock()
    with RunProgress(console=console, clock=clock) as progress:
        for done in range(chunk, total + chunk, chunk):
            clock.now += seconds_per_chunk
            progress.count("tokenising data.train", min(done, total), total)
        progress.say("next")
    return shown(console)


def test_rows_of_a_large_file_are_counted():
    """Without a terminal, there is a line at the start, one after a long silence, and one at the end."""
    lines = count_rows(plain_console(), 51_200).splitlines()
    assert lines == [
        "tokenising data.train 0/51200, ? left",
        "tokenising data.train 15872/51200, 1:09 left",
        "tokenising data.train 31232/51200, 0:39 left",
        "tokenising data.train 46592/51200, 0:09 left",
        "tokenising data.train 51200/51200, 0:00 left",
        "next",
    ]
    text = count_rows(terminal(), 51_200)
    last = text[text.rindex("tokenising") :].splitlines()[0]
    assert "━" in last and "51200/51200" in last and "compiling" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the bar is over"


@pytest.mark.parametrize("console", [plain_console(), terminal()])
def test_rows_of_a_small_file_are_not(console):
    assert count_rows(console, 3000).splitlines() == ["next"]


@pytest.mark.parametrize("console", [plain_console(), terminal()])
def test_other_processes_show_nothing(console, capsys):
    with RunProgress(console=console, enabled=False) as progress:
        progress.say("text")
        progress.start_stage("gad", 1)
        progress.advance({})
        progress.summary(FIGURES, ".", "checkpoints", {})
    assert shown(console) == capsys.readouterr().out == ""


def test_the_table_fits_80_columns():
    console = plain_console()
    console.print(stage_table(FIGURES))
    lines = [line.rstrip() for line in shown(console).splitlines()]
    assert max(map(len, lines)) <= 80
    header = [index for index, line in enumerate(lines) if line.startswith("stage")]
    rows = [line.split(maxsplit=7) for line in lines[header[0] + 1 : header[0] + 4]]
    assert rows == [
        ["before", "5.123", "0.100", "61.2", "–", "–", "–", "–"],
        ["warmup", "1.500", "0.410", "1261.2", "0.250", "0.610", "0.930", "0.812 ± 0.051"],
        ["GAD", "nan", "–", "–", "–", "–", "–", "1.000 ± 0.000"],
    ]
    assert "…" not in shown(console), "nothing is cut off"


def test_the_summary_says_where_everything_lies(tmp_path):
    exported = {"generator": tmp_path / ("deep" * 30) / "generator"}
    exported["generator"].mkdir(parents=True)
    (tmp_path / "metrics.jsonl").touch()
    console = plain_console()
    RunProgress(console=console).summary(FIGURES, tmp_path, "gs://bucket/run", exported)
    text = shown(console)
    assert f"metrics        {tmp_path / 'metrics.jsonl'}\n" in text
    assert f"generator      {exported['generator']}\n" in text, "long paths stay whole"
    assert f"python -m gadjax.chat --model={exported['generator']}\n" in text
    assert "samples.jsonl" not in text, "only what is there"
    assert "checkpoints    gs://bucket/run\n" in text
    assert text.index("1.000 ± 0.000") < text.index("metrics.jsonl")


def test_a_run_without_held_out_prompts_has_no_table(tmp_path):
    console = plain_console()
    RunProgress(console=console).summary({}, tmp_path, tmp_path / "absent", {"discriminator": tmp_path})
    assert "Held-out" not in shown(console)
    assert "gadjax.chat" not in shown(console) and "checkpoints" not in shown(console)


def test_tasks_one_after_the_other():
    console, clock = plain_console(), Clock()
    with RunProgress(console=console, clock=clock) as progress:
        for done in range(0, 101, 10):
            clock.now += 20
            progress.update("answers", done, 100)
        progress.update("KL", 1, 4)
        progress.update("overlap", 7, 7)
    assert shown(console).splitlines() == [
        "answers 0/100, ? left",
        *(
            f"answers {done}/100, {left} left"
            for done, left in ((20, "2:40"), (40, "2:00"), (60, "1:20"), (80, "0:40"))
        ),
        "answers 100/100, 0:00 left",
        "KL 0/4, ? left",
        "overlap 0/7, ? left",
        "overlap 7/7, ? left",
    ]


def test_a_task_shows_before_the_first_is_done():
    console, clock = plain_console(), Clock()
    with RunProgress(console=console, clock=clock) as progress:
        progress.update("scoring", 0, 3)
        assert shown(console) == "scoring 0/3, ? left\n"
        for done in (0, 1, 1, 2, 3):  # what loads and compiles comes before the first: it tells nothing of the pace
            clock.now += 40
            progress.update("scoring", done, 3)
    assert shown(console).splitlines()[-1] == "scoring 3/3, 0:00 left"
    assert "scoring 2/3, 1:20 left" in shown(console)


def test_tasks_on_a_terminal():
    console = terminal()
    with RunProgress(console=console) as progress:
        progress.update("answers", 3, 5)
        progress.update("KL", 4, 4)
    assert re.search(r"answers .* 3/5", shown(console)) and re.search(r"KL .* 4/4", shown(console))


def test_figures_that_matter():
    metrics = {"generator/loss": np.float32(1.5), "discriminator/accuracy": 0.5, "discriminator/loss": 7.0}
    assert figures_that_matter(metrics) == {"loss": 1.5, "D acc": 0.5}
