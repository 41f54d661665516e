"""`studio text` on the command line: standard output has the text alone, as it comes."""

import json
import subprocess
import sys

from studio.cli.output import printable_lines


def studio(*argv):
    return subprocess.run([sys.executable, "-m", "studio", *argv], capture_output=True, text=True, check=False)


def test_text_goes_to_standard_output_and_json_has_it_too(checkpoints):
    path = str(checkpoints("gpt2")[0])
    plain = ("text", "a red apple", "--model", path, "--max-tokens", "8", "--temperature", "0", "--seed", "1")
    shown, told = studio(*plain), studio(*plain, "--json")
    assert shown.returncode == told.returncode == 0, shown.stderr + told.stderr
    (only,) = json.loads(told.stdout)
    assert shown.stdout == only["text"] + "\n"
    explained = studio(*plain, "--attention", "1.2", "--json")
    whole = json.loads(explained.stdout)
    assert len(whole["written"]) == 8
    assert whole["text"] == only["text"]
    assert whole["attention"][0].endswith(".png")


def test_a_model_that_is_not_there_is_one_error(tmp_path):
    done = studio("text", "a", "--model", str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "does not exist\nhint: name a folder with config.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_obeys_nothing_in_a_text():
    assert printable_lines("a\n\tb\x1b[2J\x07\u202e") == "a\n\tb\\x1b[2J\\x07\\u202e"
