"""docs/integrations.md: its Python runs, and its commands write and print what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fam_engine.config import ExportConfig
from fam_engine.jobs.exporting.formats import FORMATS
from fam_engine.jobs.exporting.job import run_export
from fam_engine.report.progress import JobProgress

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "integrations.md").read_text(encoding="utf-8")
PRINTED = {
    "datasets": "True E_EMPTY_RESPONSE: the response is empty, expected some text\n",
    "trl": "-12.0\n",
    "datatrove": "True (False, 'E_EMPTY_RESPONSE')\n",
    "nemo_curator": "True E_EMPTY_RESPONSE\n",
}
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("host", "example"), list(zip(PRINTED, EXAMPLES, strict=True)))
def test_the_examples_run(host: str, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    if host != "trl":  # the reward works without it
        pytest.importorskip(host, reason=f"needs the package `{host}`")
    exec(example, {})
    assert capsys.readouterr().out.endswith(PRINTED[host])


def test_the_commands_run_and_their_settings_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "selected.jsonl").write_text('{"prompt": "1", "response": "2"}\n')
    commands = re.findall(r"^fam-engine export (\S+) --format (\S+) --out (\S+)$", PAGE, re.M)
    assert {name for _, name, _ in commands} == set(FORMATS)
    for data, name, out in commands:
        config = ExportConfig(data=(data,), format=name, out=Path(out))  # type: ignore[arg-type]
        with JobProgress(quiet=True) as progress:
            settings = run_export(config, progress).summary["tool_settings"]
        assert name == "trl" or f"\n{settings}\n```" in PAGE


def test_every_format_and_every_page_it_names_is_there() -> None:
    table = PAGE.split("| format |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.M)) == set(FORMATS)
    for page in re.findall(r"\]\(([\w.-]+)\)", PAGE):
        assert (DOCS / page).is_file(), page
