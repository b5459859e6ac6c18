"""Numbers as a report writes them."""


def format_latency(milliseconds: float) -> str:
    """Write a time with three digits, below a tenth of a millisecond in microseconds.

    Example:
        >>> from hessprune.lab.report.formats import format_latency
        >>> format_latency(0.03124), format_latency(0.5), format_latency(72.13), format_latency(1234.5)
        ('31.2 µs', '0.500 ms', '72.1 ms', '1234 ms')
    """
    value, unit = (1000 * milliseconds, "µs") if milliseconds < 0.1 else (milliseconds, "ms")
    return f"{value:#.3g} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def format_count(value: float) -> str:
    """Return a count with three significant digits and its unit.

    Example:
        >>> format_count(853018), format_count(125_485_706)
        ('853 k', '125 M')
    """
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit * 0.9995:
            return _three_digits(value / limit) + suffix
    return f"{value:g}"


def format_bytes(value: float) -> str:
    """Return a size in binary units.

    Example:
        >>> format_bytes(3_412_072)
        '3.25 MiB'
    """
    for limit, suffix in ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")):
        if value >= limit:
            return _three_digits(value / limit) + suffix
    return f"{value:g} B"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def format_ms(milliseconds: float) -> str:
    """Return milliseconds without their unit, to a microsecond at most.

    Example:
        >>> format_ms(0.0312), format_ms(0.5), format_ms(72.13)
        ('0.031', '0.50', '72.1')
    """
    return f"{milliseconds:.{3 if milliseconds < 0.1 else 2 if milliseconds < 10 else 1}f}"


def format_points(points: float) -> str:
    """Return a signed difference of accuracies.

    Example:
        >>> format_points(-0.3), format_points(0.04)
        ('−0.3 points', 'same accuracy')
    """
    if abs(points) < 0.05:
        return "same accuracy"
    return f"{points:+.1f} points".replace("-", "−")


def format_factor(factor: float) -> str:
    """Return a quotient of perplexities as a change in percent, large ones as a factor.

    Example:
        >>> format_factor(1.25), format_factor(0.9904), format_factor(1.0001), format_factor(52.3)
        ('+25 %', '−1.0 %', 'same perplexity', '× 52.3')
    """
    percent = 100 * (factor - 1)
    if abs(percent) < 0.05:
        return "same perplexity"
    if factor >= 10:
        return f"× {factor:.3g}" if factor < 1000 else f"× {factor:,.0f}".replace(",", " ")
    return f"{percent:+.{0 if abs(percent) >= 10 else 1}f} %".replace("-", "−")
