"""The capture benchmark's figures as text."""

from __future__ import annotations

from typing import Any

Cell = dict[str, Any]


def plain_table(cells: list[Cell]) -> str:
    """A line for each contender of each cell."""
    lines = [
        f"{'':32}{'contender':<16}{'seconds':>9}{'ratio':>7}{'quartiles':>13}{'cpu':>7}{'rounds':>7}"
        f"{'peak MiB':>10}{'ratio':>7}{'MB out':>9}{'share':>8}"
    ]
    for cell in cells:
        label = f"{cell['model']}, batch {cell['batch']}, {cell['provider']}"
        for name, figures in cell["contenders"].items():
            if "not_run" in figures:
                lines.append(f"{label:<32}{name:<16}not run: {figures['not_run']}")
                continue
            low, high = figures["quartiles"]
            lines.append(
                f"{label:<32}{name:<16}{figures['seconds']:>9.4f}{figures['ratio']:>7.2f}{f'{low:.2f}-{high:.2f}':>13}"
                f"{figures['cpu_ratio']:>7.2f}{figures['rounds']:>7}{figures['peak_bytes'] / 2**20:>10.0f}"
                f"{figures['peak_ratio']:>7.2f}{figures['bytes_out'] / 1e6:>9.2f}"
                f"{figures['share_of_activations']:>8.2%}"
            )
    return "\n".join(lines)


def markdown_table(cells: list[Cell]) -> str:
    """A line for each cell: time by the plain session's with quartiles; then our processor time, memory and bytes."""
    names = [name for name in cells[0]["contenders"] if name != "plain"]
    heads = ["model, batch, device", "plain, ms", *names, "processor time", "peak memory", "bytes out"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cell in cells:
        contenders = cell["contenders"]
        ours, budget = contenders["every probe"], contenders["within budget"]
        lines.append(
            f"| {cell['model']}, {cell['batch']}, {cell['provider'].upper()} "
            f"| {contenders['plain']['seconds'] * 1000:.1f} | {' | '.join(_ratio(contenders[name]) for name in names)} "
            f"| {_pair(ours, budget, 'cpu_ratio')} | {_pair(ours, budget, 'peak_ratio')} "
            f"| {ours['share_of_activations']:.2%} |"
        )
    reasons = [
        f"{cell['model']}, {cell['batch']}, {cell['provider'].upper()}, {name}: {figures['not_run']}"
        for cell in cells
        for name, figures in cell["contenders"].items()
        if "not_run" in figures
    ]
    return "\n".join([*lines, "", *(f"n/a: {reason}." for reason in reasons)]).rstrip()


def profile_table(cells: list[Cell]) -> str:
    """Kernel milliseconds of each model: alone, instrumented without and with pooling, then pooling by operator."""
    lines = []
    for cell in cells:
        plain, own, pooling = (sum(cell[part].values()) for part in ("plain_ms", "own_ms", "pooling_ms"))
        lines.append(
            f"{cell['model']}, batch {cell['batch']}, {cell['provider']}: plain {plain:.2f} ms, "
            f"instrumented {own:.2f} + pooling {pooling:.2f} ms, pooling/plain {pooling / plain:.1%}, "
            f"total/plain {(own + pooling) / plain:.3f}"
        )
        lines += [f"    {op:<24}{ms:>9.2f} ms{ms / plain:>8.1%}" for op, ms in cell["pooling_ms"].items()]
    return "\n".join(lines)


def _pair(ours: dict[str, Any], budget: dict[str, Any], figure: str) -> str:
    return " / ".join(f"{one[figure]:.2f}" if figure in one else "n/a" for one in (ours, budget))


def _ratio(figures: dict[str, Any]) -> str:
    if "not_run" in figures:
        return "n/a"
    low, high = figures["quartiles"]
    return f"{figures['ratio']:.2f} ({low:.2f}–{high:.2f})"
