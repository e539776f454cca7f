"""bpf/abi.py is what the compiler makes of sluice.h, and nothing else."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from bpf import abi
from bpf.generate_abi import generate
from policies import compile as tables

BPF = Path(abi.__file__).parent


def test_the_python_copy_is_what_the_compiler_derives(tmp_path: Path) -> None:
    for tool in ("clang", "bpftool"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    machine = subprocess.run(["uname", "-m"], capture_output=True, check=True, text=True).stdout.strip()
    includes = f"-I/usr/include/{machine}-linux-gnu"
    objects = []
    for source in sorted(BPF.glob("*.bpf.c")):
        objects.append(str(tmp_path / source.with_suffix(".o").name))
        compiler = ["clang", "-g", "-O2", "-target", "bpf", "-mcpu=v3", includes]
        subprocess.run([*compiler, "-c", str(source), "-o", objects[-1]], check=True)
    generated = tmp_path / "abi.py"
    generated.write_text(generate(*objects))
    subprocess.run(
        [sys.executable, "-m", "ruff", "format", "-q", "--config", str(BPF.parent / "pyproject.toml"), str(generated)],
        check=True,
    )
    assert (BPF / "abi.py").read_text() == generated.read_text()


def test_every_structure_has_as_many_fields_as_its_format() -> None:
    formats = {name: value for name, value in vars(abi).items() if isinstance(value, struct.Struct)}
    assert len(formats) > 5
    for name, form in formats.items():
        fields = getattr(abi, "".join(part.capitalize() for part in name.removeprefix("SLUICE_").split("_")))._fields
        assert len(form.unpack(b"\0" * form.size)) == len(fields), name


def test_the_tables_of_policy_count_identities_as_the_kernel_does() -> None:
    """policies/ may not import the ABI, so its numbers are compared here."""
    assert abi.Identity.HOST == tables.LOCAL
    assert abi.Identity.FIRST_WORKLOAD == tables.FIRST_WORKLOAD
    assert abi.Identity.UNRESOLVED == tables.UNRESOLVED == tables.LAST_WORKLOAD + 1
    assert abi.Identity.FIRST_CLASS == tables.FIRST_ADDRESS_CLASS
    assert abi.Identity.ANY == tables.ANY_PEER
    for action in abi.Action:
        assert tables.Action[action.name].value == action


def test_three_generations_of_the_largest_tables_fit_the_kernels_maps() -> None:
    """The one in force, the last one, and the one that is being written."""
    assert 3 * tables.MAX_ADDRESSES <= abi.Limit.MAX_ADDRESSES
    assert 3 * tables.MAX_RULES <= abi.Limit.MAX_RULES
