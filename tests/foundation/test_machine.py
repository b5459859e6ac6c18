"""Facts of the machine."""

from hessprune.foundation import machine


def test_the_processor_has_a_name() -> None:
    assert machine.cpu_name()


def test_free_memory_is_that_of_the_container_if_it_is_less(tmp_path) -> None:
    assert machine._left_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert machine._left_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine._left_in_container(tmp_path) == 700
    assert 2**20 < machine.free_bytes() < 2**50
