"""What the set-up says, in English and in Chinese.

It runs before fasttune with its catalog is installed, so the Chinese stands here, by the English text. A test holds
that none is missing and none is left over.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

CHINESE = {
    "Make .venv and install the locked set into it.": "新建 .venv，并把锁定版本的软件包装进去。",
    "also what `make test` and `make check` need": "同时安装 `make test` 和 `make check` 需要的软件包",
    "error: {what}\n hint: {fix}": "错误：{what}\n提示：{fix}",
    "stopped; run the same command again to continue": "已停止；再次运行同一条命令即可继续",
    "another set-up of this clone is running: waiting for it": "这个仓库正在另一个进程里安装：等待它完成",
    "the locked set": "锁定版本的软件包",
    "ready": "安装完成",
    "this is Python {version}, and fasttune's packages exist for Python {low} to {high}":
        "这是 Python {version}，而 fasttune 的软件包适用于 Python {low} 到 {high}",
    "name another one: make quickstart PYTHON=python3.12": "换一个 Python：make quickstart PYTHON=python3.12",
    "venv of Python": "Python 的 venv",
    "missing on this machine: {names}": "这台机器上缺少：{names}",
    "{free:.1f} GiB of disk are free in {folder}, the set-up needs about {needed}":
        "{folder} 所在的磁盘还剩 {free:.1f} GiB，安装约需 {needed} GiB",
    "free some space, or clone onto a larger disk": "请腾出一些空间，或者克隆到更大的磁盘上",
    "setting up .venv for {device} ({reason})": "正在安装 .venv，用于 {device}（{reason}）",
    "this happens once, takes about {minutes:.0f} minutes and downloads {load}":
        "只需安装一次，约 {minutes:.0f} 分钟，下载 {load}",
    "llama-cpp-python is compiled; processor cores: {cores}": "需要编译 llama-cpp-python；处理器核心数：{cores}",
    "everything that pip prints: {log}": "pip 的全部输出：{log}",
    "{folder} is a symbolic link to something that doesn't work": "{folder} 是一个符号链接，它指向的内容不能用",
    "remove the link": "请删除这个链接",
    "the .venv here is unfinished or of another Python: making it anew":
        "这里的 .venv 没有装完，或者属于另一个 Python：重新建立",
    "an empty .venv": "空的 .venv",
    "torch {version} is a {build} build": "torch {version} 是 {build} 版",
    "torch {version} isn't in .venv after its installation": "安装之后，.venv 里没有 torch {version}",
    "read {log}": "请查看 {log}",
    "pip's configuration brought a CPU build of torch to a machine with an NVIDIA GPU":
        "这台机器有 NVIDIA 显卡，pip 的配置却带来了 CPU 版的 torch",
    "look at `pip config list` and at PIP_* in the environment for a find-links or extra-index-url with CPU builds, "
    "take it out and run again; FASTTUNE_DEVICE=cpu trains on the CPU on purpose":
        "请在 `pip config list` 和环境变量 PIP_* 里找出提供 CPU 版的 find-links 或 extra-index-url，去掉后重新运行；"
        "确实要用 CPU 训练时，设置 FASTTUNE_DEVICE=cpu",
    "pip's sources hold no CPU build: taking the CUDA build (3 GB), which runs on a CPU too":
        "pip 的软件源里没有 CPU 版：改用 CUDA 版（3 GB），它在 CPU 上也能运行",
    "loading torch and llama.cpp": "加载 torch 和 llama.cpp",
    "torch is built for CUDA {cuda} but can't use the GPU": "torch 是为 CUDA {cuda} 编译的，却不能使用显卡",
    "it needs {needs}; FASTTUNE_DEVICE=cpu trains on the CPU on purpose":
        "它需要{needs}；确实要用 CPU 训练时，设置 FASTTUNE_DEVICE=cpu",
    "a driver of version {driver} or newer (see the first lines of nvidia-smi) and a GPU of compute capability 7.5 or "
    "newer (GTX 16, RTX 20 and later)":
        "版本不低于 {driver} 的驱动（见 nvidia-smi 输出的前几行），"
        "以及计算能力不低于 7.5 的显卡（GTX 16、RTX 20 及以后）",
    "requirements.lock has no line for {name}": "requirements.lock 里没有 {name} 这一行",
    "{label}: failed after {seconds:.0f} s": "{label}：{seconds:.0f} 秒后失败",
    "{label}: {seconds:.0f} s": "{label}：{seconds:.0f} 秒",
    "no connection to the package index: check network and proxy (docs/wsl2.md), then run the command again":
        "连不上软件源：请检查网络和代理（docs/wsl2.zh-CN.md），然后重新运行这条命令",
    "the disk is full: free some space, then run the same command again":
        "磁盘已满：请腾出一些空间，然后重新运行同一条命令",
    "this GPU is too old for torch {version}: it needs {needs}": "这块显卡对 torch {version} 来说太旧：需要{needs}",
    "the compiler ran out of memory: close programs or give WSL2 more (docs/wsl2.md), then run again":
        "编译器内存不足：请关闭一些程序，或者给 WSL2 更多内存（docs/wsl2.zh-CN.md），然后重新运行",
    "all of it is in {log}; running the same command again continues where it stopped":
        "全部输出在 {log} 里；再次运行同一条命令，会从停下的地方继续",
    "FASTTUNE_DEVICE is {value!r}": "FASTTUNE_DEVICE 的值是 {value!r}",
    "set it to cpu or cuda, or leave it out": "请设为 cpu 或 cuda，或者不设置",
    "FASTTUNE_DEVICE says so": "由 FASTTUNE_DEVICE 指定",
    "this machine has an NVIDIA GPU but no driver for it (there is no nvidia-smi)":
        "这台机器有 NVIDIA 显卡，但没有驱动（找不到 nvidia-smi）",
    "install NVIDIA's driver, version {driver} or newer (on WSL2: in Windows, never inside Linux), or set "
    "FASTTUNE_DEVICE=cpu to train on the CPU":
        "请安装 NVIDIA 驱动，版本不低于 {driver}（用 WSL2 时装在 Windows 里，不要装在 Linux 里），"
        "或者设置 FASTTUNE_DEVICE=cpu，用 CPU 训练",
    "no NVIDIA GPU found": "没有找到 NVIDIA 显卡",
    "{program} lists no GPU: {output}": "{program} 没有列出显卡：{output}",
    "it prints nothing": "它没有任何输出",
    "repair the NVIDIA driver ({driver} or newer; on WSL2 it is installed in Windows, then `wsl --shutdown`), or set "
    "FASTTUNE_DEVICE=cpu to train on the CPU":
        "请修好 NVIDIA 驱动（不低于 {driver}；用 WSL2 时装在 Windows 里，然后运行 `wsl --shutdown`），"
        "或者设置 FASTTUNE_DEVICE=cpu，用 CPU 训练",
    "llama-cpp-python (compiling)": "llama-cpp-python（编译）",
    "expected {wheel}, got {found}": "应该得到 {wheel}，实际得到 {found}",
}  # fmt: skip


def language() -> str:
    """`zh` or `en`, by the variables that fasttune itself goes by."""
    names = ("FASTTUNE_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    chosen = next((value for name in names if (value := os.environ.get(name))), "")
    return "zh" if chosen.lower().startswith("zh") else "en"


def _(message: str, **values: Any) -> str:
    """The message in the user's language with its placeholders filled."""
    text = CHINESE[message] if language() == "zh" else message
    return text.format(**values) if values else text


def replace_unencodable() -> None:
    """Let stdout and stderr put `?` for what their encoding lacks, as ASCII lacks Chinese."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
