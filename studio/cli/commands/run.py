"""`studio run FILE|NAME -p name=value`: run a workflow; nodes with a cached result are not run again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.options import takes_label, takes_request
from studio.cli.lib.output import emit, emit_json, report_failure, stray_prints_aside, table
from studio.cli.lib.settings import EPILOG, Settings
from studio.cli.lib.signing import signed, takes_signer

if TYPE_CHECKING:
    from studio.destination import Destination
    from studio.inputs import Flag
    from studio.workflow import FlowResult, Graph


@click.command("run", epilog=EPILOG)
@click.argument("file", required=False, metavar="FILE|NAME")
@click.option("--list", "only_list", is_flag=True, help="List the built-in workflows.")
@click.option("-p", "given", metavar="NAME=VALUE", multiple=True,
              help="Workflow input. For a list: repeat it, or name a folder of media files.")  # fmt: skip
@click.option("-o", "--output", metavar="DIR|FILE",
              help="Folder for the outputs, named as in the workflow; or a file, if there is only one output."
                   "  [default: the store]")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N",
              help="Random seed, 0 to 2^63 - 1. Nodes without a seed derive theirs from it.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Ignore cached results and run every node.")
@click.option("--json", "as_json", is_flag=True, help="Print outputs and nodes as JSON.")
@takes_label
@takes_signer
@takes_request
@click.pass_obj
def command(
    settings: Settings, file: str | None, only_list: bool, given: tuple[str, ...], output: str | None, force: bool,
    seed: int, fresh: bool, as_json: bool, request: dict[str, Any],
    label: dict[str, Any],
    sign: Path | None, key: Path | None,
) -> int:  # fmt: skip
    """Run the workflow FILE, or the built-in workflow NAME, and print the paths of its outputs in order.

    Results are cached: an unchanged node is not run again. If a node fails, the nodes that depend on it are dropped;
    all others run, and their results stay cached. The exit code is 1 if any node failed.
    """
    from studio.cli.lib.nodes import NodeDisplay
    from studio.errors import InputError, UsageError

    if only_list:
        _list(as_json)
        return 0
    if file is None:
        raise UsageError("no workflow is given", hint="name a file, or one of `studio run --list`")
    studio = settings.studio()
    graph = studio.workflow(file)
    values = values_of(graph, given)
    signing = {"sign": sign, "key": key, "no_label": label["ai_label"] is False}
    targets = targets_of(graph, output, settings, signing, force=force)
    with NodeDisplay(graph, quiet=settings.quiet) as display, stray_prints_aside():
        try:
            result = studio.run(graph, values, seed=seed, fresh=fresh, watch=display.show, **request, **label)
        except InputError as error:
            if error.field not in graph.Inputs.model_fields or error.field in values:
                raise
            hint = f"write `-p {error.field}=…`; `studio flow check {file}` lists the inputs"
            raise InputError(error.field, error.message, hint=hint) from None
    written = {name: _write(name, value, targets[name]) for name, value in result.outputs.items()}
    if as_json:
        emit_json(_as_json(result, written))
    else:
        for paths in written.values():
            for each in paths:
                emit(each)
    for report in result.failed:
        assert report.error is not None
        report_failure(report.error, f"the node `{report.name}` failed: ", debug=settings.debug)
    return 1 if result.failed else 0


def _list(as_json: bool) -> None:
    from studio.workflow.shipped import about, shipped

    rows = [(name, about(path), str(path)) for name, path in shipped().items()]
    if as_json:
        emit_json([{"name": name, "about": text, "path": path} for name, text, path in rows])
    else:
        table(("workflow", "description"), [row[:2] for row in rows])


def values_of(graph: Graph, given: tuple[str, ...]) -> dict[str, Any]:
    """The inputs as text, lists collected. Raises UsageError, UnknownName."""
    from studio.errors import UnknownName, UsageError

    flags = {flag.name: flag for flag in graph.Inputs.flags()}
    found: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals:
            raise UsageError(f"`-p {each}` has no `=`", hint="write `-p name=value`")
        if name not in flags:
            raise UnknownName("input", name, flags)
        if flags[name].multiple:
            found.setdefault(name, []).extend(_members(flags[name], text))
        elif name in found:
            raise UsageError(f"`-p {name}=…` is given twice", hint="give one value")
        else:
            found[name] = text
    return found


def _members(flag: Flag, text: str) -> list[str]:
    """A value of a list; a folder stands for the media files in it, by name."""
    from studio.errors import UsageError
    from studio.media import MAX_FILE_BYTES
    from studio.media.folders import SUFFIXES, files_in

    folder = Path(text)
    if flag.media is None or flag.media.kind == "text" or not folder.is_dir():
        return [text]
    suffixes = (flag.media.suffix, *(flag.media.others if flag.media.kind == "audio" else ()))
    files = files_in(folder, SUFFIXES if flag.media.kind == "image" else suffixes)
    if len(files) * 1024 > MAX_FILE_BYTES:
        raise UsageError(f"the folder `{text}` holds {len(files):,} files, too many for a workflow")
    return [str(each) for each in files]


def targets_of(
    graph: Graph, output: str | None, settings: Settings, signing: Mapping[str, Any], *, force: bool
) -> dict[str, Destination]:
    """Where each output goes. All that can be refused is refused before anything runs."""
    from studio.cli.lib.destination import choose
    from studio.errors import UsageError
    from studio.workflow.ports import MEDIA

    made: dict[str, Destination] = {}
    single = len(graph.outputs) == 1 and not graph.ports[next(iter(graph.outputs.values()))].many
    for name, node in graph.outputs.items():
        port = graph.ports[node]
        suffix = MEDIA[port.kind].suffix if port.kind in MEDIA else ".txt"
        if output is not None and not single and Path(output).suffix and not Path(output).is_dir():
            raise UsageError(f"`-o {output}` names one file, but the workflow has several outputs",
                             hint=f"name a folder: `-o {Path(output).with_suffix('')}/`")  # fmt: skip
        wanted = output if output is None or (single and Path(output).suffix) else f"{output}/"
        made[name] = choose(wanted, 1 if single else 2, suffix, force=force)
        if made[name].folder and not port.many and not force:
            choose(str(Path(output or "") / f"{name}{suffix}"), 1, suffix)
        if port.kind in MEDIA and MEDIA[port.kind].has_label:
            made[name] = signed(made[name], settings, signing, suffix)
    return made


def _write(name: str, value: Any, target: Destination) -> list[str]:
    """Write an output, and return its paths (or, of a plain value, its text)."""
    from studio.media import Media

    if isinstance(value, list):
        digits = len(str(len(value)))
        return [path for i, each in enumerate(value, 1) for path in _write(f"{name}-{i:0{digits}d}", each, target)]
    if not isinstance(value, Media):
        return [str(value)]
    return [str(target.save_as(value, name))]


def _as_json(result: FlowResult, written: dict[str, list[str]]) -> dict[str, Any]:
    from studio.media import Media

    def one(value: Any, path: str) -> Any:
        if isinstance(value, Media):
            return {"path": path, "sha256": value.sha256, "media_type": value.media_type}
        return value

    outputs = {}
    for name, value in result.outputs.items():
        paths = written[name]
        many = isinstance(value, list)
        outputs[name] = [one(v, p) for v, p in zip(value, paths, strict=True)] if many else one(value, paths[0])
    nodes = {
        name: {
            "state": each.state, "executions": each.total, "remembered": each.remembered, "seconds": each.seconds,
            "notices": list(each.notices), **({"error": each.error.message} if each.error else {}),
        }
        for name, each in result.nodes.items()
    }  # fmt: skip
    return {"outputs": outputs, "nodes": nodes}
