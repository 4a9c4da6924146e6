"""The Modelfile's TEMPLATE, rendered by Go's own text/template as Ollama does it, is the training template."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from exports import SYSTEM, TINY

from fasttune.data import rendering
from fasttune.export import chatml
from fasttune.export.modelfile import template

# As template.Template.Execute of Ollama gives them: {"Messages": [{Role, Content}]}, its fields by name.
PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }
type Case struct {
	Template string
	Messages []Message
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, one := range cases {
		var text strings.Builder
		made := template.Must(template.New("").Parse(one.Template))
		if err := made.Execute(&text, map[string]any{"Messages": one.Messages}); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""
TURNS = ["你好 {{ .Role }}", "早！\n\n", ' <b>&amp;</b> "quotes" \\n ', "```go\nx := 1\n```"] * 2
Message = dict[str, str]


def conversation(turns: int, system: str | None) -> list[Message]:
    """So many questions, all but the last one answered; the system message that a user gave, or none."""
    roles = ["user", "assistant"] * turns
    said = [{"role": role, "content": text} for role, text in zip(roles[: 2 * turns - 1], TURNS, strict=False)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def as_ollama_sends_it(messages: list[Message], served: str | None) -> list[Message]:
    """With the model's SYSTEM before a conversation without a system message (server/routes.go); "" counts as none."""
    return (
        [{"role": "system", "content": served}, *messages] if served and messages[0]["role"] != "system" else messages
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that renders; compiled once."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: apt-get install golang-go")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(PROGRAM, encoding="utf-8")
    variables = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}
    built = subprocess.run(
        [go, "build", "-o", "render", "main.go"], cwd=folder, env=variables, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return [str(folder / "render")]


@pytest.mark.slow  # compiles Go's standard library
def test_go_renders_what_training_renders(program: list[str]) -> None:
    tokenizer = chatml.load_tokenizer(TINY)
    cases: list[dict[str, Any]] = []
    expected = []
    for trained in (SYSTEM, None, ""):
        served = trained if trained is not None else chatml.default_system(tokenizer)
        for given in (None, "another, 另一个"):
            for turns in (1, 2, 3, 4):
                messages = conversation(turns, given)
                sent = as_ollama_sends_it(messages, served)
                go_messages = [{"Role": one["role"], "Content": one["content"]} for one in sent]
                cases.append({"Template": template(served), "Messages": go_messages})
                before = [] if given is not None or trained is None else [{"role": "system", "content": trained}]
                expected.append(rendering.render_checked(tokenizer, [*before, *messages], prompt=True))
    done = subprocess.run(program, input=json.dumps(cases), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected and len(expected) == 24


def test_the_python_side_is_not_empty() -> None:
    assert [one["role"] for one in conversation(3, "x")] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert as_ollama_sends_it(conversation(1, None), "s")[0] == {"role": "system", "content": "s"}
    assert as_ollama_sends_it(conversation(1, None), "")[0]["role"] == "user"
    assert Path(TINY, "chat_template.jinja").is_file()
