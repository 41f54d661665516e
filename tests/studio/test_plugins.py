"""Discovery with real files, and with a real installed distribution in a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from studio.errors import UsageError
from studio.plugins import Plugins

GOOD = '''
import studio

class {name}(studio.Generator):
    """Say {lower}."""
    name = "{lower}"
    output = studio.Text

    def generate(self, model, inputs, rng):
        return studio.Text("{lower}")

@studio.hookimpl
def studio_generators():
    return [{name}()]
'''


def good(name):
    return GOOD.format(name=name, lower=name.lower())


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


BROKEN = {
    "missing": (
        "import no_such_module_here",
        "ModuleNotFoundError: No module named 'no_such_module_here' (missing.py:1)",
    ),
    "syntax": ("def (", "SyntaxError"),
    "leaves": ("import sys\n\nsys.exit(5)", "called sys.exit(5) (leaves.py:3)"),
    "dies": ("raise BaseException('dead')", "BaseException: dead (dies.py:1)"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt (interrupts.py:1)"),
    "group": ("raise BaseExceptionGroup('g', [SystemExit(), KeyboardInterrupt()])", "BaseExceptionGroup: g (2 sub-"),
    "mute": (
        "class Mute(BaseException):\n    def __str__(self): raise SystemExit\n    __repr__ = __str__\nraise Mute",
        "Mute: (`str()` of it raises) (mute.py:4)",
    ),
    "loud": ("raise ValueError(chr(0xD800) + '\\n' + 'x' * 10**7)", "ValueError: \\ud800 xxx"),
    "property": (
        good("Property").replace('name = "property"', "name = property(lambda self: exit(3))"),
        "generator of class `Property`: called sys.exit(3)",
    ),
    "empty": ("x = 1", "registers nothing"),
    "misspelt": (
        good("Misspelt").replace("studio_generators", "studio_generator"),
        "there is no hook `studio_generator`; did you mean `studio_generators`?",
    ),
    "unmarked": (good("Unmarked").replace("@studio.hookimpl", ""), "`studio_generators` is not marked"),
    "unmarked_misspelt": (
        good("Both").replace("@studio.hookimpl\ndef studio_generators", "def studio_generater"),
        "there is no hook `studio_generater`; did you mean `studio_generators`?",
    ),
    "argument": (good("Argument").replace("studio_generators()", "studio_generators(nonsense)"), "nonsense"),
    "raises": (good("Raises").replace("return [", "raise KeyError(1); return ["), "`studio_generators`: KeyError: 1"),
    "quits": (good("Quits").replace("return [", "raise SystemExit; return ["), "called sys.exit(None)"),
    "nolist": (good("Nolist").replace("return [", "return 3; return ["), "returned int; it must return a list"),
    "aclass": (good("Aclass").replace("[Aclass()]", "[Aclass]"), "is a class; register an instance: `Aclass()`"),
    "bad": (good("Bad").replace('name = "bad"', 'name = "B A D"'), "its name is 'B A D'"),
    "taken": (good("Working"), "the generator name `working` is already used by the plugin `aa_working`"),
}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "plugins", aa_working=good("Working"), **{name: text for name, (text, _) in BROKEN.items()})


def test_each_broken_plugin_is_listed_and_the_rest_works(folder):
    plugins = Plugins.discover([folder], entry_points=False)
    reports = {report.name: report for report in plugins.reports}
    assert set(reports) == {"aa_working", *BROKEN}
    for name, (_, words) in BROKEN.items():
        assert reports[name].status == "failed"
        assert words in reports[name].reason, name
        assert "\n" not in reports[name].reason
    assert reports["aa_working"].status == "ok"
    assert reports["aa_working"].reason is None
    assert list(plugins.generators) == ["working"]
    assert plugins.owner("working").name == "aa_working"


def test_what_works_of_a_plugin_is_kept(tmp_path):
    text = good("One").replace("[One()]", "[One(), 3, One()]") + "\n@studio.hookimpl\ndef studio_trainer(): return []\n"
    plugins = Plugins.discover([write(tmp_path / "p", half=text)], entry_points=False)
    [report] = plugins.reports
    assert report.status == "partly"
    assert report.generators == ("one",)
    assert len(report.reasons) == 3
    assert "did you mean `studio_trainers`?" in report.reason
    assert "int is not a studio.Generator" in report.reason
    assert "`one` is already used" in report.reason


def test_a_file_a_package_and_a_folder_are_plugins(tmp_path):
    file = write(tmp_path / "files", single=good("Single")) / "single.py"
    package = write(tmp_path / "package", __init__="from .inner import *\nfrom .inner import studio_generators\n")
    write(package, inner=good("Inner"))
    many = write(tmp_path / "many", one=good("One"), two=good("Two"), _private="raise SystemExit")
    plugins = Plugins.discover([file, package, str(many)], entry_points=False)
    assert [report.status for report in plugins.reports] == ["ok"] * 4
    assert list(plugins.generators) == ["single", "inner", "one", "two"]


def test_the_version_of_a_file_is_its_content(tmp_path):
    folder = write(tmp_path / "p", one=good("One"))
    versions = []
    for text in (good("One"), good("One"), good("One") + "\n"):
        write(folder, one=text)
        versions.append(Plugins.discover([folder], entry_points=False).reports[0].version)
    assert versions[0] == versions[1] != versions[2]
    assert versions[0].startswith("sha256:")


def test_the_users_folder_comes_before_named_paths(tmp_path):
    user, named = write(tmp_path / "user", mine=good("Same")), write(tmp_path / "named", other=good("Same"))
    plugins = Plugins.discover([named], entry_points=False, user_folder=user)
    assert plugins.owner("same").name == "mine"
    assert Plugins.discover(entry_points=False, user_folder=tmp_path / "gone").reports == []


def test_a_path_that_is_no_plugin_is_a_usage_error(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(UsageError, match=r"pipe\.py` is not a file or a folder"):
        Plugins.discover([tmp_path / "pipe.py"])
    with pytest.raises(UsageError, match="does not exist"):
        Plugins.discover([tmp_path / "gone.py"], entry_points=False)
    with pytest.raises(UsageError, match="contains no plugin"):
        Plugins.discover([tmp_path], entry_points=False)


def test_a_failed_import_leaves_no_module_behind(tmp_path):
    before = set(sys.modules)
    Plugins.discover([write(tmp_path / "p", bad="import studio\nraise ValueError")], entry_points=False)
    assert not [name for name in set(sys.modules) - before if name.startswith("studio_plugin_bad")]


def test_a_trainer_is_found(tmp_path):
    text = '''
    import studio

    class Learn(studio.Trainer):
        """Learn."""
        name = "learn"

        def run(self, options, console):
            console.print("learnt")

    @studio.hookimpl
    def studio_trainers():
        return [Learn(), Learn(), Learn]
    '''
    plugins = Plugins.discover([write(tmp_path / "p", learner=text)], entry_points=False)
    assert list(plugins.trainers) == ["learn"]
    assert len(plugins.reports[0].reasons) == 2


def test_installed_plugins_are_found_and_broken_ones_listed(tmp_path):
    site = write(tmp_path / "site", third_party=good("Third"), third_broken="import no_such_module_here")
    info = site / "third-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.5\n")
    points = ["fine = third_party", "broken = third_broken", "attribute = third_party:Third", "gone = third_gone"]
    (info / "entry_points.txt").write_text("\n".join(["[studio.plugins]", *points]))
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
from studio.plugins import Plugins
plugins = Plugins.discover()
for report in plugins.reports:
    if report.origin.startswith("third"):
        print(report.name, report.version, report.status, report.reason, sep="|")
print(plugins.owner("third"))
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert made.splitlines() == [
        "attribute|1.5|failed|PluginError: its entry point `third_party:Third` must name a module, not type",
        "broken|1.5|failed|ModuleNotFoundError: No module named 'no_such_module_here' (third_broken.py:1)",
        "fine|1.5|ok|None",
        "gone|1.5|failed|ModuleNotFoundError: No module named 'third_gone'",
        "name='fine' version='1.5'",
    ]


DAMAGED = {
    "no metadata": {"entry_points.txt": "[studio.plugins]\nx = third_party\n"},
    "no name": {"METADATA": "Version: 1\n", "entry_points.txt": "[studio.plugins]\nx = third_party\n"},
    "no version": {"METADATA": "Name: x\n", "entry_points.txt": "[studio.plugins]\nx = third_party\n"},
    "not UTF-8": {"METADATA": "Name: x\nVersion: 1\n", "entry_points.txt": "\udcff\udcfe["},
    "no equals sign": {"METADATA": "Name: x\nVersion: 1\n", "entry_points.txt": "[studio.plugins]\nnonsense\n==\n"},
    "no reference": {"METADATA": "Name: x\nVersion: 1\n", "entry_points.txt": "[studio.plugins]\nx = ?!\n"},
}


def install(site, distribution, files):
    """Write a distribution's metadata into a folder as they are given."""
    info = site / f"{distribution}.dist-info"
    info.mkdir()
    for name, text in files.items():
        (info / name).write_bytes(text.encode(errors="surrogateescape"))


def test_every_command_works_beside_distributions_whose_metadata_are_damaged(tmp_path):
    site = write(tmp_path / "site", third_party=good("Third"), other_party=good("Other"), exits="raise SystemExit(4)")
    for name in ("third", "other"):
        points = f"[studio.plugins]\nsame = {name}_party\nleaves = exits\n"
        install(site, f"{name}-1", {"METADATA": f"Name: {name}\nVersion: 1\n", "entry_points.txt": points})
    for name, damaged in DAMAGED.items():
        install(site, f"{name.replace(' ', '_')}-1", damaged)
    environment = {**os.environ, "PYTHONPATH": str(site), "STUDIO_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "studio", "plugins", "--json"]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert told.returncode == 0, told.stderr
    reports = {(each["origin"].partition(":")[0], each["name"]): each for each in json.loads(told.stdout)}
    for name in ("third", "other"):
        assert reports[name, "same"]["generators"] == [name]
        assert "called sys.exit(4)" in reports[name, "leaves"]["reason"]
    for name in DAMAGED:
        [report] = [each for (origin, _), each in reports.items() if f"/{name.replace(' ', '_')}-1.dist" in origin]
        assert report["status"] == "failed"
        assert "its metadata cannot be read" in report["reason"]


@pytest.mark.parametrize("thing", ["fifo.py", "folder.py", "gone.py", "closed.py"])
def test_what_cannot_be_read_in_the_plugin_folder_is_left_out_or_listed(tmp_path, thing):
    folder = write(tmp_path / "plugins", working=good("Working"))
    match thing:
        case "fifo.py":
            os.mkfifo(folder / thing)
        case "folder.py":
            (folder / thing).mkdir()
        case "gone.py":
            (folder / thing).symlink_to(tmp_path / "nowhere")
        case "closed.py":
            (folder / thing).write_text("raise SystemExit")
            (folder / thing).chmod(0)
    plugins = Plugins.discover([], entry_points=False, user_folder=folder)
    assert list(plugins.generators) == ["working"]
    assert [each.name for each in plugins.reports if each.status == "ok"] == ["working"]


def test_the_users_own_interrupt_is_not_a_plugins_fault(tmp_path):
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(1000): pass"
    with pytest.raises(KeyboardInterrupt):
        Plugins.discover([write(tmp_path / "p", pressed=text)], entry_points=False)


BACKEND = """
import studio
from studio.attention import Backend

class Mine(Backend):
    name = "{name}"

    def refuses(self, problem):
        return []

    def attend(self, q, k, v, problem, scale):
        return q

@studio.hookimpl
def studio_attention_backends():
    return [{what}]
"""


@pytest.mark.parametrize(
    ("name", "what", "words"),
    [
        ("mine", "Mine()", None),
        ("mine", "Mine", "is a class; register an instance: `Mine()`"),
        ("mine", "3", "is int; it must be a `studio.attention.Backend`"),
        ("sdpa-flash", "Mine()", "the attention backend name `sdpa-flash` is reserved"),
        ("auto", "Mine()", "its name is 'auto'"),
    ],
)
def test_a_plugin_may_bring_an_attention_backend(tmp_path, name, what, words):
    folder = write(tmp_path / "plugins", backend=BACKEND.format(name=name, what=what))
    plugins = Plugins.discover([folder], entry_points=False)
    (report,) = plugins.reports
    if words is None:
        assert report.status == "ok"
        assert set(plugins.attention) == set(report.attention) == {"mine"}
    else:
        assert report.status == "failed"
        assert words in report.reason
        assert not plugins.attention


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("studio_api = 1", None),
        ("studio_api: int = 1  # the contract", None),
        (
            "studio_api = 2",
            "needs version 2 of the plugin contract, and this Studio supports 1: install a newer S",
        ),
        ("studio_api = 0", "and this Studio supports 1: install a newer version of the plugin"),
        ("studio_api = 'two'", "`studio_api` is `'two'`; it must be a whole number"),
    ],
)
def test_a_plugin_for_another_version_is_refused_before_it_runs(tmp_path, line, words):
    text = good("Timely") if words is None else "import studio.what_comes_later"
    folder = write(tmp_path / "plugins", timely=f"{line}\n{text}")
    (report,) = Plugins.discover([folder], entry_points=False).reports
    assert report.status == ("ok" if words is None else "failed")
    assert words is None or words in report.reason
