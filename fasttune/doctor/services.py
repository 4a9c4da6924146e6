"""What a run talks to: the hub that a base comes from, and Ollama, in this Linux or in the Windows around it."""

from __future__ import annotations

import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from fasttune import machine
from fasttune.console import FasttuneError, _
from fasttune.doctor.outcome import Check, not_applicable, ok
from fasttune.doctor.situation import Situation

SECONDS = 3.0  # for an answer
ASKED_FOR = "Qwen/Qwen2.5-0.5B-Instruct"
OLLAMA_PORT = 11434


def hub(_situation: Situation) -> Check:
    """Whether the model hub, or the mirror that HF_ENDPOINT names, answers, and ModelScope beside it."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES"):
        return not_applicable("hub", _("HF_HUB_OFFLINE is set: bases come from the local cache"))
    from fasttune.training import hub as hubs

    addresses = hubs.config_addresses(ASKED_FOR)
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(addresses, pool.map(seconds_to, addresses.values()), strict=True))
    return judge_hubs(answers, is_mirror="HF_ENDPOINT" in os.environ)


def judge_hubs(answers: Mapping[str, float | str], *, is_mirror: bool) -> Check:
    """The result for the answers of the hub ("hf") and of ModelScope: seconds, or why there was none."""
    first, second = answers["hf"], answers["modelscope"]
    named = _("the mirror in HF_ENDPOINT") if is_mirror else _("the Hugging Face hub")
    if isinstance(first, float):
        return ok("hub", _("{hub} answers in {seconds:.1f} s", hub=named, seconds=first))
    what = _("{hub} does not answer: {reason}", hub=named, reason=first)
    why = _("a base that is not in the local cache can't be downloaded")
    if isinstance(second, float):
        fix = _("take bases from ModelScope, which answers: `python -m pip install modelscope`, and "
                "`--set model.mirror=modelscope`")  # fmt: skip
        return Check("hub", "warning", what, why, fix)
    fix = _("name a mirror: `export HF_ENDPOINT=ADDRESS`; or a proxy: `export https_proxy=ADDRESS`")
    return Check("hub", "warning", what, why, fix)


def seconds_to(address: str) -> float | str:
    """Seconds until a server answers a HEAD request with success, or in a few words why it does not."""
    began = time.monotonic()
    try:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "fasttune"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            return time.monotonic() - began
    except urllib.error.HTTPError as problem:
        return f"HTTP {problem.code}"
    except (OSError, ValueError) as problem:  # a name that can't be resolved, a refusal, a time-out, no address at all
        reason = getattr(problem, "reason", None) or problem
        return str(getattr(reason, "strerror", None) or reason)


def ollama() -> Check:
    """Whether an Ollama answers where an export would send a model, and its version; under WSL2 also the one of
    Windows."""
    from fasttune.export.ollama_server import server_version

    return find_ollama(server_version, machine.default_gateway() if machine.is_wsl() else "")


def find_ollama(server_version: Callable[[str | None, float], str], gateway: str) -> Check:
    """The result where `server_version` asks the server at an address (None: that of OLLAMA_HOST, else this machine)
    within so many seconds; `gateway` is the address of Windows, "" outside WSL2."""
    try:
        return judge_ollama(server_version(None, SECONDS))
    except FasttuneError as problem:
        own = problem.findings[0]
    host = os.environ.get("OLLAMA_HOST")
    if gateway and not host:
        windows = f"http://{gateway}:{OLLAMA_PORT}"
        try:
            found = server_version(windows, SECONDS)
        except FasttuneError:
            found = ""
        if found:
            what = _("Ollama {version} answers in Windows, which an export from here does not ask", version=found)
            fix = "`export OLLAMA_HOST=http://$(ip route show default | awk '{print $3}'):11434`"
            return Check("ollama", "warning", what, fix=fix)
    if host:
        what = _("no Ollama answers at the address in OLLAMA_HOST: {reason}", reason=own.what)
        return Check("ollama", "warning", what, fix=_("start it there, or ask this machine's: `unset OLLAMA_HOST`"))
    if shutil.which("ollama"):
        what = _("Ollama is installed and does not answer")
        return Check("ollama", "warning", what, _("an export could not import the model"), "`ollama serve`")
    reason = _("no Ollama on this machine; it is needed for `export.ollama` only")
    return not_applicable("ollama", reason)


def judge_ollama(found: str) -> Check:
    """The result for a server of this version."""
    what = _("version {version} answers", version=found)
    from fasttune.export.ollama_server import INSTALL, OLDEST_VERSION, is_too_old

    if not is_too_old(found):
        return ok("ollama", what)
    why = _("fasttune's import needs {oldest} or newer", oldest=OLDEST_VERSION)
    return Check("ollama", "warning", what, why, _("update it: `{command}`", command=INSTALL))
