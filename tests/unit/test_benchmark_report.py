"""Benchmarks that go on after a failure, a crash and a hang; no kernel runs on a GPU here."""

import dataclasses
import json
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks.kernels import (
    attention_int8,
    attention_prologue,
    int8_matmul,
    measure,
    nvfp4_matmul,
    quantize_rows,
    report,
    session,
)
from benchmarks.kernels.measure import Ceilings, bandwidth
from pallas_kernels.attention_int8 import emulation


@dataclasses.dataclass(frozen=True)
class Case:
    name: str


@dataclasses.dataclass(frozen=True)
class Config:
    ms: float = 1.0


def kernel(tmp_path, measured):
    def measure(case, ceilings):
        measured.append(case.name)
        if case.name == "bad":
            raise ValueError("wrong\nin detail")
        return {**dataclasses.asdict(case), "ms": 2.0}

    def timed(case, config):
        measured.append(config.ms)
        if config.ms == 0.5:
            raise ValueError("wrong result")
        return config.ms

    return SimpleNamespace(
        NAME="fake",
        COLUMNS=("case", "ms"),
        cases=lambda: [Case("good"), Case("bad"), Case("other")],
        tuned_cases=lambda: [Case("good")],
        measure=measure,
        decides=lambda case: case.name != "good",
        row=lambda line: (line["name"], line["ms"]),
        candidates=lambda case: [Config(3.0), Config(0.5), Config(2.0)],
        timed=timed,
        table_key=lambda case: (tmp_path / "tuned.json", case.name),
    )


@pytest.fixture
def gpu(monkeypatch):
    origin = dict(device="a GPU", jax="0", torch="0", commit="c", command="python x")
    monkeypatch.setattr(report, "_require_gpu", lambda: None)
    monkeypatch.setattr(report, "ceilings", lambda: Ceilings(4e12, 7e14))
    monkeypatch.setattr(report, "provenance", lambda: origin)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_case_that_fails_is_a_line_and_the_rest_go_on(tmp_path, gpu):
    output = tmp_path / "kernels.jsonl"
    report.measure([kernel(tmp_path, [])], "", output)
    assert {line["name"]: line.get("failed") for line in lines(output)} == {
        "good": None,
        "bad": "ValueError: wrong",
        "other": None,
    }
    table = output.with_suffix(".md").read_text()
    assert (
        "| good | 2.0 |" in table
        and "- bad: ValueError: wrong" in table
        and "copy 4.00 TB/s, bf16 product 700 TFLOP/s" in table
    )


def test_a_second_run_leaves_out_what_is_done_and_what_ended_the_first(tmp_path, gpu):
    output, measured = tmp_path / "kernels.jsonl", []
    output.write_text(json.dumps({"kernel": "fake", "name": "good", "ms": 1.0}) + "\n")
    output.with_suffix(".running").write_text(json.dumps({"kernel": "fake", "name": "bad"}))
    report.measure([kernel(tmp_path, measured)], "", output)
    assert measured == ["other"]
    assert "the process ended" in lines(output)[1]["failed"]


def test_what_decides_comes_first_and_may_come_alone(tmp_path, gpu):
    measured = []
    report.measure([kernel(tmp_path, measured)], "", tmp_path / "bars.jsonl", deciding=True)
    report.measure([kernel(tmp_path, measured)], "", tmp_path / "kernels.jsonl")
    assert measured == ["bad", "other", "bad", "other", "good"]


def test_a_broken_gpu_ends_the_process_and_costs_the_case_that_broke_it(tmp_path, gpu, monkeypatch):
    def broken(error):
        raise RuntimeError("the GPU's context is broken")

    output, measured = tmp_path / "kernels.jsonl", []
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(report, "_require_working_gpu", broken)
        report.measure([kernel(tmp_path, measured)], "", output)
    report.measure([kernel(tmp_path, measured)], "", output)
    assert measured == ["bad", "other", "good"]
    assert "context is broken" in lines(output)[0]["failed"]


def test_the_last_kernel_gets_what_the_others_leave():
    kernels = ["a", "b", "c"]
    ends = [end for _, end in report._in_turn(kernels, 100)]
    assert 49 < ends[0] - time.monotonic() <= 50 and 99 < ends[2] - time.monotonic() <= 100


def test_nothing_starts_after_its_time(tmp_path, gpu):
    measured = []
    report.measure([kernel(tmp_path, measured)], "", tmp_path / "kernels.jsonl", seconds=-1)
    report.tune([kernel(tmp_path, measured)], "", tmp_path / "tune.jsonl", seconds=-1)
    assert measured == []


def test_a_bandwidth_is_of_our_time_and_peers_are_in_ratio_to_it():
    assert bandwidth({"ours": 2.0, "XLA": 3.0}, 6e9, Ceilings(4e12, 7e14)) == {
        "ms": {"ours": 2.0, "XLA": 3.0},
        "tb_per_s": 3.0,
        "of_copy": 0.75,
        "ratio": {"XLA": 1.5},
    }


def test_the_fastest_right_candidate_is_written(tmp_path, gpu):
    report.tune([kernel(tmp_path, [])], "", tmp_path / "tune.jsonl")
    (table,) = json.loads((tmp_path / "tuned.json").read_text()).values()
    assert table == {"good": {"ms": 2.0}}


GPU_TESTS = """
import time
import pytest

def test_good(record_property): record_property("error", 0.5)
@pytest.mark.skip
def test_elsewhere(): pass
def test_wrong():
    error = 0.25
    assert error < 0.01, f"error {error} against f32"
def test_broken(): raise RuntimeError("illegal address\\nat 0x0\\nin kernel f")
def test_hangs(): time.sleep(60)
def test_after_a_hang(): pass
@pytest.mark.slow
def test_times(): pass
"""


def test_session_survives_tests_that_hang(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_gpu.py").write_text(GPU_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setattr(session, "SHARDS", 1)
    monkeypatch.setattr(session, "HANGS", 3)
    summary = session.Session(tmp_path / "out", 60, (), (), tests=("tests",), root=tmp_path).run(["tests"])
    found = {line["test"].partition("::")[2]: line for line in lines(tmp_path / "out" / "tests.jsonl")}
    assert found["test_good"]["outcome"] == "PASSED" and found["test_good"]["measured"] == {"error": 0.5}
    assert found["test_wrong"]["outcome"] == "FAILED"
    assert found["test_after_a_hang"]["outcome"] == "not run" and found["test_after_a_hang"]["alone"] == "PASSED"
    assert found["test_hangs"]["alone"] == "no end" and found["test_broken"]["alone"] == "FAILED"
    assert not any("alone" in found[test] for test in ("test_good", "test_elsewhere", "test_wrong"))
    assert found["test_times"]["outcome"] == "PASSED" and found["test_times"]["at"] > found["test_hangs"]["at"]
    assert "2 passed, 1 skipped, 4 else" in summary and "test_hangs: no end" in summary
    assert "test_wrong: FAILED, alone not tried: AssertionError: error 0.25 against f32" in summary


def test_a_session_cut_off_still_tells_why_a_test_failed(tmp_path):
    (tmp_path / "test_gpu.py").write_text(GPU_TESTS.replace("time.sleep(60)", "__import__('os')._exit(1)"))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    run = session.Session(tmp_path / "out", 60, (), (), root=tmp_path)
    run.run([])
    found = run._run_shards([["test_gpu.py"]], tmp_path / "out" / "tests.jsonl", {})
    found = {test.partition("::")[2]: line for test, line in found.items()}
    assert found["test_wrong"]["message"] == "AssertionError: error 0.25 against f32; assert 0.25 < 0.01"
    assert found["test_broken"]["message"] == "RuntimeError: illegal address; at 0x0; in kernel f"
    assert found["test_hangs"]["outcome"] == "STARTED" and "test_after_a_hang" not in found
    assert "RuntimeError: illegal address" in (tmp_path / "out" / "session.log").read_text()


def test_every_function_has_its_first_test_before_any_has_its_second():
    tests = ["a::x[1]", "a::x[2]", "a::x[3]", "a::y", "b::x[1]", "b::x[2]"]
    assert session.breadth_first(tests) == ["a::x[1]", "a::y", "b::x[1]", "a::x[2]", "b::x[2]", "a::x[3]"]


def test_session_runs_a_kernel_again_after_a_crash(tmp_path):
    """A process that dies is started again; each one makes one case of progress."""
    (tmp_path / "scripts").mkdir()
    program = """
import pathlib, sys
path = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
with path.open("a") as file: file.write("{}\\n")
sys.exit(0 if len(path.read_text().splitlines()) == 3 else 1)
"""
    (tmp_path / "scripts" / "benchmark.py").write_text(program)
    run = session.Session(tmp_path / "out", 60, ("a",), (), root=tmp_path)
    run.run([])
    run._tables()
    assert len(lines(tmp_path / "out" / "kernels.jsonl")) == 3


def test_session_ends_a_case_that_hangs(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    program = """
import pathlib, sys, time
running = pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).with_suffix(".running")
if running.exists(): sys.exit(0)
running.write_text("{}")
time.sleep(60)
"""
    (tmp_path / "scripts" / "benchmark.py").write_text(program)
    monkeypatch.setattr(session, "CASE_HANGS", 1)
    run = session.Session(tmp_path / "out", 30, ("a",), (), root=tmp_path)
    run.run(["bars"])
    assert run.left() > 10


def test_adopted_tables_go_to_their_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "ROOT", tmp_path)
    (tmp_path / "pallas_kernels" / "fake").mkdir(parents=True)
    (tmp_path / "tuned.json").write_text(json.dumps({"fake": {"a GPU": {"good": {"ms": 2.0}}}}))
    (path,) = session.adopt(tmp_path / "tuned.json")
    assert json.loads(path.read_text())["a GPU"]["good"] == {"ms": 2.0}


TINY = [
    (int8_matmul, int8_matmul.Case("tiny", 16, 128, 128)),
    (quantize_rows, quantize_rows.Case("tiny", 8, 128, "rotated")),
    (nvfp4_matmul, nvfp4_matmul.Case("fused", 8, 256, 128)),
    (attention_prologue, attention_prologue.Case("tiny", 1, 32)),
    (attention_int8, attention_int8.Case("tiny", 1, 16, 32, "bf16")),
]


def events_of_a_gpu(function):
    function()
    return [("Stream: a", 2.0), ("Stream: b", 1.0)]


@pytest.mark.parametrize(("module", "case"), TINY, ids=lambda x: getattr(x, "NAME", ""))
def test_every_kernel_is_measured_and_tabled_even_without_its_peers(module, case, monkeypatch):
    monkeypatch.setattr(attention_int8.kernel_sm90, "run", emulation.run)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(measure, "kernel_events", events_of_a_gpu)
    result = module.measure(case, Ceilings(4e12, 7e14))
    assert json.loads(json.dumps(result))["ms"]["ours"] > 0
    assert len(module.row(result)) == len(module.COLUMNS)
