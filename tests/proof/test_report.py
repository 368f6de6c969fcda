"""What a reader of a proof sees: one sentence, a table, a page."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from tests import samples
from trueport.proof.report import gaps, headline, html, table
from trueport.words import program_words

VOID = {"meta", "link", "br", "hr", "img", "input", "rect", "line", "path", "circle"}


class Page(HTMLParser):
    """A strict reader: every tag closed in turn; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rendered(proof: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=False)
    console.print(table(proof))
    return [line.rstrip() for line in console.export_text().splitlines()]


def hostile() -> dict[str, Any]:
    bad = samples.HOSTILE
    cases = [samples.case(bad, 2.0, 1.0, {bad: [[1, 2]], "prompt": bad, "nested": {"x": [bad]}}, bad)]
    return samples.proof(verdict="failed", clauses=[samples.clause("padding", cases, "fail", bad, bad)])


PROOFS = {
    "proven": samples.proof(),
    "failed": samples.proof(verdict="failed", clauses=samples.failing()),
    "no original": samples.proof(reference=False),
    "nothing run": {"verdict": "unproven", "clauses": []},
    "kept though failed": samples.proof(verdict="unproven", clauses=samples.failing()),
    "hostile": hostile(),
}


class TestHeadline:
    def test_proven_names_the_worst_case(self) -> None:
        assert headline(PROOFS["proven"]) == (
            "Proven: 7 clauses, 20 cases, worst error 0.21 of its budget (padding, left 3 of 12)."
        )

    def test_failed_says_where_and_by_how_much(self) -> None:
        assert headline(PROOFS["failed"]) == (
            "Not proven: padding fails: left 3 of 12, batch 3: error 3.7 against a budget of 2.1e-5 "
            "(row 1, position 4 of logits)."
        )

    def test_without_the_original_it_says_so(self) -> None:
        assert headline(PROOFS["no original"]).startswith("Proven without the original: 7 clauses")

    def test_unproven(self) -> None:
        assert headline(PROOFS["nothing run"]) == "Unproven: no clause was run."
        assert headline(PROOFS["kept though failed"]).startswith("Unproven: padding fails: left 3")

    def test_nothing_applied(self) -> None:
        clauses = [samples.clause("window", [], "not applicable", "no window")]
        assert headline(samples.proof(verdict="failed", clauses=clauses)) == "Not proven: no clause applied."

    def test_several_failures_name_the_worst(self) -> None:
        clauses = [
            samples.clause("padding", [samples.case("left", 2e-5, 1e-5)], "fail", component="encoder"),
            samples.clause("cache", [samples.case("1 + 11", 5.0, 1e-5)], "fail", component="decoder"),
        ]
        assert headline(samples.proof(verdict="failed", clauses=clauses)) == (
            "Not proven: padding (encoder) and cache (decoder) fail; the worst is cache (decoder), "
            "1 + 11: error 5 against a budget of 1.0e-5."
        )

    @pytest.mark.parametrize(
        ("name", "case", "words"),
        [
            ("generate", samples.case("greedy", 3, 0.0), "greedy: 3 tokens differ."),
            ("generate", samples.case("greedy", 1, 0.0), "greedy: 1 token differs."),
            ("finite", samples.case("huge", None, 1e-5), "huge: the error is not a finite number."),
            ("finite", samples.case("huge", None, 1e-5, note="NaN in logits."), "huge: NaN in logits."),
            ("files", samples.case("sha256", 2.0, 0.0), "sha256: error 2 against a budget of 0."),
            ("padding", samples.case("l", 2.1304e-5, 2.1301e-5), "error 2.1304e-5 against a budget of 2.1301e-5."),
        ],
    )
    def test_how_a_case_failed(self, name: str, case: dict[str, Any], words: str) -> None:
        sentence = headline(samples.proof(verdict="failed", clauses=[samples.clause(name, [case], "fail")]))
        assert sentence.endswith(words)

    def test_a_clause_that_broke_off_gives_its_reason(self) -> None:
        clauses = [samples.clause("cache", [], "fail", "the runtime refuses a cache of length 0.")]
        sentence = headline(samples.proof(verdict="failed", clauses=clauses))
        assert sentence == "Not proven: cache fails: the runtime refuses a cache of length 0."

    def test_all_exact(self) -> None:
        clauses = [samples.clause("generate", [samples.case("greedy", 0, 0.0)])]
        assert headline(samples.proof(clauses=clauses)) == "Proven: 1 clause, 1 case, every case exact."

    def test_no_control_characters(self) -> None:
        assert headline(PROOFS["hostile"]).isprintable()


class TestTable:
    @pytest.mark.parametrize("name", PROOFS)
    def test_fits_80_columns(self, name: str) -> None:
        assert max(len(line) for line in rendered(PROOFS[name])) <= 80
        assert max(len(line) for line in rendered(PROOFS[name], width=200)) <= 80

    def test_one_line_for_each_clause(self) -> None:
        lines = rendered(PROOFS["proven"])
        assert [line.split()[0] for line in lines[1:]] == list(samples.CORE)
        padding = next(line for line in lines if line.startswith("padding"))
        assert re.split(r"\s{2,}", padding) == ["padding", "pass", "3", "0.21 of budget", "left 3 of 12"]
        assert "the model has no sliding window" in next(line for line in lines if line.startswith("window"))

    def test_a_failure_is_told_to_its_end(self) -> None:
        text = " ".join(" ".join(rendered(PROOFS["failed"])).split())
        assert "padding fail 2 1.8e5 × budget left 3 of 12, batch 3: error 3.7 against a" in text
        assert "budget of 2.1e-5" in text

    def test_components_where_there_are_several(self) -> None:
        clauses = [samples.clause("shapes", [], component=name) for name in ("encoder", "decoder")]
        lines = rendered(samples.proof(clauses=clauses))
        assert "part" in lines[0] and "encoder" in lines[1] and "decoder" in lines[2]

    def test_status_has_a_colour_and_a_word(self) -> None:
        console = Console(width=80, force_terminal=True, color_system="standard", file=io.StringIO(), record=True)
        console.print(table(PROOFS["failed"]))
        styled = console.export_text(styles=True)
        assert "\x1b[1;31mfail" in styled and "\x1b[32mpass" in styled

    def test_markup_and_escapes_in_names_are_text(self) -> None:
        clauses = [samples.clause("shapes", [samples.case("[red]x[/red] \x1b[31m", 1e-9, 1e-5)])]
        text = "\n".join(rendered(samples.proof(clauses=clauses)))
        assert "[red]x[/red]" in text and "\x1b" not in text


class TestPage:
    @pytest.mark.parametrize("name", PROOFS)
    @pytest.mark.parametrize("manifest", [samples.seq2seq(), samples.decoder(layers=24), samples.encoder()])
    def test_is_well_formed_and_loads_nothing(self, name: str, manifest: dict[str, Any]) -> None:
        text = html(PROOFS[name], manifest)
        page = Page(text)
        assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
        for tag, attributes in page.tags:
            assert "src" not in attributes and not any(key.startswith("on") for key in attributes)
            assert tag != "a" or (attributes["href"] or "").startswith("#")
        style = text[text.index("<style>") : text.index("</style>")]
        assert "@import" not in style and "url(" not in style
        identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(identifiers) == len(set(identifiers))
        assert {a["href"] for t, a in page.tags if t == "a"} <= {f"#{name}" for name in identifiers}

    def test_shows_everything(self) -> None:
        proof, manifest = PROOFS["failed"], samples.seq2seq(verdict="failed")
        text = Page(html(proof, manifest)).text
        assert headline(proof) in text
        for clause in proof["clauses"]:
            assert clause["reason"] in text
            for case in clause["cases"]:
                assert case["case"] in text and case["note"] in text
        for path, entry in manifest["files"].items():
            assert path in text and entry["sha256"] in text
        for component in manifest["components"].values():
            assert component["file"] in text and all(name in text for name in component["dimensions"])
        assert "past_key_values.{0–1}.decoder.key" in text
        assert "(batch_size, 2, past_sequence_length + sequence_length, 4)" in text
        assert proof["tolerance"]["words"] in text and "1.1e-7" in text and "16 times that floor" in text
        assert "transformers.masking_utils.sdpa_mask" in text and "2.13.0" in text

    def test_the_failing_case_lies_open_with_its_input(self) -> None:
        text = html(PROOFS["failed"], samples.seq2seq())
        assert text.count("The input that failed") == 1
        opened = re.search(r"<details open><summary>The input that failed</summary>.*?</details>", text, re.S)
        assert opened and "attention_mask" in opened.group() and 'class="p">0<' in opened.group()

    def test_says_what_was_not_proven(self) -> None:
        text = Page(html(PROOFS["no original"], samples.seq2seq())).text
        assert "that it computes what the original computes was not" in text
        assert "window was not asked: the model has no sliding window." in text
        assert "Nothing about this artefact was compared" in Page(html(PROOFS["nothing run"], samples.encoder())).text
        partial = samples.proof(clauses=[samples.clause("padding", [samples.case("left", 0.0, 1e-5)])])
        assert gaps(partial)[0] == "Not part of this proof: shapes, inert, causal, cache, window, generate and finite."

    def test_hostile_names_are_text(self) -> None:
        manifest = samples.decoder(name=samples.HOSTILE)
        manifest["components"]["model"]["inputs"][0]["name"] = samples.HOSTILE
        manifest["files"][samples.HOSTILE] = {"sha256": samples.HOSTILE, "size": 1}
        manifest["versions"][samples.HOSTILE] = samples.HOSTILE
        manifest["patches"].append({"path": samples.HOSTILE, "why": samples.HOSTILE})
        text = html(PROOFS["hostile"], manifest)
        assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
        assert '<script>alert("1")</script>' in Page(text).text

    def test_long_inputs_are_cut_and_said_to_be(self) -> None:
        worst = samples.batch(40, 4000, 100) | {
            "input_features": "seeded normal of shape (2, 80, 3000)",
            "p": "x" * 9999,
        }
        clauses = [samples.clause("window", [samples.case("long", 1.0, 0.5, worst)], "fail")]
        text = html(samples.proof(verdict="failed", clauses=clauses), samples.decoder())
        assert len(text) < 60_000
        words = Page(text).text
        assert "40 × 4000" in words and "32 more rows; columns 16 to 3992 are left out" in words
        assert "seeded normal of shape (2, 80, 3000)" in words

    @pytest.mark.parametrize(
        "worst", [{}, [], [[1], [1, 2, 3]], {"x": []}, {"x": [[]]}, {"x": [[[1]]]}, "text", {"x": 3}]
    )
    def test_any_worst_input_is_shown(self, worst: Any) -> None:
        clauses = [samples.clause("shapes", [samples.case("a", 1e-9, 1e-5, worst)])]
        Page(html(samples.proof(clauses=clauses), samples.encoder()))

    def test_is_the_same_every_time_and_holds_no_seconds(self) -> None:
        proof, manifest = PROOFS["proven"], samples.seq2seq()
        slower = proof | {"clauses": [clause | {"seconds": 99.9} for clause in proof["clauses"]]}
        assert html(proof, manifest) == html(slower, manifest)

    def test_machine_paths_stay_out(self) -> None:
        text = html(PROOFS["proven"], samples.seq2seq(name="/home/someone/models/t5-dates/"))
        assert "/home/someone" not in text and "<h1>t5-dates</h1>" in text

    def test_a_program_states_its_memory_and_its_bounds(self) -> None:
        page = Page(html(PROOFS["proven"], samples.program(samples.seq2seq())))
        assert "executorch/model.pte: 894.2 kB, xnnpack. Memory planned: encoder 1.5 MB; decoder 1.5 MB" in page.text
        assert "Half of a bound saves: batch_size (4) 2.0 kB, encoder_sequence_length (64) 6.0 kB" in page.text
        assert "Memory planned: 1.5 MB, 196.6 kB of it for caches" in page.text
        assert "Half of its bound saves batch_size 1 to 4 1.0 kB" in page.text
        assert "method decoder , backend xnnpack" in page.text and "Kept inside" in page.text
        assert "The decoder’s inputs take what the encoder’s outputs gave" in page.text

    def test_a_folder_without_a_program_says_nothing_of_memory(self) -> None:
        assert "Memory planned" not in html(PROOFS["proven"], samples.seq2seq())

    def test_both_targets(self) -> None:
        page = Page(html(TWO, samples.both(samples.seq2seq())))
        assert "encoder (onnx), decoder (onnx), executorch/encoder (executorch)" in page.text
        assert "padding executorch pass" in page.text


TWO = samples.proof(
    clauses=[
        clause | {"component": f"{target}: encoder, decoder"}
        for target in ("onnx", "executorch")
        for clause in samples.passing()
    ]
)


def test_two_targets_are_told_apart_in_80_columns() -> None:
    lines = rendered(TWO)
    assert [line.split()[1] for line in lines if line.startswith("padding")] == ["onnx", "executorch"]
    assert "(padding (onnx), left 3 of 12)" in headline(TWO)


def test_a_line_about_memory_without_a_size() -> None:
    manifest = samples.program(samples.encoder()) | {"files": {}}
    assert program_words(manifest) == [
        "executorch/model.pte: xnnpack. Memory planned: forward 1.5 MB.",
        "Half of a bound saves: batch_size (4) 1.0 kB, sequence_length (64) 2.0 kB.",
    ]
    assert program_words(samples.encoder()) == []
