"""A chat template of a stranger ends within seconds, in one message, whatever it does."""

from __future__ import annotations

import resource
import signal
import threading

import pytest
from jinja2 import TemplateError
from test_tokenize import NO_DEFAULT, chat, problems, with_template

from fasttune.console import FasttuneError
from fasttune.data import rendering

TURNS = [{"role": "user", "content": "q"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(t='a') %}{% for a in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (LOOP, "did not end within"),
        ("{{ (9**(9**9)) % 7 }}", "did not end within"),
        ("{{ 'a'*(10**11) }}", "of memory"),
        ("{{ 'a'|center(10**11) }}", "of memory"),
        (DOUBLING, "of memory"),
        ("{{ 'a'*(10**7) }}", "more than 1,000,000 characters"),
    ],
)
def test_a_template_beyond_a_limit_is_stopped(monkeypatch: pytest.MonkeyPatch, template: str, reason: str) -> None:
    seconds = 0.2 if "end" in reason else 60.0  # a slow machine must not reach the other limit first
    monkeypatch.setattr(rendering, "SECONDS", 2 * seconds)
    monkeypatch.setattr(rendering, "CPU_SECONDS", seconds)
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(FasttuneError) as caught:
        rendering.render(with_template(template), TURNS)
    (finding,) = caught.value.findings
    assert finding.code == "template-beyond-limits" and reason in finding.what
    assert before == (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM))
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


FAILING = {
    "1/0": "{{ 1/0 }}",
    "a macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a file": "{% include '/etc/passwd' %}",
    "a wrong type": "{{ 'a' + 1 }}",
    "syntax": "{% for",
    "the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "its own": "{{ raise_exception('no') }}",
}


@pytest.mark.parametrize("template", FAILING.values(), ids=FAILING)
def test_a_template_that_fails_is_one_finding(template: str) -> None:
    broken = with_template(template)
    with pytest.raises(TemplateError):
        rendering.render(broken, TURNS)
    with pytest.raises(FasttuneError) as caught:
        rendering.render_checked(broken, TURNS)
    assert [finding.code for finding in caught.value.findings] == ["template-refuses"]
    assert problems([chat("q", "a", id="t:1")], broken) == [("template-refuses", "t:1")]


def test_elsewhere_than_in_the_main_thread_templates_render_as_well() -> None:
    rendered: list[str] = []
    tokenizer = with_template(NO_DEFAULT)
    thread = threading.Thread(target=lambda: rendered.append(rendering.render(tokenizer, TURNS)))
    thread.start()
    thread.join()
    assert rendered == [rendering.render(tokenizer, TURNS)]
