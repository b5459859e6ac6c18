import pytest

from hessprune.lab.report.formats import format_bytes, format_count, format_latency


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_latency(0.09), "90.0 µs"),
        (format_latency(12.345), "12.3 ms"),
        (format_count(999), "999"),
        (format_count(1_500_000), "1.50 M"),
        (format_bytes(2**20), "1.00 MiB"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(text, expected):
    assert text == expected
