from __future__ import annotations

import json

import studio


def test_everything_is_looked_at_and_nothing_changed(tmp_path, sample_plugin):
    home = tmp_path / "new" / "home"
    report = studio.Studio(home=home, plugins=[sample_plugin], device="cpu").doctor()
    assert not home.exists()
    assert report.home.writable
    assert report.home.free > 0
    assert report.version == studio.__version__
    assert report.device == "cpu"
    assert report.devices[0].name == "cpu"
    assert {device.name.partition(":")[0] for device in report.devices} == {"cpu", "cuda", "mps", "xpu"}
    assert all(device.usable == (device.reason == "") for device in report.devices)
    assert report.cores >= 1
    assert any(backend.name == "sdpa-math" for backend in report.attention)
    assert "sample_plugin" in [plugin.name for plugin in report.plugins]
    assert json.loads(report.model_dump_json())["libraries"]["python"]


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "home").write_text("")
    report = studio.Studio(home=tmp_path / "home" / "deeper", device="cpu").doctor()
    assert not report.home.writable
    assert "is a file" in report.home.reason
