"""The launch scripts: what every process writes or reads lies where all of them see it."""

import os
import re
import shlex
import subprocess

from tests.experiments.helpers import ROOT

LAUNCH = ROOT / "experiments" / "launch"


def folders(command):
    """The values of --workdir and --config.cache_dir."""
    given = dict(word.split("=", 1) for word in shlex.split(command) if word.startswith("--") and "=" in word)
    return given["--workdir"], given["--config.cache_dir"]


def test_pods_share_their_folders():
    text = (LAUNCH / "jobset.yaml").read_text()
    (mount,) = re.findall(r"mountPath: (\S+)", text)
    command = " ".join(re.search(r">-\n(.*?)\n +ports:", text, re.DOTALL)[1].split())
    assert [folder.startswith(f"{mount}/") for folder in folders(command)] == [True, True]


def test_hosts_of_a_tpu_share_their_folders(tmp_path):
    recorder = tmp_path / "gcloud"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$RECORDED"\n')
    recorder.chmod(0o755)
    given = {
        "TPU": "slice",
        "ZONE": "zone",
        "REPOSITORY": "https://host/here.git",
        "WORKDIR": "/mnt/our runs/image net",
    }
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", LAUNCH / "tpu_pod.sh", "--config=configs/consistency/imagenet64.py", "--config.seed=1"]
    subprocess.run(script, env={**given, "PATH": path, "RECORDED": str(tmp_path / "said")}, check=True, timeout=60)
    command = (tmp_path / "said").read_text().split("experiments.train", 1)[1]
    assert folders(command) == ("/mnt/our runs/image net", "/mnt/our runs/cache")
    assert "--config.seed=1" in command
