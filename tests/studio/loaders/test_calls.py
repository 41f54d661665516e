"""Every call of a library's loader in the product goes through `studio.loaders`, or is one of those named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOADERS = {
    "from_pretrained", "from_config", "load_config", "get_config_dict", "get_tokenizer", "from_file", "from_str",
    "from_buffer", "from_single_file", "from_pipe", "create_model", "create_model_and_transforms", "load_checkpoint",
    "load_pretrained", "factory", "pipeline", "hf_hub_download", "snapshot_download", "load_state_dict_from_url",
    "load_lora_weights", "load_adapter", "load_ip_adapter", "load_textual_inversion", "from_dict",
    "get_class_from_dynamic_module",
    "CLIP", "CoCa", "CustomTextCLIP", "HFTokenizer", "SimpleTokenizer", "http_get", "HfApi", "GGUFReader",
    "unpickle", "urlopen", "urlretrieve",
}  # fmt: skip
"""Names of functions, methods and classes that read a model's folder or fetch it, whatever the library."""
ELSEWHERE = {
    ("plugins/studio_clip/train_pairs.py", "CLIP"): "a fresh model, of a config that this project writes",
    ("plugins/studio_diffusion/export.py", "from_config"): "a dict of a class that is named there",
    ("studio/diffusion/noise.py", "from_config"): "a dict of a class that is named there",
    ("plugins/studio_gpt/tokens.py", "from_str"): "the text of a tokenizer that was checked and built already",
    ("plugins/studio_video/stock.py", "pipeline"): "its own method, and that of studio.loaders",
    ("plugins/studio_diffusion/stock.py", "pipeline"): "a method of PipelineModel",
    ("studio/diffusion/stepping.py", "pipeline"): "a method of PipelineModel",
    ("studio/media/signing.py", "from_dict"): "settings of c2pa that are written there",
    ("studio/models/hub.py", "HfApi"): "`studio models pull`, the one command that fetches",
    ("studio/workflow/declare.py", "create_model"): "pydantic's",
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """(file, the name that is called, the call) of all calls in the product."""
    return list(_calls())


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in sorted([*ROOT.glob("studio/**/*.py"), *ROOT.glob("plugins/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield path.relative_to(ROOT).as_posix(), name, node
                if name == "partial" and node.args and isinstance(node.args[0], ast.Attribute):
                    yield path.relative_to(ROOT).as_posix(), node.args[0].attr, node


def test_no_library_reads_a_folder_but_through_the_loaders() -> None:
    found = {(file, name) for file, name, _ in calls() if name in LOADERS and not file.startswith("studio/loaders/")}
    mine = {(file, name) for file, name in found if _is_ours(file, name)}
    assert found - mine - set(ELSEWHERE) == set()


def test_the_list_of_exceptions_is_not_longer_than_it_must_be() -> None:
    assert {key for key in ELSEWHERE if key not in {(file, name) for file, name, _ in calls()}} == set()


def _is_ours(file: str, name: str) -> bool:
    """Whether all calls of this name in the file are of a module or class of this project."""
    ours = {"tokenizer_json", "loaders", "transformers", "diffusers"}  # as `studio.loaders` is imported
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    imported = {
        each.asname or each.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "studio.loaders"
        for each in node.names
    } & ours
    mine = [call for path, called, call in calls() if (path, called) == (file, name)]
    return all(
        isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in imported
        for call in mine
    )


@pytest.mark.parametrize("file", sorted(each.relative_to(ROOT).as_posix() for each in ROOT.glob("studio/loaders/*.py")))
def test_the_loaders_say_that_nothing_is_fetched_or_run(file: str) -> None:
    for path, name, call in calls():
        if path == file and name in ("from_pretrained", "HFTokenizer"):
            given = {each.arg: each.value for each in call.keywords}
            wanted = {"local_files_only": True}
            if not file.endswith("diffusers.py"):  # its modules know no remote code; pipelines are not read by it
                wanted["trust_remote_code"] = False
            for key, value in wanted.items():
                told = given.get(key)
                assert isinstance(told, ast.Constant), (file, call.lineno, key)
                assert told.value is value, (file, call.lineno, key)
            assert any(isinstance(each, ast.Constant) and each.value is True for each in given.values())


def test_checkpoints_are_read_as_tensors_only() -> None:
    for file, name, call in calls():
        if name == "load" and ast.unparse(call.func) == "torch.load":
            given = {each.arg: each.value for each in call.keywords}
            assert isinstance(told := given.get("weights_only"), ast.Constant), (file, call.lineno)
            assert told.value is True, (file, call.lineno)


def test_no_text_is_run_as_python() -> None:
    runs = ("eval", "exec", "compile", "__import__")
    plain = [(file, call.func.id) for file, _, call in calls() if isinstance(call.func, ast.Name)]
    assert [each for each in plain if each[1] in runs] == []


def test_nothing_imports_a_reader_of_objects() -> None:
    for path in [*ROOT.glob("studio/**/*.py"), *ROOT.glob("plugins/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not MODULES & {each.partition(".")[0] for each in names}, path
