"""The laws as a suite: this package keeps them all, and each of them catches who breaks it."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from titans_ts.benchmark import conformance as benchmark
from titans_ts.benchmark.tables import render
from titans_ts.conformance import CHECKS, STREAMS, Finding, Subject, examine

OURS = list(benchmark.ours())


class Average(nn.Module):
    """A memory of one vector: the mean of the tokens so far, each as far from it as it surprises."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        total, count = state or (x.new_zeros(x.shape[0], 1, x.shape[2]), 0)
        sums = total + x.cumsum(1)
        places = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None] + count
        return self.out(sums / places), (sums[:, -1:], count + x.shape[1])


class Leaks(Average):
    def forward(self, x, state):
        return super().forward(x.mean(1, keepdim=True).expand_as(x), state)


class Mixes(Average):
    def forward(self, x, state):
        return super().forward(x.mean(0, keepdim=True).expand_as(x), state)


class Forgets(Average):
    def forward(self, x, state):
        return super().forward(x, None)


class Idle(Average):
    def __init__(self, dim):
        super().__init__(dim)
        self.unused = nn.Parameter(torch.zeros(dim))


class Same(Average):
    def forward(self, x, state):
        return self.out(x), state


class Noisy(Average):
    def forward(self, x, state):
        y, state = super().forward(x, state)
        return y + torch.randn_like(y) * (state[1] > 0), state


class Overflows(Average):
    def forward(self, x, state):
        y, state = super().forward(x, state)
        return y * (1 if state[1] < 8192 else float("nan")), state


class Breaks(Average):
    def forward(self, x, state):
        if state is not None:
            raise RuntimeError("no state, please")
        return super().forward(x, state)


def failed(make: Any, count: int = 0, **kwargs: Any) -> dict[str, Finding]:
    found = examine(Subject(name="subject", make=make, **kwargs), count=count)
    return {each.check: each for each in found if each.holds is False}


@pytest.mark.parametrize("subject", OURS, ids=lambda subject: subject.name)
def test_this_package_keeps_every_law(subject):
    found = examine(subject, count=4096)
    assert [each.check for each in found] == [*CHECKS, "4,096 tokens"]
    assert [each for each in found if not each.holds] == []


def test_a_running_mean_keeps_every_law():
    assert failed(Average, count=8192) == {}


@pytest.mark.parametrize(
    ("make", "checks"),
    [
        (Leaks, {"causal"}),
        (Mixes, {"rows alone"}),
        (Forgets, set(STREAMS)),
        (Idle, {"gradients everywhere"}),
        (Same, {"repeats surprise less", "the past matters"}),
        (Noisy, {"repeats surprise less", *STREAMS}),
        (Overflows, {"20,000 tokens"}),
        (Breaks, {"20,000 tokens", *STREAMS}),
    ],
)
def test_who_breaks_a_law_is_found(make, checks):
    assert checks <= set(failed(make, count=20_000))


def test_what_fails_is_told_with_its_number_or_its_error():
    assert failed(Leaks)["causal"].number > 0.01
    assert failed(Idle)["gradients everywhere"].words == "of 3 parameters without gradient: unused"
    assert failed(Breaks)[STREAMS[0]].words == "RuntimeError: no state, please"


def test_a_law_that_is_not_claimed_is_not_counted():
    found = examine(Subject(name="subject", make=Forgets, streams=False), count=1024)
    assert [each.check for each in found if each.holds is None] == list(STREAMS)
    assert not [each for each in found if each.holds is False]


def test_a_surprise_that_is_shown_is_the_one_that_counts():
    grows = failed(Average, surprise=lambda module, x: torch.arange(1.0, x.shape[1] + 1).expand(x.shape[:2]))
    assert "surprise" in grows["repeats surprise less"].words


def test_a_window_as_long_as_the_sequence_is_refused():
    assert "use a shorter window" in failed(Average, reach=150)["the past matters"].words


def test_the_run_examines_what_is_installed_in_processes_of_their_own_and_says_what_is_not(monkeypatch, tmp_path):
    said: list[str] = []
    monkeypatch.setattr(benchmark, "ours", lambda: OURS[:1])
    monkeypatch.setitem(benchmark.FAMILIES, "titans-ts", lambda: OURS[:1])
    monkeypatch.setattr(benchmark, "version", absent)
    run = benchmark.run_conformance(count=512, say=said.append)
    assert "pip install titans-pytorch==" in said[1]
    assert len(run["rows"]) == 1
    assert said[0].endswith("9 of 9 hold")
    (tmp_path / "conformance.json").write_text(json.dumps(run))
    assert "NeuralMemory, linear" in render("<!-- table conformance -->\n<!-- end -->", tmp_path)


def absent(name: str) -> str:
    raise benchmark.PackageNotFoundError(name)
