"""``sluice lint`` on real files."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy import documents
from proxy.commands.lint import lint

EXAMPLES = Path(__file__).parents[4] / "policies" / "examples"


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(lint, [str(argument) for argument in arguments], input=stdin)


def test_a_clean_file_is_silent() -> None:
    result = run(EXAMPLES / "http-orders.yaml")
    assert (result.exit_code, result.output) == (0, "")


def test_a_finding_is_one_line_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text((EXAMPLES / "http-orders.yaml").read_text().replace("/orders/export", "/orders/"))
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.output.startswith(f"{file}:47:11 SL010 path: '/orders/' looks like a prefix")


def test_an_error_of_the_language_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("kind: Nope\n")
    result = run(tmp_path, "-o", "json")
    assert result.exit_code == 1
    assert [finding["code"] for finding in json.loads(result.output)] == ["SE003"]


def test_what_is_no_yaml_or_no_text_is_unreadable(tmp_path: Path) -> None:
    for content in (b"a: [", b"\xff\xfe"):
        (tmp_path / "a.yaml").write_bytes(content)
        assert run(tmp_path).exit_code == 2
    assert run(tmp_path / "nope.yaml").exit_code == 2


def test_a_folder_without_documents_is_an_error(tmp_path: Path) -> None:
    """An agent that enforces nothing because of an empty folder would be silently open."""
    (tmp_path / "readme.txt").write_text("")
    (tmp_path / ".hidden.yaml").write_text("kind: Nope")
    assert run(tmp_path).exit_code == 1


@pytest.mark.parametrize("content", ["", "# later\n", "---\n# nothing\n...\n---\n"])
def test_only_files_without_documents_are_an_error(tmp_path: Path, content: str) -> None:
    """At a reload such a file, cut off by a full disk, would take every policy away."""
    (tmp_path / "a.yaml").write_text(content)
    result = run(tmp_path)
    assert (result.exit_code, "a.yaml:1:1 SE005" in result.output) == (1, True)
    (tmp_path / "b.yaml").write_text((EXAMPLES / "http-orders.yaml").read_text())
    assert run(tmp_path).exit_code == 0


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 10)
    (tmp_path / "a.yaml").write_text("# " + "x" * 20)
    assert "SE002 larger than 10 bytes" in run(tmp_path).output


def test_a_file_that_is_named_twice_is_read_once() -> None:
    assert run(EXAMPLES / "http-orders.yaml", EXAMPLES / "http-orders.yaml").exit_code == 0


def test_standard_input_is_a_file_of_the_name_minus(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (EXAMPLES / "http-orders.yaml").read_text()
    assert run("-", stdin=text).exit_code == 0
    assert run("-", stdin="kind: Nope").output.startswith("-:1:1 SE003 ")
    assert run("-", stdin="# nothing\n").output.startswith("-:1:1 SE005 no document in this file")
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 10)
    assert "SE002 larger than 10 bytes" in run("-", stdin=text).output


def test_a_file_of_the_name_minus_is_no_standard_input_elsewhere() -> None:
    """An agent cannot read it again."""
    with pytest.raises(FileNotFoundError):
        documents.read_sources(["-"])


def test_a_kustomization_in_the_folder_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "http.yaml").write_text((EXAMPLES / "http-orders.yaml").read_text())
    (tmp_path / "kustomization.yaml").write_text("resources: [http.yaml]\n")
    assert run(tmp_path).output == ""
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: prod\nresources: [http.yaml]\n"
    )
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "kustomization.yaml:1:1 SL021 kustomize would change these documents (namespace)" in result.output


def test_a_policy_in_a_file_of_that_name_is_a_policy(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        (EXAMPLES / "http-orders.yaml").read_text().replace("/orders/export", "/orders/")
    )
    assert "SL010" in run(tmp_path).output


def test_nothing_but_a_kustomization_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [policies]\n")
    assert "SE005 there is no document but this one" in run(tmp_path).output
