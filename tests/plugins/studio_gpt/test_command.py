"""`studio text` on the command line: standard output has the text alone, as it comes."""

import json

from tests import forkserver


def studio(*argv):
    return forkserver.run(["-m", "studio", *argv])


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
    assert done.returncode != 0
    assert done.stdout == ""
    assert f"no model, file or folder is called `{tmp_path / 'none'}`" in done.stderr
    assert "Traceback" not in done.stderr
