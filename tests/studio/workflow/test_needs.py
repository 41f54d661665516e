"""The plugins that a workflow needs: names and versions, each problem with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

import studio
from studio.errors import WorkflowError
from studio.plugins import PluginReport
from studio.workflow.document import parse
from studio.workflow.needs import check_plugins
from studio.workflow.problems import Problems

SHA = "sha256:" + "ab" * 32


LOADED = (
    PluginReport("basics", "0.1.0", "multimodal-studio: studio_basics", "ok"),
    PluginReport("soft_glow", "1.2.0rc1", "soft_glow", "ok"),
    PluginReport("speak_it", SHA, "/somewhere/speak_it.py", "ok"),
    PluginReport("broken", "1.0", "broken", "failed", ("ImportError: no module",)),
)


def problems(text: str) -> list[tuple[str, str | None]]:
    found = Problems()
    check_plugins(parse(f"plugins: {text}", "flow.yaml").get("plugins"), LOADED, found)
    return [(each.message, each.hint) for each in found.found]


@pytest.mark.parametrize(
    "text",
    ["null", "{}", "{basics: null}", "{multimodal-studio: '>=0.1'}", "{Soft.Glow: '>=1.1'}", "{soft-glow: '==1.*'}",
     "{speak-it: null}", f"{{speak.it: '{SHA}'}}", "{basics: ''}"],
)  # fmt: skip
def test_what_is_loaded(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("{glow: '>=2'}", "the workflow needs the plugin `glow` >=2, which is not loaded", "install"),
        ("{broken: null}", "`broken`, which is not loaded: ImportError: no module", ""),
        ("{basics: '>=99'}", "the plugin `basics` >=99, but `0.1.0` is loaded", "install another version"),
        ("{speak.it: '>=1'}", f"but `{SHA}` is loaded", "or write `speak.it: null`"),
        ("{basics: newest}", "`newest` is not a version of `basics`", '">=0.1"'),
        ("{basics: 1}", "the version of `basics` must be text", '">=0.1"'),
        ("{'../x': null}", "`../x` is not a plugin's name", "name a distribution"),
        ("{x-: null}", "`x-` is not a plugin's name", "name a distribution"),
        ("[glow]", "`plugins` must be a mapping", "soft-glow"),
        ("glow", "`plugins` must be a mapping", "soft-glow"),
    ],
)
def test_what_is_not(text: str, message: str, hint: str) -> None:
    [(said, advice)] = problems(text)
    assert message in said
    assert hint in (advice or "")


def test_a_workflow_names_the_plugins_it_needs(own_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    text = "name: x\nplugins: {NEEDED}\nnodes:\n  a: {use: template, inputs: {text: x}}\noutputs: {a: '${a}'}\n"
    with studio.Studio(device="cpu") as host:
        file.write_text(text.replace("NEEDED", "multimodal-studio: '>=0.1', clip: null"), "utf-8")
        assert host.run(file)["a"].text == "x"
        file.write_text(text.replace("NEEDED", "glow: '>=2'"), "utf-8")
        with pytest.raises(WorkflowError, match=r"flow\.yaml:2: .* `glow` >=2, which is not loaded"):
            host.workflow(file)
        flow = studio.Workflow()
        flow.needs("glow", ">=2")
        flow.output("a", flow.add("template", text="x"))
        with pytest.raises(WorkflowError, match="`glow` >=2, which is not loaded"):
            host.workflow(flow)
