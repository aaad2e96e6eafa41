"""Small int8 models as circuits: every answer is that of ONNX Runtime, in the emulation and clocked as Verilog."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper
from small_int8_nets import ROWS, chain, convolutions, few, float_file, int8, means, run_as
from torch import nn

from tasks.compile.clocked_verilog import clocked, sources, write_verilog
from tasks.compile.fpga_target import floats
from tasks.onnx_models import fpga_circuit
from tasks.onnx_models.circuit_codes import behind_codes, to_codes
from tasks.onnx_models.fpga_circuit import circuit, multiplications, refuse_large
from tasks.onnx_models.fpga_size import look_up_tables
from tasks.onnx_models.graph_as_run import as_run
from tasks.onnx_models.integer_network import integer_network
from tasks.quantize.power_of_two import power_of_two
from tasks.running.errors import TargetUnsupported

pytestmark = pytest.mark.slow
NETS = [chain, convolutions, means]


def random_codes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_scales_go_up_to_the_next_power() -> None:
    assert power_of_two(np.array([0.3, 0.25, 0.2501, 1.0, 3.0])).tolist() == [0.5, 0.25, 0.5, 1.0, 4.0]


@pytest.mark.parametrize("net", NETS)
def test_every_scale_is_a_power_of_two_and_the_answers_stay_near(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    quantized, prepared = int8(net(), tmp_path)
    scales = {n.input[1] for n in quantized.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in quantized.graph.initializer:
        if tensor.name in scales:
            assert np.all(np.frexp(numpy_helper.to_array(tensor))[0] == 0.5), tensor.name
    exact, rounded = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": ROWS})[0]
        for model in (prepared, quantized)
    )
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_look_up_tables_are_those_of_the_circuit_and_of_large_ones_at_least_its_multiplications(tmp_path: Path) -> None:
    file = int8(convolutions(), tmp_path)[0].SerializeToString()
    network = integer_network(as_run(file, tmp_path))
    count = multiplications(network, (2, 8, 8))
    found = look_up_tables(file, ROWS[:1], tmp_path, at_most=count)
    assert found is not None and count < found == round(circuit(network, (2, 8, 8)).cost)
    written = write_verilog(circuit(network, (2, 8, 8)), tmp_path / "rtl")
    assert found == pytest.approx(written.luts, rel=0.01), "what the target tells"
    assert look_up_tables(file, ROWS[:1], tmp_path, at_most=count - 1) == count
    any_scale = int8(convolutions(), tmp_path, powers_of_two=False)[0].SerializeToString()
    assert look_up_tables(any_scale, ROWS[:1], tmp_path, at_most=10**6) is None
    assert look_up_tables(float_file(convolutions()), ROWS[:1], tmp_path, at_most=10**6) is None


@pytest.mark.parametrize("net", NETS)
def test_a_circuit_answers_as_onnx_runtime_does(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = run_as(int8(net(), tmp_path)[0], tmp_path)
    network = integer_network(model)
    emulated = circuit(network, (2, 8, 8))
    for codes in (to_codes(model, network, ROWS), random_codes(3000, 2, 8, 8)):
        wanted = behind_codes(model, network, codes)
        got = floats(
            network, np.rint(emulated.predict(codes.reshape(len(codes), -1).astype(np.float64))).astype(np.int64)
        )
        assert np.array_equal(got.reshape(wanted.shape), wanted)
    (answer,) = onnxruntime.InferenceSession(int8(net(), tmp_path)[0].SerializeToString()).run(None, {"x": ROWS})
    assert np.array_equal(behind_codes(model, network, to_codes(model, network, ROWS)), answer)


@pytest.mark.skipif(shutil.which("verilator") is None, reason="needs Verilator: apt install verilator")
def test_the_clocked_verilog_answers_as_onnx_runtime_does(tmp_path: Path) -> None:
    model = run_as(int8(few(), tmp_path)[0], tmp_path)
    network = integer_network(model)
    verilog = write_verilog(circuit(network, (2, 8, 8)), tmp_path / "rtl")
    assert verilog.stages > 1 and verilog.luts > 100 and verilog.registers > 0
    assert sources(verilog)[-1].read_text().startswith("`timescale")
    codes = random_codes(20_000, 2, 8, 8)
    assert np.array_equal(floats(network, clocked(verilog)(codes)), behind_codes(model, network, codes))


def test_multiplications_are_counted_for_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = integer_network(run_as(int8(convolutions(), tmp_path)[0], tmp_path))
    most = 16 * 4 * 2 * 9 + 16 * 4 * 2 * 9 + 16 * 3
    assert most * 0.9 < multiplications(network, (2, 8, 8)) <= most
    monkeypatch.setattr(fpga_circuit, "MOST", 1000)
    with pytest.raises(TargetUnsupported, match="unrolls every multiplication of a row, 1000 at most"):
        refuse_large(network, (2, 8, 8))


def test_what_no_circuit_can_take_names_itself_and_the_remedy(tmp_path: Path) -> None:
    quantized, prepared = int8(chain(), tmp_path, powers_of_two=False)
    with pytest.raises(
        TargetUnsupported, match=r"cannot take QGemm .*: a scale that is no power of two; .*scales: power"
    ):
        integer_network(run_as(quantized, tmp_path))
    with pytest.raises(TargetUnsupported, match="nothing is quantized in this one"):
        integer_network(run_as(prepared, tmp_path))

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))

        def forward(self, x: object) -> object:
            return self.second(self.first(x).relu()) + x

    with pytest.raises(TargetUnsupported, match="cannot take"):
        integer_network(run_as(int8(Branches(), tmp_path)[0], tmp_path))
